// Training pixels and their rays: which pixel, its colour over a background, where its ray enters the march; and, behind
// these, rays right before cameras. All random numbers are integer hashes of (stream, step, ray), so that every
// implementation draws the same ones.
#pragma once
#include "common.h"

static const u32 STREAM = 0x3C6EF372u;  // between the seeds of two streams: far apart in the hash for thousands of steps
// Streams: BEHIND takes 3 of them, ANYWHERE and ASIDE 12.
enum { JITTER = 0, PLACE = 1, INSIDE = 2, BEHIND = 3, ANYWHERE = 6, KNOWN = 18, AMONG, CAMERA, NEIGHBOUR, BETWEEN, ASIDE };

NERF_FN float random_unit(u32 seed, int stream, u32 step, int ray) {
  return hash_to_unit(seed + (u32)stream * STREAM, step, (u32)ray);
}

NERF_FN int random_below(int n, u32 seed, int stream, u32 step, int ray) {
  const int found = (int)(random_unit(seed, stream, step, ray) * (float)n);
  return found < n ? found : n - 1;
}

// A sum of four numbers, of mean 0 and variance 1/3; takes 4 streams.
NERF_FN float nearly_normal(u32 seed, int stream, u32 step, int ray) {
  float sum = -2.0f;
  for (int k = 0; k < 4; ++k) sum += random_unit(seed, stream + k, step, ray);
  return sum;
}

// The first of the growing shares of the total probability in [low, high) that is not below u, else high; u falls into its
// place.
NERF_FN long long place_of(const float* cumulative, long long low, long long high, float u) {
  while (low < high) {
    const long long middle = (low + high) / 2;
    if (cumulative[middle] < u) low = middle + 1;
    else high = middle;
  }
  return low;
}

// A direction that is nearly as likely as any other: three nearly normal numbers.
NERF_FN void any_direction(u32 seed, u32 step, int ray, float* d) {
  float length = 0.0f;
  for (int a = 0; a < 3; ++a) {
    d[a] = nearly_normal(seed, ANYWHERE + 4 * a, step, ray);
    length += d[a] * d[a];
  }
  length = f_sqrt(length);
  if (!(length > 1e-6f)) d[0] = length = 1.0f;
  for (int a = 0; a < 3; ++a) d[a] /= length;
}

// Where a ray crosses [-half, half]^3, cut to [near, far]; a miss has t_near >= t_far. An axis that it is parallel to allows
// everything, or nothing from outside.
NERF_FN void ray_box(const float* o, const float* d, float half, float near, float far, float* t_near, float* t_far) {
  float enter = near, leave = far;
  for (int a = 0; a < 3; ++a) {
    if (d[a] == 0.0f) {
      if (f_abs(o[a]) > half) enter = far + 1.0f, leave = near - 1.0f;
      continue;
    }
    const float one = (-half - o[a]) / d[a], two = (half - o[a]) / d[a];
    enter = f_max(enter, f_min(one, two));
    leave = f_min(leave, f_max(one, two));
  }
  *t_near = enter;
  *t_far = leave;
}

// A scene ray in normalised device coordinates, from the near plane z = -1 to infinity (NeRF, Mildenhall et al. 2020, equations
// 25 and 26; `Ndc` of geometry/space.py). Returns its length there, 0 for a ray that does not look along -z.
NERF_FN float warp_ray(float ndc_x, float ndc_y, float* o, float* d) {
  const bool ahead = d[2] < -1e-6f;
  if (!ahead) d[0] = d[1] = 0.0f, d[2] = -1.0f;
  const float slide = (1.0f + o[2]) / d[2];
  for (int a = 0; a < 3; ++a) o[a] -= slide * d[a];
  const float start[3] = {-ndc_x * o[0] / o[2], -ndc_y * o[1] / o[2], 1.0f + 2.0f / o[2]};
  const float end[3] = {-ndc_x * d[0] / d[2], -ndc_y * d[1] / d[2], 1.0f};
  float length = 0.0f;
  for (int a = 0; a < 3; ++a) length += (end[a] - start[a]) * (end[a] - start[a]);
  length = f_sqrt(length);
  for (int a = 0; a < 3; ++a) {
    o[a] = start[a];
    d[a] = (end[a] - start[a]) / length;
  }
  return ahead ? length : 0.0f;
}

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
  const long long* keypoints;                     // [all, 4] image, row, column, block of pixels that show a sparse point
  const float* keypoint_depths;                   // [all] places t of these on their rays; 0: unknown
  const long long* near;                          // [n_near] the keypoints that may be drawn
  const float* centres;                           // [n_centres, 3] of the cameras
  const long long* nearest;                       // [n_centres, n_nearest] the cameras nearest to each
  float *rays_o, *rays_d, *viewdirs;              // [n + n_before, 3]; viewdirs null: the rays' own
  float *t_near, *t_far, *jitter;                 // [n + n_before]
  float *targets, *backgrounds;                   // [n, 3]
  float* used;                                    // [n] 0 where a mask excludes the pixel; null without masks
  float *t_depths, *alphas;                       // [n] where what the pixel shows is known to be, 0: nowhere; or null
  long long* places;                              // [n] the blocks that were drawn from
  long long* drawn;                               // [n, 3] image, row and column of the pixels; or null
  const u32* step_at;                             // the step, where it is not known at launch; or null
  u32 seed, step;
  int n, n_blocks, side, channels, bytes;
  int has_alpha, has_background, any_direction, warped;  // warped: rays are marched in NDC
  int n_near, n_known;                            // the last n_known of the pixels show keypoints
  int n_before, before_every;                     // rays right before cameras: one for so many pixels
  int n_centres, n_nearest;
  float background[3];                            // behind what is opaque, where one is known
  float ndc_x, ndc_y;
  float exposure, half_extent, t_first, t_last;   // of the march
  float before_last;                              // where rays before cameras end
  float spread;                                   // how far viewpoints lie off the line between two cameras, in its lengths
};

NERF_FN float pixel_value(const DrawArgs& args, size_t at) {
  return args.bytes == 1 ? (float)((const unsigned char*)args.pixels)[at] / 255.0f
                         : (float)((const unsigned short*)args.pixels)[at] / 65535.0f;
}

NERF_FN float bit_at(const unsigned char* bits, long long first, long long pixel) {
  return (float)((bits[first + (pixel >> 3)] >> (7 - (int)(pixel & 7))) & 1);
}

struct DrawnPixel {
  long long place, image, row, column, pixel;  // pixel: its number in the image
  float t_depth;
};

NERF_FN size_t numbers_of(const DrawArgs& args, const DrawnPixel& p) {  // where the pixel's begin
  return (size_t)(args.offsets[p.image] + p.pixel) * args.channels;
}

NERF_FN u32 step_of(const DrawArgs& args) { return args.step_at ? *args.step_at : args.step; }

// Pixel i of the batch. from: a place that is not beyond its own, as 0 or that of a pixel before.
NERF_FN DrawnPixel draw_pixel(const DrawArgs& args, int i, long long from) {
  const u32 step = step_of(args);
  DrawnPixel p;
  p.t_depth = 0.0f;
  const int n_spread = args.n - args.n_known;
  if (i >= n_spread) {
    const long long which = args.near[random_below(args.n_near, args.seed, KNOWN, step, i)];
    const long long* known = args.keypoints + 4 * which;
    p.image = known[0], p.row = known[1], p.column = known[2], p.place = known[3];
    p.pixel = p.row * args.widths[p.image] + p.column;
    p.t_depth = args.keypoint_depths[which];
    return p;
  }
  const float u = ((float)i + random_unit(args.seed, PLACE, step, i)) / (float)n_spread;
  p.place = (long long)(u * (float)args.n_blocks);
  if (args.cumulative) {
    long long to = args.n_blocks;
    if (from > 0) {  // probably near
      long long ahead = 1;
      for (; from + ahead < args.n_blocks && args.cumulative[from + ahead] < u; ahead *= 2) from += ahead;
      to = from + ahead < args.n_blocks ? from + ahead : args.n_blocks;
    }
    p.place = place_of(args.cumulative, from, to, u);
  }
  if (p.place >= args.n_blocks) p.place = args.n_blocks - 1;
  p.image = args.blocks[3 * p.place];
  const int inside = (int)(random_unit(args.seed, INSIDE, step, i) * (float)(args.side * args.side));
  p.row = args.blocks[3 * p.place + 1] * args.side + inside / args.side;
  p.column = args.blocks[3 * p.place + 2] * args.side + inside % args.side;
  if (p.row >= args.heights[p.image]) p.row = args.heights[p.image] - 1;
  if (p.column >= args.widths[p.image]) p.column = args.widths[p.image] - 1;
  p.pixel = p.row * args.widths[p.image] + p.column;
  return p;
}

// The ray of a pixel: where its camera stands, and the unit direction.
NERF_FN void pixel_ray(const DrawArgs& args, const DrawnPixel& drawn, float* o, float* d) {
  const float* p = args.cameras + 16 * drawn.image;
  float x = ((float)drawn.column - p[14]) * p[12], y = ((float)drawn.row - p[15]) * p[13], z = 1.0f, length = 0.0f;
  if (args.directions) {
    const float* own = args.directions + 3 * (args.starts[drawn.image] + drawn.pixel);
    x = own[0], y = own[1], z = own[2];
  }
  for (int a = 0; a < 3; ++a) {
    o[a] = p[9 + a];
    d[a] = p[6 + a] * z + p[a] * x + p[3 + a] * y;
    length += d[a] * d[a];
  }
  length = f_sqrt(length);
  for (int a = 0; a < 3; ++a) d[a] /= length;
}

NERF_FN void write_ray(const DrawArgs& args, int i, float* o, float* d, float last) {
  float first = args.t_first;
  if (args.viewdirs) for (int a = 0; a < 3; ++a) args.viewdirs[3 * i + a] = d[a];
  if (args.warped) {
    first = 0.0f;
    last = f_min(last, warp_ray(args.ndc_x, args.ndc_y, o, d));
  }
  for (int a = 0; a < 3; ++a) {
    args.rays_o[3 * i + a] = o[a];
    args.rays_d[3 * i + a] = d[a];
  }
  ray_box(o, d, args.half_extent, first, last, args.t_near + i, args.t_far + i);
  args.jitter[i] = random_unit(args.seed, JITTER, step_of(args), i);
}

// What pixel i shows, and its ray.
NERF_FN void draw_ray(const DrawArgs& args, int i, const DrawnPixel& drawn) {
  const u32 step = step_of(args);
  const long long image = drawn.image, pixel = drawn.pixel;
  args.places[i] = drawn.place;
  if (args.drawn) args.drawn[3 * i] = image, args.drawn[3 * i + 1] = drawn.row, args.drawn[3 * i + 2] = drawn.column;
  if (args.t_depths) args.t_depths[i] = drawn.t_depth;

  const size_t at = numbers_of(args, drawn);
  float alpha = args.has_alpha ? pixel_value(args, at + args.channels - 1) : 1.0f;
  if (args.silhouettes) alpha = bit_at(args.silhouettes, args.silhouette_offsets[image], pixel);
  if (args.masks) args.used[i] = bit_at(args.masks, args.mask_offsets[image], pixel);
  if (args.alphas) args.alphas[i] = alpha;
  for (int c = 0; c < 3; ++c) {
    float behind = random_unit(args.seed, BEHIND + c, step, i) / args.exposure;
    if (args.has_background && alpha > 0.5f) behind = args.background[c];
    args.backgrounds[3 * i + c] = behind;
    args.targets[3 * i + c] = pixel_value(args, at + (args.channels >= 3 ? c : 0)) * alpha + behind * (1.0f - alpha);
  }
  float o[3], d[3];
  pixel_ray(args, drawn, o, d);
  write_ray(args, i, o, d, args.t_last);
  if (args.any_direction) any_direction(args.seed, step, i, args.viewdirs + 3 * i);
}

// Ray j of those before cameras, in the direction of one of its pixels. Those of odd numbers begin at viewpoints, around the
// line from a camera to one that is near it, the others at the pixel's camera.
NERF_FN void draw_before(const DrawArgs& args, int j) {
  const u32 step = step_of(args);
  const int i = args.n + j, among = j * args.before_every + random_below(args.before_every, args.seed, AMONG, step, i);
  float o[3], d[3];
  pixel_ray(args, draw_pixel(args, among < args.n ? among : args.n - 1, 0), o, d);
  if (j & 1) {
    const int camera = random_below(args.n_centres, args.seed, CAMERA, step, i);
    const int nearest = random_below(args.n_nearest, args.seed, NEIGHBOUR, step, i);
    const float* from = args.centres + 3 * camera;
    const float* to = args.centres + 3 * args.nearest[(long long)camera * args.n_nearest + nearest];
    const float share = random_unit(args.seed, BETWEEN, step, i);
    float length = 0.0f;
    for (int a = 0; a < 3; ++a) length += (to[a] - from[a]) * (to[a] - from[a]);
    length = f_sqrt(length);
    for (int a = 0; a < 3; ++a) {
      const float aside = args.spread * nearly_normal(args.seed, ASIDE + 4 * a, step, i);
      o[a] = from[a] + share * (to[a] - from[a]) + aside * length;
    }
  }
  write_ray(args, i, o, d, args.before_last);
}
