// Adam (Kingma and Ba 2015) over rows; rows whose gradient is all zero are left untouched, moments included, when asked:
// a hash table is mostly untouched by one batch, and its moments must not decay while nothing is learnt about a row.
#pragma once
#include <cmath>

#include "cpu_hashgrid.h"
#include "cpu_threads.h"

struct AdamDesc {
  float *param, *grad, *m, *v;
  half_bits* half_copy;  // refreshed with the parameters; null: none
  long long n_rows;
  int n_columns;
  int skip_zero_rows, zero_grad, n_threads;
  float lr, beta1, beta2, eps;
  float correction1, correction2;  // 1 - beta^step
  float weight_decay;              // L2, added to the gradient
};

NERF_FN void adam_element(const AdamDesc& a, size_t i) {
  const float g = a.grad[i] + a.weight_decay * a.param[i];
  const float m = a.m[i] = a.beta1 * a.m[i] + (1.0f - a.beta1) * g;
  const float v = a.v[i] = a.beta2 * a.v[i] + (1.0f - a.beta2) * g * g;
  a.param[i] -= a.lr * (m / a.correction1) / (__builtin_sqrtf(v / a.correction2) + a.eps);
}

static void adam_rows(const AdamDesc& a) {
  const long long block = 1 << 14;
  const int n_blocks = (int)((a.n_rows + block - 1) / block);
  parallel_for(n_blocks, a.n_threads, [&](int b) {
    const long long first = b * block, last = first + block < a.n_rows ? first + block : a.n_rows;
    const int n = a.n_columns;
    for (long long r = first; r < last; ++r) {
      const size_t at = (size_t)r * n;
      if (n == 4) {
        const row4 g = *(const row4_u*)(a.grad + at);
        const auto zero = g == (row4){0, 0, 0, 0};
        if (a.skip_zero_rows && (zero[0] & zero[1] & zero[2] & zero[3])) continue;
        const row4 gd = g + a.weight_decay * *(const row4_u*)(a.param + at);
        const row4 m = a.beta1 * *(const row4_u*)(a.m + at) + (1.0f - a.beta1) * gd;
        const row4 v = a.beta2 * *(const row4_u*)(a.v + at) + (1.0f - a.beta2) * (gd * gd);
        *(row4_u*)(a.m + at) = m;
        *(row4_u*)(a.v + at) = v;
        row4 root = v / a.correction2;
#if defined(__x86_64__)
        root = (row4)_mm_sqrt_ps((__m128)root);
#else
        for (int c = 0; c < 4; ++c) root[c] = __builtin_sqrtf(root[c]);
#endif
        const row4 p = *(const row4_u*)(a.param + at) - a.lr * (m / a.correction1) / (root + a.eps);
        *(row4_u*)(a.param + at) = p;
        if (a.zero_grad) *(row4_u*)(a.grad + at) = (row4){0, 0, 0, 0};
        if (a.half_copy) {
#if defined(__F16C__)
          _mm_storel_epi64((__m128i*)(a.half_copy + at), _mm_cvtps_ph((__m128)p, 0));
#else
          for (int c = 0; c < 4; ++c) a.half_copy[at + c] = float_to_half(p[c]);
#endif
        }
        continue;
      }
      bool any = !a.skip_zero_rows;
      for (int c = 0; c < n; ++c) any |= a.grad[at + c] != 0.0f;
      if (!any) continue;
      for (int c = 0; c < n; ++c) {
        adam_element(a, at + c);
        if (a.zero_grad) a.grad[at + c] = 0.0f;
        if (a.half_copy) a.half_copy[at + c] = float_to_half(a.param[at + c]);
      }
    }
  });
}
