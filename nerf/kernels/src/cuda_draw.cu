// The batch of a training step: one thread draws one pixel and makes its ray. See draw.h.
#include "cuda_device.h"
#include "draw.h"

struct DrawArgs {
  const void* pixels;                             // [total, channels], integers of `bytes`
  const long long *offsets, *widths, *heights;    // [images]
  const long long* blocks;                        // [n_blocks, 3] image, block row, block column
  const float* cumulative;                        // [n_blocks] of their probabilities; null: all are as likely
  const float* cameras;                           // [images, 16] see Cameras._packed
  const float* directions;                        // of every pixel of every lens; null: lenses without distortion
  const long long* starts;                        // [images] the first of each image's lens
  const unsigned char *masks, *silhouettes;       // bits, the highest first: pixels that count; those of the object; or null
  const long long *mask_offsets, *silhouette_offsets;  // [images] the byte with which each image's begin
  float *rays_o, *rays_d, *viewdirs;              // [n, 3]; viewdirs null: those of the rays
  float *t_near, *t_far, *jitter;                 // [n]
  float *targets, *backgrounds;                   // [n, 3]
  float* used;                                    // [n] 0 where a mask excludes the pixel; null without masks
  long long* places;                              // [n] the blocks that were drawn from
  const u32* step_at;                             // the step, where it is not known at launch; or null
  u32 seed, step;
  int n, n_blocks, side, channels, bytes;
  int has_alpha, has_background;
  float background[3];                            // behind what is opaque, where one is known
  float exposure, half_extent, near, far;
};

NERF_FN float pixel_value(const DrawArgs& args, size_t at) {
  return args.bytes == 1 ? (float)((const unsigned char*)args.pixels)[at] / 255.0f
                         : (float)((const unsigned short*)args.pixels)[at] / 65535.0f;
}

NERF_FN float bit_at(const unsigned char* bits, long long first, long long pixel) {
  return (float)((bits[first + (pixel >> 3)] >> (7 - (int)(pixel & 7))) & 1);
}

KERNEL(draw_rays, DrawArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i >= args.n) return;
  const u32 step = args.step_at ? *args.step_at : args.step;
  const float u = ((float)i + random_unit(args.seed, PLACE, step, i)) / (float)args.n;
  long long place = (long long)(u * (float)args.n_blocks);
  if (args.cumulative) place = place_of(args.cumulative, args.n_blocks, u);
  if (place >= args.n_blocks) place = args.n_blocks - 1;
  const long long image = args.blocks[3 * place];
  const int inside = (int)(random_unit(args.seed, INSIDE, step, i) * (float)(args.side * args.side));
  long long row = args.blocks[3 * place + 1] * args.side + inside / args.side;
  long long column = args.blocks[3 * place + 2] * args.side + inside % args.side;
  if (row >= args.heights[image]) row = args.heights[image] - 1;
  if (column >= args.widths[image]) column = args.widths[image] - 1;
  const long long pixel = row * args.widths[image] + column;
  args.places[i] = place;

  const size_t at = (size_t)(args.offsets[image] + pixel) * args.channels;
  float alpha = args.has_alpha ? pixel_value(args, at + args.channels - 1) : 1.0f;
  if (args.silhouettes) alpha = bit_at(args.silhouettes, args.silhouette_offsets[image], pixel);
  if (args.masks) args.used[i] = bit_at(args.masks, args.mask_offsets[image], pixel);
  for (int c = 0; c < 3; ++c) {
    float behind = random_unit(args.seed, BEHIND + c, step, i) / args.exposure;
    if (args.has_background && alpha > 0.5f) behind = args.background[c];
    args.backgrounds[3 * i + c] = behind;
    args.targets[3 * i + c] = pixel_value(args, at + (args.channels >= 3 ? c : 0)) * alpha + behind * (1.0f - alpha);
  }

  const float* p = args.cameras + 16 * image;
  float x = ((float)column - p[14]) * p[12], y = ((float)row - p[15]) * p[13], z = 1.0f;
  if (args.directions) {
    const float* own = args.directions + 3 * (args.starts[image] + pixel);
    x = own[0], y = own[1], z = own[2];
  }
  float o[3], d[3], length = 0.0f;
  for (int a = 0; a < 3; ++a) {
    o[a] = p[9 + a];
    d[a] = p[6 + a] * z + p[a] * x + p[3 + a] * y;
    length += d[a] * d[a];
  }
  length = f_sqrt(length);
  for (int a = 0; a < 3; ++a) {
    d[a] /= length;
    args.rays_o[3 * i + a] = o[a];
    args.rays_d[3 * i + a] = d[a];
  }
  ray_box(o, d, args.half_extent, args.near, args.far, args.t_near + i, args.t_far + i);
  args.jitter[i] = random_unit(args.seed, JITTER, step, i);
  if (args.viewdirs) any_direction(args.seed, step, i, args.viewdirs + 3 * i);
}
