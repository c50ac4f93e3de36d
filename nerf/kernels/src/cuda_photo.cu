// The default loss of a training batch, and its backward pass as far as the samples' logits, in one kernel: one thread a ray.
// See photo.h for the equations.
#include "cuda_composite.h"
#include "photo.h"

struct PhotoArgs {
  CompositeArgs composite;  // without the gradients of outputs, which are found here
  PhotoRays photo;
  const float *colors, *opacities, *depths, *median_depths, *second_moments;
  float* loss;              // [1] added to
};

KERNEL(photo_backward, PhotoArgs, 128) {
  const int i = block_index() * block_size() + thread_index();
  const PhotoRays& p = args.photo;
  float largest = 0.0f, loss = 0.0f;
  if (i < args.composite.n_rays) {
    RayGrads g = {};
    loss = ray_loss(p, i, args.colors + 3 * i, args.opacities[i], args.depths[i], args.median_depths[i],
                    args.second_moments[i], g);
    if (i < p.n) {
      atomic_add(p.error_sums + p.places[i], p.errors[i]);
      atomic_add(p.error_counts + p.places[i], 1.0f);
    }
    largest = composite_ray_backward(args.composite, i, g);
  }
  for (int step = 16; step > 0; step >>= 1) loss += shuffle_all(loss, lane_index() ^ step);
  if (lane_index() == 0) atomic_add(args.loss, loss);
  note_largest_all(largest, args.composite.largest_bits);
}
