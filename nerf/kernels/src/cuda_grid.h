// The hash grid on the GPU: one thread looks up all corners of one position in one level (hashgrid.h has the equation).
#pragma once
#include "cuda_device.h"
#include "hashgrid.h"

template <int D>
struct Corners {
  u32 row[1 << D];        // in the whole table
  float weight[1 << D];   // product over the axes
  float fraction[D];      // place within the cell
};

template <int D>
NERF_FN void find_corners(const float* unit, const GridLevel& level, Corners<D>& out) {
  u32 cell[D];
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const float inside = f_clamp(unit[d], 0.0f, 1.0f);  // a NaN becomes 0
    const float pos = f_fma(inside, level.scale, 0.5f);
    cell[d] = (u32)pos;
    out.fraction[d] = pos - (float)cell[d];
  }
#pragma unroll
  for (int corner = 0; corner < (1 << D); ++corner) {
    u32 at[D];
    float weight = 1.0f;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      const bool upper = (corner >> d) & 1;
      at[d] = cell[d] + upper;
      weight *= upper ? out.fraction[d] : 1.0f - out.fraction[d];
    }
    u32 row = grid_row<D, u32>(at, level);
    if (!level.hashed && row >= level.rows) row -= level.rows;
    out.row[corner] = level.offset + row;
    out.weight[corner] = weight;
  }
}

// d weight / d fraction[axis] of one corner.
template <int D>
NERF_FN float corner_slope(const Corners<D>& c, int corner, int axis) {
  float slope = (corner >> axis) & 1 ? 1.0f : -1.0f;
#pragma unroll
  for (int e = 0; e < D; ++e)
    if (e != axis) slope *= (corner >> e) & 1 ? c.fraction[e] : 1.0f - c.fraction[e];
  return slope;
}

// One row of the table as floats, by the widest loads there are for it (rows are aligned to their size).
template <int F>
NERF_FN void load_row(const float* table, u32 row, float* out) {
  const float* p = table + (size_t)row * F;
  if (F % 4 == 0) {
#pragma unroll
    for (int f = 0; f < F; f += 4) {
      const float4 v = *(const float4*)(p + f);
      out[f] = v.x, out[f + 1] = v.y, out[f + 2] = v.z, out[f + 3] = v.w;
    }
  } else if (F == 2) {
    const float2 v = *(const float2*)p;
    out[0] = v.x, out[1] = v.y;
  } else {
    out[0] = p[0];
  }
}
template <int F>
NERF_FN void load_row(const unsigned short* table, u32 row, float* out) {
  const unsigned short* p = table + (size_t)row * F;
  if (F == 4) {
    const uint2 v = *(const uint2*)p;
    halves_to(v.x, out, out + 1);
    halves_to(v.y, out + 2, out + 3);
  } else {
    halves_to(*(const u32*)p, out, out + 1);
  }
}

template <int F>
NERF_FN void store_row(float* p, const float* x) {
  if (F % 4 == 0) {
#pragma unroll
    for (int f = 0; f < F; f += 4) *(float4*)(p + f) = make_float4(x[f], x[f + 1], x[f + 2], x[f + 3]);
  } else if (F == 2) {
    *(float2*)p = make_float2(x[0], x[1]);
  } else {
    p[0] = x[0];
  }
}

template <int D, int F, class T>
NERF_FN void look_up(const float* unit, const GridLevel& level, const T* table, float* out) {
  Corners<D> c;
  find_corners<D>(unit, level, c);
#pragma unroll
  for (int f = 0; f < F; ++f) out[f] = 0.0f;
#pragma unroll
  for (int corner = 0; corner < (1 << D); ++corner) {
    float row[F];
    load_row<F>(table, c.row[corner], row);
#pragma unroll
    for (int f = 0; f < F; ++f) out[f] = f_fma(c.weight[corner], row[f], out[f]);
  }
}
