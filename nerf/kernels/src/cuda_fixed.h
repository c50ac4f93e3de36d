// Sums that do not depend on the order in which threads come: 64-bit integers in units of 1 / scale. Float sums do depend
// on it, by their rounding. The scale is a power of two that leaves room for all addends (fixed_scale of cuda.py).
#pragma once
#include "cuda_device.h"

// sums[0..F) += x. What is no finite number goes to the floats instead, where it shows in whatever order.
template <int F>
NERF_FN void add_fixed_row(long long* sums, float* floats, float scale, const float* x) {
#pragma unroll
  for (int f = 0; f < F; ++f) {
    if (f_abs(x[f]) <= 3.4028234e38f) atomic_add_long((u64*)sums + f, (u64)(long long)(x[f] * scale));
    else atomic_add(floats + f, x[f]);
  }
}
