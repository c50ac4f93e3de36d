// The two precisions of the GPU's networks. A matrix operand is made of pairs of neighbouring numbers: two halves in 32 bits
// for the tensor cores, or two floats. The code above is written once, for either type of pair.
#pragma once
#include "cuda_device.h"

struct alignas(8) FloatPair {
  float a, b;
};

NERF_FN void set_pair(u32& p, float a, float b) { p = halves_of(a, b); }
NERF_FN void set_pair(FloatPair& p, float a, float b) { p.a = a, p.b = b; }
NERF_FN void get_pair(u32 p, float* a, float* b) { halves_to(p, a, b); }
NERF_FN void get_pair(const FloatPair& p, float* a, float* b) { *a = p.a, *b = p.b; }
NERF_FN void zero_pair(u32& p) { p = 0; }
NERF_FN void zero_pair(FloatPair& p) { p.a = p.b = 0.0f; }

// The product of mma_all in floats: what other lanes hold comes by shuffles. Slow beside tensor cores, exact to float. A
// function of its own, called and not inlined: there are dozens of products in a kernel, and each is 64 shuffles long.
NERF_CALL float4 product_by_shuffles_all(float4 c, float4 upper, float4 lower, float4 b) {
  const int quad = lane_index() & ~3, t = lane_index() & 3;
#pragma unroll
  for (int k = 0; k < 16; ++k) {
    const int s = (k & 7) >> 1, i = (k >> 3) * 2 + (k & 1);  // which of a lane's four numbers, and whose
    const float mine_upper = i == 0 ? upper.x : (i == 1 ? upper.y : (i == 2 ? upper.z : upper.w));
    const float mine_lower = i == 0 ? lower.x : (i == 1 ? lower.y : (i == 2 ? lower.z : lower.w));
    const float mine = i == 0 ? b.x : (i == 1 ? b.y : (i == 2 ? b.z : b.w));
    const float row = shuffle_all(mine_upper, quad | s), row_below = shuffle_all(mine_lower, quad | s);
    const float left = shuffle_all(mine, 8 * t + s), right = shuffle_all(mine, 8 * t + 4 + s);
    c.x = f_fma(row, left, c.x);
    c.y = f_fma(row, right, c.y);
    c.z = f_fma(row_below, left, c.z);
    c.w = f_fma(row_below, right, c.w);
  }
  return c;
}
NERF_FN void mma_by_shuffles_all(float* c, const FloatPair* a, const FloatPair* b) {
  const float4 sums = product_by_shuffles_all(
      make_float4(c[0], c[1], c[2], c[3]), make_float4(a[0].a, a[0].b, a[2].a, a[2].b),
      make_float4(a[1].a, a[1].b, a[3].a, a[3].b), make_float4(b[0].a, b[0].b, b[1].a, b[1].b));
  c[0] = sums.x, c[1] = sums.y, c[2] = sums.z, c[3] = sums.w;
}
#if !defined(NERF_EMULATED)
NERF_FN void mma_all(float* c, const FloatPair* a, const FloatPair* b) { mma_by_shuffles_all(c, a, b); }
#else
NERF_FN void mma_all(float* c, const FloatPair* a, const FloatPair* b) { emulated_mma_single(c, &a->a, &b->a); }
#endif

// A 16x16 block of shared memory (rows are samples) transposed: out[0] samples 0-7, columns 0-7; out[1] samples 0-7, columns
// 8-15; out[2] samples 8-15, columns 0-7; out[3] samples and columns 8-15. Each pair: samples 2t, 2t + 1 of column g. As it
// is, an operand a whose rows are the columns; out[0], out[2] and out[1], out[3] are operands b. `stride` counts elements.
NERF_FN void load_block_all(const unsigned short* block, int stride, u32* out) {
  const int lane = lane_index();
  load_transposed_all(block + ((lane & 7) + ((lane >> 4) << 3)) * stride + ((lane >> 3) & 1) * 8, out);
}
NERF_FN void load_block_all(const float* block, int stride, FloatPair* out) {
  const int g = lane_index() >> 2, t = lane_index() & 3;
  for (int j = 0; j < 4; ++j) {
    const float* at = block + ((j >> 1) * 8 + 2 * t) * stride + (j & 1) * 8 + g;
    set_pair(out[j], at[0], at[stride]);
  }
}

template <class P>
struct ElementOf;
template <>
struct ElementOf<u32> {
  typedef unsigned short type;
};
template <>
struct ElementOf<FloatPair> {
  typedef float type;
};
