// Training pixels and their rays: which pixel, its colour over a background, where its ray enters the march. All random
// numbers are integer hashes of (stream, step, ray), so that every implementation draws the same ones.
#pragma once
#include "common.h"

static const u32 STREAM = 0x3C6EF372u;  // between the seeds of two streams: far apart in the hash for thousands of steps
enum { JITTER = 0, PLACE = 1, INSIDE = 2, BEHIND = 3, ANYWHERE = 6 };  // streams; the last two take 3 and 12 of them

NERF_FN float random_unit(u32 seed, int stream, u32 step, int ray) {
  return hash_to_unit(seed + (u32)stream * STREAM, step, (u32)ray);
}

// The first of n growing shares of the total probability that is not below u; u falls into its place.
NERF_FN long long place_of(const float* cumulative, long long n, float u) {
  long long low = 0, high = n;
  while (low < high) {
    const long long middle = (low + high) / 2;
    if (cumulative[middle] < u) low = middle + 1;
    else high = middle;
  }
  return low < n ? low : n - 1;
}

// A direction that is nearly as likely as any other: three nearly normal numbers, each a sum of four.
NERF_FN void any_direction(u32 seed, u32 step, int ray, float* d) {
  float length = 0.0f;
  for (int a = 0; a < 3; ++a) {
    d[a] = -2.0f;
    for (int k = 0; k < 4; ++k) d[a] += random_unit(seed, ANYWHERE + 4 * a + k, step, ray);
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
