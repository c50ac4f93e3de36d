// Small matrix products for the networks: C[M,N] (+)= A B with A read through two strides, so that the same loop serves
// forward (A = X), input gradients (A = dY, B = W) and weight gradients (A = dY transposed, B = X).
// N is a multiple of 16 and M of 4: widths are padded, chunks are whole.
#pragma once
#include "cpu_simd.h"

template <int MR, int NV>
static inline void gemm_tile(int K, const float* A, int a_row, int a_k, const float* B, int b_row, float* C, int c_row,
                             bool accumulate) {
  vfloat acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = accumulate ? vload(C + m * c_row + v * LANES) : vset(0.0f);
  for (int k = 0; k < K; ++k) {
    vfloat b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) b[v] = vload(B + k * b_row + v * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const vfloat a = vset(A[m * a_row + k * a_k]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = vfma(a, b[v], acc[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vstore(C + m * c_row + v * LANES, acc[m][v]);
}

template <int MR, int NV>
static inline void gemm_tiles(int M, int N, int K, const float* A, int a_row, int a_k, const float* B, float* C,
                              bool accumulate) {
  for (int n = 0; n < N; n += NV * LANES)
    for (int m = 0; m < M; m += MR)
      gemm_tile<MR, NV>(K, A + m * a_row, a_row, a_k, B + n, N, C + m * N + n, N, accumulate);
}

static void gemm(int M, int N, int K, const float* A, int a_row, int a_k, const float* B, float* C, bool accumulate) {
#if LANES == 16
  if (N % 64 == 0) {
    if (M % 6 == 0) gemm_tiles<6, 4>(M, N, K, A, a_row, a_k, B, C, accumulate);
    else gemm_tiles<4, 4>(M, N, K, A, a_row, a_k, B, C, accumulate);
  } else if (N % 32 == 0) {
    if (M % 8 == 0) gemm_tiles<8, 2>(M, N, K, A, a_row, a_k, B, C, accumulate);
    else gemm_tiles<4, 2>(M, N, K, A, a_row, a_k, B, C, accumulate);
  } else {
    if (M % 16 == 0) gemm_tiles<16, 1>(M, N, K, A, a_row, a_k, B, C, accumulate);
    else gemm_tiles<4, 1>(M, N, K, A, a_row, a_k, B, C, accumulate);
  }
#else
  gemm_tiles<4, 2>(M, N, K, A, a_row, a_k, B, C, accumulate);
#endif
}
