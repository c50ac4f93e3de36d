// What a GPU has and C++ has not: threads, warps, atomics, half precision, tensor cores. Everything device-specific of the
// .cu files is in here, by inline PTX where NVRTC has no header for it. The tests compile the same .cu files with the host's
// compiler: NERF_EMULATED takes these functions from a shim of theirs (tests/cuda_shim.h) instead.
// Functions named *_all must be called by all 32 lanes of a warp together.
#pragma once
#include "common.h"

#if defined(NERF_EMULATED)
#include "cuda_shim.h"
#else

// A kernel takes one struct by value: it lies in constant memory, and no argument list has to be kept in step with Python.
#define KERNEL(NAME, ARGS, THREADS) \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ ARGS args)

NERF_FN int thread_index() { return (int)threadIdx.x; }
NERF_FN int block_index() { return (int)blockIdx.x; }
NERF_FN int block_row() { return (int)blockIdx.y; }
NERF_FN int block_count() { return (int)gridDim.x; }
NERF_FN int block_size() { return (int)blockDim.x; }
NERF_FN void sync_block() { __syncthreads(); }
NERF_FN void sync_warp_all() { __syncwarp(); }
NERF_FN unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

NERF_FN float shuffle_all(float x, int from) { return __shfl_sync(0xffffffffu, x, from); }
NERF_FN int shuffle_all(int x, int from) { return __shfl_sync(0xffffffffu, x, from); }
NERF_FN u32 ballot_all(bool x) { return __ballot_sync(0xffffffffu, x); }
NERF_FN int count_bits(u32 x) { return __popc(x); }
NERF_FN u32 float_bits(float x) { return __float_as_uint(x); }
NERF_FN float bits_float(u32 x) { return __uint_as_float(x); }

NERF_FN int atomic_add(int* p, int x) { return atomicAdd(p, x); }
NERF_FN void atomic_add(float* p, float x) { asm volatile("red.global.add.f32 [%0], %1;" ::"l"(p), "f"(x) : "memory"); }
NERF_FN void atomic_add_long(u64* p, u64 x) { atomicAdd(p, x); }
NERF_FN void atomic_max(u32* p, u32 x) { atomicMax(p, x); }

// p[0..F) += x: one instruction for a whole row of the table where the chip has it (compute capability 9.0).
template <int F>
NERF_FN void atomic_add_row(float* p, const float* x) {
#if __CUDA_ARCH__ >= 900
  if (F % 4 == 0) {
    for (int f = 0; f < F; f += 4)
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p + f), "f"(x[f]), "f"(x[f + 1]), "f"(x[f + 2]),
                   "f"(x[f + 3])
                   : "memory");
    return;
  }
  if (F % 2 == 0) {
    for (int f = 0; f < F; f += 2)
      asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p + f), "f"(x[f]), "f"(x[f + 1]) : "memory");
    return;
  }
#endif
  for (int f = 0; f < F; ++f) atomic_add(p + f, x[f]);
}

// Two halves in 32 bits, the first in the low ones; saturated at +-65504, so that no gradient or table ever holds inf.
NERF_FN u32 halves_of(float a, float b) {
  a = f_max(-65504.0f, f_min(65504.0f, a));  // in this order a NaN stays one: both give their second argument then
  b = f_max(-65504.0f, f_min(65504.0f, b));
  u32 pair;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
#else
  asm("{ .reg .f16 lo, hi; cvt.rn.f16.f32 lo, %1; cvt.rn.f16.f32 hi, %2; mov.b32 %0, {lo, hi}; }"
      : "=r"(pair)
      : "f"(a), "f"(b));
#endif
  return pair;
}
NERF_FN void halves_to(u32 pair, float* a, float* b) {
  asm("{ .reg .f16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi; }"
      : "=f"(*a), "=f"(*b)
      : "r"(pair));
}

// c [16,8] += a [16,16] b [16,8] in half precision with float sums, shared by the lanes of a warp as PTX lays it out. With
// g = lane / 4 and t = lane % 4, pairs of columns: a[0] row g, columns 2t..; a[1] row g + 8; a[2], a[3] the same rows, columns
// 2t + 8..; b[0] rows 2t.., column g; b[1] rows 2t + 8..; c[0..1] row g, columns 2t..; c[2..3] row g + 8.
NERF_FN void mma_all(float* c, const u32* a, const u32* b) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int h = 0; h < 2; ++h)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * h]), "r"(a[2 * h + 1]), "r"(b[h]));
#endif
}

// Four 8x8 blocks of halves from shared memory, transposed: matrix j's rows begin at the addresses that lanes 8j..8j+7 give
// (16-byte aligned), and the lane gets rows 2t, 2t + 1 of column g of each.
NERF_FN void load_transposed_all(const unsigned short* row, u32* out) {
  const u32 at = (u32)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(at)
               : "memory");
}
#endif

NERF_FN int lane_index() { return thread_index() & 31; }
NERF_FN int warp_index() { return thread_index() >> 5; }
