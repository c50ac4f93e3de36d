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

// ---- what lane-generic code asks for: see common.h. The march's numbers are the same to the bit as those of single lanes ----

NERF_FN vfloat f_min(vfloat a, vfloat b) { return a < b ? a : b; }
NERF_FN vfloat f_max(vfloat a, vfloat b) { return a > b ? a : b; }
NERF_FN vfloat f_abs(vfloat x) { return (vfloat)((vint)x & 0x7fffffff); }
NERF_FN vfloat splat(float x, vfloat) { return vset(x); }
NERF_FN vfloat select(vint c, vfloat a, vfloat b) { return c ? a : b; }
NERF_FN vuint select(vint c, vuint a, vuint b) { return c ? a : b; }
NERF_FN vint b_not(vint c) { return ~c; }
NERF_FN vuint to_unsigned(vfloat x) { return (vuint)__builtin_convertvector(x, vint); }
NERF_FN vfloat to_float(vuint x) { return __builtin_convertvector((vint)x, vfloat); }
NERF_FN u32 lane_bits(vint c) {  // one bit a lane
#if defined(__AVX512F__)
  return (u32)_mm512_movepi32_mask((__m512i)c);
#elif defined(__AVX2__)
  return (u32)_mm256_movemask_ps((__m256)c);
#else
  u32 bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= (c[i] ? 1u : 0u) << i;
  return bits;
#endif
}
NERF_FN bool any_lane(vint c) { return lane_bits(c) != 0; }
NERF_FN vfloat f_fma(vfloat a, vfloat b, vfloat c) {
#if defined(__FMA__)
  return vfma(a, b, c);
#else
  for (int i = 0; i < LANES; ++i) a[i] = f_fma(a[i], b[i], c[i]);
  return a;
#endif
}
NERF_FN vfloat f_floor(vfloat x) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_roundscale_ps((__m512)x, 9);  // down, without exceptions
#elif defined(__AVX2__)
  return (vfloat)_mm256_floor_ps((__m256)x);
#else
  for (int i = 0; i < LANES; ++i) x[i] = f_floor(x[i]);
  return x;
#endif
}
NERF_FN vuint words_at(const u32* words, vuint index) {
#if defined(__AVX512F__)
  return (vuint)_mm512_i32gather_epi32((__m512i)index, words, 4);
#elif defined(__AVX2__)
  return (vuint)_mm256_i32gather_epi32((const int*)words, (__m256i)index, 4);
#else
  for (int i = 0; i < LANES; ++i) index[i] = words[index[i]];
  return index;
#endif
}
// Bytes of an array whose length and start are multiples of 4 (little-endian).
NERF_FN vuint byte_at(const unsigned char* bytes, vuint index) {
  return words_at((const u32*)bytes, index >> 2) >> ((index & 3) << 3) & 255;
}
NERF_FN vint bit_set(const u32* bits, vuint index, vint) {
  return (vint)(words_at(bits, index >> 5) >> (index & 31)) << 31 >> 31;
}
