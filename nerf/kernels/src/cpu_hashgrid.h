// Hash-grid loops of the CPU: one level at a time over many samples, so that a level's rows stay in the nearest cache.
// Blocks of samples: indices and weights by vectors, then one short vector per table row (a row of 4 features is 16 bytes).
#pragma once
#include <cmath>
#include <cstring>

#include "cpu_simd.h"
#include "hashgrid.h"

static const int GRID_BLOCK = 32;  // samples: their rows are fetched while the block before is summed, so that many are on their way

// Half-precision rows halve the cache footprint of a table; the master copy stays float.
typedef unsigned short half_bits;

NERF_FN float half_to_float(half_bits h) {
  const u32 sign = (u32)(h & 0x8000u) << 16, rest = h & 0x7fffu;
  union { u32 u; float f; } v;
  v.u = rest << 13;
  v.f *= 5.192296858534828e33f;  // 2^112: moves the exponent's bias, subnormals included
  v.u |= sign;
  return v.f;
}
NERF_FN half_bits float_to_half(float x) {
  union { float f; u32 u; } v = {x};
  const u32 sign = (v.u >> 16) & 0x8000u;
  v.u &= 0x7fffffffu;
  if (v.u >= 0x477ff000u) return (half_bits)(sign | 0x7bffu);  // saturates at 65504: a table never holds inf
  union { u32 u; float f; } magic = {0x3f000000u};              // 0.5: adding it rounds subnormals
  if (v.u < 0x38800000u) {
    v.f += magic.f;
    return (half_bits)(sign | (v.u - magic.u));
  }
  v.u += 0xc8000fffu + ((v.u >> 13) & 1u);  // rebias, round to nearest even
  return (half_bits)(sign | (v.u >> 13));
}

template <int F>
struct Row {  // F features of one table row, in registers
  float v[F];
  NERF_METHOD void load(const float* p) { std::memcpy(v, p, sizeof v); }
  NERF_METHOD void load(const half_bits* p) { for (int f = 0; f < F; ++f) v[f] = half_to_float(p[f]); }
  NERF_METHOD void zero() { for (int f = 0; f < F; ++f) v[f] = 0.0f; }
  NERF_METHOD void add(float w, const Row& r) { for (int f = 0; f < F; ++f) v[f] += w * r.v[f]; }
  NERF_METHOD float dot(const Row& r) const { float s = 0.0f; for (int f = 0; f < F; ++f) s += v[f] * r.v[f]; return s; }
  NERF_METHOD void store(float* p) const { std::memcpy(p, v, sizeof v); }
};
template <>
struct Row<4> {
  row4 v;
  NERF_METHOD void load(const float* p) { v = *(const row4_u*)p; }
  NERF_METHOD void load(const half_bits* p) {
#if defined(__F16C__)
    v = (row4)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p));
#else
    v = (row4){half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
#endif
  }
  NERF_METHOD void zero() { v = (row4){0, 0, 0, 0}; }
  NERF_METHOD void add(float w, const Row& r) { v = fma4((row4){w, w, w, w}, r.v, v); }
  NERF_METHOD float dot(const Row& r) const { const row4 p = v * r.v; return (p[0] + p[1]) + (p[2] + p[3]); }
  NERF_METHOD void store(float* p) const { *(row4_u*)p = v; }
};

template <int D>
struct CornerBlock {
  u32 row[1 << D][GRID_BLOCK];
  float weight[1 << D][GRID_BLOCK];
  float fraction[D][GRID_BLOCK];
};

// Rows and trilinear weights of GRID_BLOCK samples. `unit[d]` are arrays of coordinates (structure of arrays).
template <int D>
static inline void corners_of_block(const float* const* unit, int first, const GridLevel& level, CornerBlock<D>& out) {
  for (int s = 0; s < GRID_BLOCK; s += LANES) {
    vuint cell[2][D];
    vfloat weight[2][D];
    for (int d = 0; d < D; ++d) {
      const vfloat inside = vmin(vmax(vload(unit[d] + first + s), vset(0.0f)), vset(1.0f));  // a NaN becomes 0
      const vfloat pos = vfma(inside, vset(level.scale), vset(0.5f));
      const vint c = __builtin_convertvector(pos, vint);
      weight[1][d] = pos - __builtin_convertvector(c, vfloat);
      weight[0][d] = vset(1.0f) - weight[1][d];
      cell[0][d] = (vuint)c;
      cell[1][d] = (vuint)c + 1;
      vstore(out.fraction[d] + s, weight[1][d]);
    }
#pragma GCC unroll 16
    for (int corner = 0; corner < (1 << D); ++corner) {
      vuint at[D];
      vfloat w = weight[corner & 1][0];
      at[0] = cell[corner & 1][0];
      for (int d = 1; d < D; ++d) {
        at[d] = cell[(corner >> d) & 1][d];
        w = w * weight[(corner >> d) & 1][d];
      }
      vuint row = grid_row<D, vuint>(at, level);
      if (!level.hashed) row -= (vuint)(row >= level.rows) & level.rows;
      std::memcpy(out.row[corner] + s, &row, sizeof row);
      vstore(out.weight[corner] + s, w);
    }
  }
}

template <int D, int F, class T>
static inline void prefetch_block(const CornerBlock<D>& b, const T* table) {
  for (int corner = 0; corner < (1 << D); ++corner)
    for (int s = 0; s < GRID_BLOCK; ++s) __builtin_prefetch(table + (size_t)b.row[corner][s] * F, 0, 3);
}

// out[n][F] = interpolated features. Reads whole blocks: `unit` arrays are padded to a multiple of GRID_BLOCK.
template <int D, int F, class T>
static void encode_level(const float* const* unit, int n, const GridLevel& level, const T* table, float* out,
                         int out_stride) {
  const T* rows = table + (size_t)level.offset * F;
  const bool far = (size_t)level.rows * F * sizeof(T) > (256u << 10);  // larger than the nearest caches: fetch ahead
  CornerBlock<D> blocks[2];
  corners_of_block<D>(unit, 0, level, blocks[0]);
  for (int first = 0, turn = 0; first < n; first += GRID_BLOCK, turn ^= 1) {
    if (first + GRID_BLOCK < n) {
      corners_of_block<D>(unit, first + GRID_BLOCK, level, blocks[turn ^ 1]);
      if (far) prefetch_block<D, F, T>(blocks[turn ^ 1], rows);
    }
    const CornerBlock<D>& b = blocks[turn];
    const int count = n - first < GRID_BLOCK ? n - first : GRID_BLOCK;
    for (int s = 0; s < count; ++s) {
      Row<F> sum, r;
      sum.zero();
#pragma GCC unroll 16
      for (int corner = 0; corner < (1 << D); ++corner) {
        r.load(rows + (size_t)b.row[corner][s] * F);
        sum.add(b.weight[corner][s], r);
      }
      sum.store(out + (size_t)(first + s) * out_stride);
    }
  }
}

// grad_table += weights * grad_out. One caller per level at a time: no atomics, and the same sums for any thread count.
template <int D, int F>
static void scatter_level(const float* const* unit, int n, const GridLevel& level, const float* grad_out, int grad_stride,
                          float* grad_table) {
  float* rows = grad_table + (size_t)level.offset * F;
  const bool far = (size_t)level.rows * F * 4 > (256u << 10);
  CornerBlock<D> blocks[2];
  if (n > 0) corners_of_block<D>(unit, 0, level, blocks[0]);
  for (int first = 0, turn = 0; first < n; first += GRID_BLOCK, turn ^= 1) {
    if (first + GRID_BLOCK < n) {
      corners_of_block<D>(unit, first + GRID_BLOCK, level, blocks[turn ^ 1]);
      if (far) prefetch_block<D, F, float>(blocks[turn ^ 1], rows);
    }
    const CornerBlock<D>& b = blocks[turn];
    const int count = n - first < GRID_BLOCK ? n - first : GRID_BLOCK;
    for (int s = 0; s < count; ++s) {
      Row<F> g, r;
      g.load(grad_out + (size_t)(first + s) * grad_stride);
#pragma GCC unroll 16
      for (int corner = 0; corner < (1 << D); ++corner) {
        float* p = rows + (size_t)b.row[corner][s] * F;
        r.load(p);
        r.add(b.weight[corner][s], g);
        r.store(p);
      }
    }
  }
}

// grad_unit[d][i] += scale * sum_corners (d weight / d x_d) <row, grad_out>.
template <int D, int F, class T>
static void position_grad_level(const float* const* unit, int n, const GridLevel& level, const T* table,
                                const float* grad_out, int grad_stride, float* const* grad_unit) {
  const T* rows = table + (size_t)level.offset * F;
  CornerBlock<D> b;
  for (int first = 0; first < n; first += GRID_BLOCK) {
    corners_of_block<D>(unit, first, level, b);
    const int count = n - first < GRID_BLOCK ? n - first : GRID_BLOCK;
    for (int s = 0; s < count; ++s) {
      Row<F> g, r;
      g.load(grad_out + (size_t)(first + s) * grad_stride);
      float sums[D] = {};
      for (int corner = 0; corner < (1 << D); ++corner) {
        r.load(rows + (size_t)b.row[corner][s] * F);
        const float value = r.dot(g);
        for (int d = 0; d < D; ++d) {
          float w = (corner >> d) & 1 ? value : -value;
          for (int e = 0; e < D; ++e)
            if (e != d) w *= (corner >> e) & 1 ? b.fraction[e][s] : 1.0f - b.fraction[e][s];
          sums[d] += w;
        }
      }
      for (int d = 0; d < D; ++d) grad_unit[d][first + s] += level.scale * sums[d];
    }
  }
}
