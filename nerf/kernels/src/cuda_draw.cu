// The batch of a training step: one thread draws one pixel and makes its ray, or a ray before a camera. See draw.h.
#include "cuda_device.h"
#include "draw.h"

KERNEL(draw_rays, DrawArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i < args.n) draw_ray(args, i, draw_pixel(args, i, 0));
  else if (i < args.n + args.n_before) draw_before(args, i - args.n);
}
