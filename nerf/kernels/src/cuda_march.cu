// What leads up to a march: jitter, the bits of the occupancy grid; and the march on its own (march.h), in two passes of the
// same loop: count, then fill.
#include "cuda_device.h"
#include "march.h"

struct JitterArgs {
  float* out;
  u32 seed, step;
  int n;
  const u32* step_at;  // the step, where it is not known at launch; or null
};

KERNEL(ray_jitter, JitterArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i < args.n) args.out[i] = hash_to_unit(args.seed, args.step_at ? *args.step_at : args.step, (u32)i);
}

struct MarchArgs {
  OccupancyBits grid;
  MarchSettings march;
  int n_rays;
  const float *rays_o, *rays_d, *t_near, *t_far, *jitter;
  const long long* starts;  // [n] first sample of each ray; null: only count
  long long* counts;        // [n]; null: only fill
  float *t_starts, *t_ends;
  long long* ray_indices;
};

KERNEL(march_rays, MarchArgs, 128) {
  const int ray = block_index() * block_size() + thread_index();
  if (ray >= args.n_rays) return;
  long long n = 0;
  if (args.t_near[ray] < args.t_far[ray]) {
    MarchState m = march_begin(args.rays_o + 3 * ray, args.rays_d + 3 * ray, args.t_near[ray], args.t_far[ray],
                               args.jitter[ray], args.march);
    const long long first = args.starts ? args.starts[ray] : 0;
    float t_start, t_end;
    for (; march_next(m, args.grid, args.march, &t_start, &t_end); ++n)
      if (args.starts) {
        args.t_starts[first + n] = t_start;
        args.t_ends[first + n] = t_end;
        args.ray_indices[first + n] = ray;
      }
  }
  if (args.counts) args.counts[ray] = n;
}

// ---- occupancy: bits, and the clearance of OccupancyBits --------------------------------------------------------------------

struct PackArgs {
  const unsigned char* occupied;  // [levels, R, R, R] 0 or 1
  u32* fine;                      // [levels * R^3 / 32]
  unsigned char* from;            // [levels, R/4, R/4, R/4] distances so far
  unsigned char* to;              // the same after one more axis
  int n_levels, resolution;
  int axis;                       // 0: x, 1: y, 2: z
};

KERNEL(pack_bits, PackArgs, 256) {
  const int word = block_index() * block_size() + thread_index(), R = args.resolution;
  if (word >= args.n_levels * R * R * (R / 32)) return;
  u32 bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (u32)(args.occupied[(size_t)word * 32 + i] != 0) << i;
  args.fine[word] = bits;
}

// 0 where a block holds an occupied cell or a finer level serves, else 255.
KERNEL(mark_blocks, PackArgs, 256) {
  const int i = block_index() * block_size() + thread_index(), R = args.resolution, RB = R / (int)BLOCK;
  if (i >= args.n_levels * RB * RB * RB) return;
  const int x = i % RB, y = i / RB % RB, z = i / RB / RB % RB, level = i / RB / RB / RB;
  const int low = RB / 4, high = RB - RB / 4;
  bool zero = level > 0 && x >= low && x < high && y >= low && y < high && z >= low && z < high;
  for (int dz = 0; dz < (int)BLOCK; ++dz)
    for (int dy = 0; dy < (int)BLOCK; ++dy) {
      const size_t cell = (((size_t)level * R + z * BLOCK + dz) * R + y * BLOCK + dy) * R + x * BLOCK;
      const u32 bits = args.fine[cell >> 5] >> (cell & 31);
      zero |= (bits & ((1u << BLOCK) - 1)) != 0;
    }
  args.to[i] = zero ? 0 : 255;
}

// Chessboard distance to the nearest zero, one axis at a time: the least over the axis of max(steps along it, distance so
// far). Past a level that is not the outermost one, nothing is known: zeros.
KERNEL(spread_blocks, PackArgs, 256) {
  const int i = block_index() * block_size() + thread_index(), RB = args.resolution / (int)BLOCK;
  if (i >= args.n_levels * RB * RB * RB) return;
  const int stride = args.axis == 0 ? 1 : (args.axis == 1 ? RB : RB * RB), mine = i / stride % RB;
  const bool walled = i / (RB * RB * RB) + 1 < args.n_levels;
  int least = 255;
  for (int at = 0; at < RB; ++at) {
    const int steps = at < mine ? mine - at : at - mine, before = args.from[i + (at - mine) * stride];
    const int distance = before == 255 ? 255 : (steps > before ? steps : before);
    least = distance < least ? distance : least;
  }
  if (walled) {
    const int wall = mine + 1 < RB - mine ? mine + 1 : RB - mine;
    least = wall < least ? wall : least;
  }
  args.to[i] = (unsigned char)least;
}
