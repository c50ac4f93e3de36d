// Small matrix products for the networks: C[M,N] (+)= A B with A read through two strides, so that the same loop serves
// forward (A = X), input gradients (A = dY, B = W) and weight gradients (A = dY transposed, B = X).
// N is a multiple of 16, M of 4 and K of 2: widths are padded, chunks are whole.
#pragma once
#include "cpu_simd.h"

// What a product reads: single numbers, or pairs of neighbours along K in bfloat16, which some processors multiply and
// add in one instruction. Sums are float32 in both.
struct Single {
  typedef float type;
  NERF_METHOD static vfloat broadcast(float a) { return vset(a); }
  NERF_METHOD static vfloat load(const float* p) { return vload(p); }
  NERF_METHOD static vfloat mad(vfloat a, vfloat b, vfloat c) { return vfma(a, b, c); }
};

#if defined(__AVX512F__)
// By their names in assembly, so that this library still runs where the processor lacks them: see has_bf16.
struct Pair {
  typedef u32 type;
  NERF_METHOD static __m512i broadcast(u32 a) { return _mm512_set1_epi32((int)a); }
  NERF_METHOD static __m512i load(const u32* p) { return _mm512_loadu_si512(p); }
  NERF_METHOD static vfloat mad(__m512i a, __m512i b, vfloat c) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
};
static bool has_bf16() {
  u32 a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#else
typedef Single Pair;
static bool has_bf16() { return false; }
#endif

template <class E, int MR, int NV>
static inline void gemm_tile(int K, const typename E::type* A, int a_row, int a_k, const typename E::type* B, int b_row,
                             float* C, int c_row, bool accumulate, bool relu = false) {
  vfloat acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = accumulate ? vload(C + m * c_row + v * LANES) : vset(0.0f);
  for (int k = 0; k < K; ++k) {
    decltype(E::load(B)) b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) b[v] = E::load(B + k * b_row + v * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const auto a = E::broadcast(A[m * a_row + k * a_k]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = E::mad(a, b[v], acc[m][v]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vstore(C + m * c_row + v * LANES, relu ? vmax(vset(0.0f), acc[m][v]) : acc[m][v]);
}

template <class E, int MR, int NV>
static inline void gemm_tiles(int M, int N, int K, const typename E::type* A, int a_row, int a_k,
                              const typename E::type* B, int b_row, float* C, bool accumulate, bool relu) {
  for (int n = 0; n < N; n += NV * LANES)
    for (int m = 0; m < M; m += MR)
      gemm_tile<E, MR, NV>(K, A + m * a_row, a_row, a_k, B + n, b_row, C + m * N + n, N, accumulate, relu);
}

// K counts elements of A and B: numbers, or pairs of them. B's rows are b_row apart (0: N); relu: of the sums.
template <class E>
static void gemm(int M, int N, int K, const typename E::type* A, int a_row, int a_k, const typename E::type* B, float* C,
                 bool accumulate, bool relu = false, int b_row = 0) {
  if (b_row == 0) b_row = N;
#if LANES == 16
  if (N % 64 == 0) {
    if (M % 6 == 0) gemm_tiles<E, 6, 4>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
    else gemm_tiles<E, 4, 4>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
  } else if (N % 32 == 0) {
    if (M % 8 == 0) gemm_tiles<E, 8, 2>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
    else gemm_tiles<E, 4, 2>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
  } else {
    if (M % 16 == 0) gemm_tiles<E, 16, 1>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
    else gemm_tiles<E, 4, 1>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
  }
#else
  gemm_tiles<E, 4, 2>(M, N, K, A, a_row, a_k, B, b_row, C, accumulate, relu);
#endif
}

// ---- numbers to pairs; with single numbers there is nothing to do, and `room` stays as it was -----------------------------

template <class E>
struct Packed;

template <>
struct Packed<Single> {
  static const int PER_K = 1;
  static const float* along_rows(const float* x, int, u32*) { return x; }
  static const float* along_columns(const float* x, int, int, u32*) { return x; }
};

#if defined(__AVX512F__)
template <>
struct Packed<Pair> {
  static const int PER_K = 2;
  // x [n], n a multiple of 32, read as A with K along its rows.
  static const u32* along_rows(const float* x, int n, u32* room) {
    for (int i = 0; i < n; i += 32) {
      const vfloat low = vload(x + i), high = vload(x + i + 16);
      vfloat both;
      __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
      _mm512_storeu_si512(room + i / 2, (__m512i)both);
    }
    return room;
  }
  // x [rows, columns], both even, columns a multiple of 16: room [rows / 2, columns] holds (x[2k][c], x[2k + 1][c]).
  static const u32* along_columns(const float* x, int rows, int columns, u32* room) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                         18, 2, 17, 1, 16, 0);
    for (int k = 0; k < rows; k += 2)
      for (int c = 0; c < columns; c += 16) {
        const vfloat low = vload(x + k * columns + c), high = vload(x + (k + 1) * columns + c);
        vfloat both;
        __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
        _mm512_storeu_si512(room + k / 2 * columns + c, _mm512_permutexvar_epi16(zip, (__m512i)both));
      }
    return room;
  }
};
#endif
