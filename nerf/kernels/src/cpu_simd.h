// Short vectors for the CPU: one width per library (16 lanes AVX-512, 8 AVX2, else 4), by the compilers' vector extension.
#pragma once
#include "common.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int vint __attribute__((vector_size(4 * LANES)));
typedef u32 vuint __attribute__((vector_size(4 * LANES)));
typedef float vfloat_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // loads and stores anywhere
typedef float row4 __attribute__((vector_size(16)));
typedef float row4_u __attribute__((vector_size(16), aligned(4), may_alias));

NERF_FN vfloat vload(const float* p) { return *(const vfloat_u*)p; }
NERF_FN void vstore(float* p, vfloat v) { *(vfloat_u*)p = v; }
NERF_FN vfloat vset(float x) { return x - (vfloat){}; }

// The libraries are built with -ffp-contract=off (see march.h), so fused multiply-add is asked for by name.
NERF_FN vfloat vfma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
NERF_FN row4 fma4(row4 a, row4 b, row4 c) {
#if defined(__FMA__)
  return (row4)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
#else
  return a * b + c;
#endif
}
NERF_FN vfloat vmax(vfloat a, vfloat b) { return a > b ? a : b; }
NERF_FN vfloat vmin(vfloat a, vfloat b) { return a < b ? a : b; }

// exp by range reduction to [-ln2/2, ln2/2] and a degree-6 polynomial (Cephes); relative error below 2e-7, 0 under -87.
NERF_FN vfloat vexp(vfloat x) {
  const vfloat low = vset(-87.0f);
  const vint alive = x > low, is_number = x == x;
  const vfloat input = x;
  x = vmin(vmax(x, low), vset(88.0f));
  const vfloat shifted = vfma(x, vset(1.44269504088896341f), vset(12582912.0f));  // 1.5 * 2^23: rounds to an integer
  const vfloat n = shifted - vset(12582912.0f);
  const vfloat r = vfma(n, vset(2.12194440e-4f), vfma(n, vset(-0.693359375f), x));
  vfloat p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vfma(p * r, r, r + vset(1.0f));
  const vint exponent = (__builtin_convertvector(n, vint) + 127) << 23;
  const vfloat y = p * (vfloat)exponent;
  return is_number ? (vfloat)((vint)y & alive) : input;  // a NaN stays a NaN: training must notice it
}
