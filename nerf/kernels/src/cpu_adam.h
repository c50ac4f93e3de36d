// The Adam of adam.h on the CPU: vectors of rows of four, single elements for the rest.
#pragma once
#include <cmath>

#include "adam.h"
#include "cpu_hashgrid.h"
#include "cpu_threads.h"

NERF_FN vfloat vsqrt(vfloat x) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < LANES; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
NERF_FN void vstore_half(half_bits* p, vfloat x) {
  x = vmax(vset(-65504.0f), vmin(vset(65504.0f), x));  // a table never holds inf; a NaN stays one
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, 0));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, 0));
#else
  for (int i = 0; i < LANES; ++i) p[i] = float_to_half(x[i]);
#endif
}

// LANES elements at once; `on` masks the rows that have a gradient.
NERF_FN void adam_vector(const AdamDesc& a, size_t i, vfloat g, vint on, vfloat decay) {
  const vfloat old_p = vload(a.param + i), old_m = vload(a.m + i), old_v = vload(a.v + i);
  const vfloat m = a.beta1 * old_m + (1.0f - a.beta1) * g, v = a.beta2 * old_v + (1.0f - a.beta2) * (g * g);
  const vfloat kept = old_p * (1.0f - decay);
  const vfloat p = kept - (a.lr / a.correction1) * m / (vsqrt(v * (1.0f / a.correction2)) + a.eps);
  vstore(a.m + i, on ? m : old_m);
  vstore(a.v + i, on ? v : old_v);
  vstore(a.param + i, on ? p : old_p);
  if (a.zero_grad) vstore(a.grad + i, vset(0.0f));
  if (a.half_copy) vstore_half(a.half_copy + i, on ? p : old_p);
}

// All-ones in every lane of a row of four that is not all zero.
NERF_FN vint rows_with_gradient(vfloat g) {
  vint on = g != 0.0f, swap1, swap2;
  for (int i = 0; i < LANES; ++i) {
    swap1[i] = i ^ 1;
    swap2[i] = i ^ 2;
  }
  on |= __builtin_shuffle(on, swap1);
  return on | __builtin_shuffle(on, swap2);
}

static void adam_rows(const AdamDesc& a) {
  constexpr int block = 1 << 14;
  const int n_blocks = (int)((a.n_rows + block - 1) / block);
  parallel_for(n_blocks, a.n_threads, [&](int b) {
    const long long first = (long long)b * block, last = first + block < a.n_rows ? first + block : a.n_rows;
    const int n = a.n_columns;
    long long r = first;
    if (n == 4) {
      // First which vectors have a gradient, then their steps: which they are cannot be predicted, but fetched ahead.
      const int per_vector = LANES / 4, n_vectors = (int)(last - first) / per_vector;
      const float* grads = a.grad + (size_t)first * 4;
      int touched[block / per_vector], n_touched = 0;
      for (int i = 0; i < n_vectors; ++i) {
        touched[n_touched] = i;
        n_touched += !a.skip_zero_rows || any_lane(vload(grads + (size_t)i * LANES) != 0.0f);
      }
      for (int k = 0; k < n_touched; ++k) {
        const int ahead = touched[k + 12 < n_touched ? k + 12 : n_touched - 1];
        const size_t at = (size_t)first * 4 + (size_t)ahead * LANES;
        __builtin_prefetch(a.param + at, 1);
        __builtin_prefetch(a.m + at, 1);
        __builtin_prefetch(a.v + at, 1);
        if (a.half_copy) __builtin_prefetch(a.half_copy + at, 1);
        const vfloat g = vload(grads + (size_t)touched[k] * LANES);
        const vint nothing = {};
        const long long row = first + (long long)touched[k] * per_vector;
        vfloat decay = vset(adam_decay(a, row));
        if (row < a.decay_from && row + per_vector > a.decay_from)
          for (int i = 0; i < LANES; ++i) decay[i] = adam_decay(a, row + i / 4);
        const vint on = a.skip_zero_rows ? rows_with_gradient(g) : ~nothing;
        adam_vector(a, (size_t)first * 4 + (size_t)touched[k] * LANES, g, on, decay);
      }
      r = first + (long long)n_vectors * per_vector;
    }
    for (; r < last; ++r) {
      const size_t at = (size_t)r * n;
      bool any = !a.skip_zero_rows;
      for (int c = 0; c < n; ++c) any |= a.grad[at + c] != 0.0f;
      if (!any) continue;
      for (int c = 0; c < n; ++c) {
        a.param[at + c] = adam_element(a, adam_decay(a, r), a.grad[at + c], a.param[at + c], a.m + at + c, a.v + at + c);
        if (a.zero_grad) a.grad[at + c] = 0.0f;
        if (a.half_copy) a.half_copy[at + c] = float_to_half(a.param[at + c]);
      }
    }
  });
}
