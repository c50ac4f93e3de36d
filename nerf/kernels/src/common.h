// Types and math that the C++ compiler (CPU) and NVRTC (GPU) both understand. Includes nothing: NVRTC has no headers.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define NERF_FN __device__ __forceinline__
#define NERF_CALL static __device__ __noinline__
#define NERF_CONSTEXPR __device__ constexpr
#define NERF_TABLE static __device__ const
#else
#define NERF_FN static inline __attribute__((always_inline))
#define NERF_METHOD inline __attribute__((always_inline))
#define NERF_CALL static inline
#define NERF_CONSTEXPR constexpr
#define NERF_TABLE static const
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// Only + - * / sqrt floor and explicit fma decide where samples lie, so that every compiler finds the same ones.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
NERF_FN float f_floor(float x) { return floorf(x); }
NERF_FN float f_fma(float a, float b, float c) { return fmaf(a, b, c); }
NERF_FN float f_exp(float x) { return expf(x); }
NERF_FN float f_log(float x) { return logf(x); }
NERF_FN float f_abs(float x) { return fabsf(x); }
NERF_FN float f_sqrt(float x) { return sqrtf(x); }
#else
NERF_FN float f_floor(float x) { return __builtin_floorf(x); }
NERF_FN float f_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
NERF_FN float f_exp(float x) { return __builtin_expf(x); }
NERF_FN float f_log(float x) { return __builtin_logf(x); }
NERF_FN float f_abs(float x) { return __builtin_fabsf(x); }
NERF_FN float f_sqrt(float x) { return __builtin_sqrtf(x); }
#endif
NERF_FN float f_min(float a, float b) { return a < b ? a : b; }
NERF_FN float f_max(float a, float b) { return a > b ? a : b; }  // b where a is NaN
NERF_FN float f_clamp(float x, float low, float high) { return f_min(f_max(x, low), high); }

// What lane-generic code asks for, of single numbers; cpu_simd.h has the same for short vectors.
NERF_FN float splat(float x, float) { return x; }
NERF_FN float select(bool c, float a, float b) { return c ? a : b; }
NERF_FN u32 select(bool c, u32 a, u32 b) { return c ? a : b; }
NERF_FN bool any_lane(bool c) { return c; }
NERF_FN bool b_not(bool c) { return !c; }
NERF_FN u32 to_unsigned(float x) { return (u32)x; }  // of 0 and more
NERF_FN float to_float(u32 x) { return (float)x; }
NERF_FN u32 byte_at(const unsigned char* bytes, u32 index) { return bytes[index]; }
NERF_FN bool bit_set(const u32* bits, u32 index, bool asked) { return asked && ((bits[index >> 5] >> (index & 31u)) & 1u); }

// Density activation exp(h), held at h = 15 from above so that a step too far cannot overflow (truncated exponential).
static const float DENSITY_LOGIT_MAX = 15.0f;

// Derivative of the sigmoid, from its value.
NERF_FN float sigmoid_slope(float value) { return value * (1.0f - value); }

// A float in [0, 1) from three integers, the same on every machine (lowbias32 finaliser by C. Wellons).
NERF_FN float hash_to_unit(u32 seed, u32 step, u32 index) {
  u32 h = seed * 0x9E3779B9u + step * 0x85EBCA6Bu + index * 0xC2B2AE35u;
  h ^= h >> 16;
  h *= 0x7feb352du;
  h ^= h >> 15;
  h *= 0x846ca68bu;
  h ^= h >> 16;
  return (float)(h >> 8) * 5.9604644775390625e-08f;  // 2^-24
}
