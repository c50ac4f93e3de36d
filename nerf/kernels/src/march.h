// One ray through nested occupancy levels. The candidates lie on a fixed lattice in t (jittered once per ray); a candidate
// interval is emitted when its midpoint lies in an occupied cell. Skipping empty cells only saves time: it never passes a
// lattice point that could be emitted. Same operations in the same order on every backend, so the same samples to the bit.
#pragma once
#include "common.h"

static const u32 BLOCK = 4;  // cells along the side of a block

struct OccupancyBits {
  const u32* fine;    // [levels, R, R, R] bits, x fastest: level k covers the scene box [-2^k, 2^k]^3
  const unsigned char* clearance;  // [levels, R/4, R/4, R/4]: how many blocks away (largest coordinate difference) the
                      // nearest one is that holds an occupied cell or belongs to another level; 0: this one
  u32 resolution;     // R, a multiple of 32
  u32 n_levels;
};

struct MarchSettings {
  float step_size;   // smallest step, scene length
  float cone_angle;  // 0: constant steps, otherwise step = clamp(t * cone_angle, step_size, max_step)
  float max_step;
};

struct MarchState {
  float o[3], d[3], inv_d[3];
  float t0, t_far;  // constant steps: t_k = fma(k, step, t0); growing steps: t0 is the current t
  float k;          // exact in float up to 2^24 steps
  float steps_per_length;
};

NERF_FN float march_step(float t, const MarchSettings& s) {
  return s.cone_angle > 0.0f ? f_clamp(t * s.cone_angle, s.step_size, s.max_step) : s.step_size;
}

NERF_FN MarchState march_begin(const float* o, const float* d, float t_near, float t_far, float jitter,
                               const MarchSettings& s) {
  MarchState m;
  for (int a = 0; a < 3; ++a) {
    m.o[a] = o[a];
    m.d[a] = d[a];
    m.inv_d[a] = 1.0f / (f_abs(d[a]) > 1e-12f ? d[a] : (d[a] < 0.0f ? -1e-12f : 1e-12f));
  }
  m.t0 = f_fma(jitter, march_step(t_near, s), t_near);
  m.t_far = t_far;
  m.steps_per_length = 1.0f / s.step_size;
  m.k = 0.0f;
  return m;
}

NERF_FN bool bit_set(const u32* bits, u32 index) { return (bits[index >> 5] >> (index & 31u)) & 1u; }

// Advances to the next occupied interval. Returns false when the ray has left its range or the grid.
NERF_FN bool march_next(MarchState& m, const OccupancyBits& grid, const MarchSettings& s, float* t_start, float* t_end) {
  const u32 R = grid.resolution, RB = R / BLOCK;
  const bool growing = s.cone_angle > 0.0f;
  for (;;) {
    const float t = growing ? m.t0 : f_fma(m.k, s.step_size, m.t0);
    const float dt = march_step(t, s);
    const float t_mid = t + 0.5f * dt;
    if (!(t_mid < m.t_far)) return false;
    float p[3];
    for (int a = 0; a < 3; ++a) p[a] = f_fma(t_mid, m.d[a], m.o[a]);
    const float radius = f_max(f_max(f_abs(p[0]), f_abs(p[1])), f_abs(p[2]));
    u32 level = 0;
    float half_extent = 1.0f;
    while (level + 1 < grid.n_levels && radius >= half_extent) {
      ++level;
      half_extent *= 2.0f;
    }
    if (!(radius < half_extent)) {  // outside every level: in front of the box, or behind it
      for (int a = 0; a < 3; ++a)
        if (f_abs(p[a]) >= half_extent && p[a] * m.d[a] >= 0.0f) return false;  // and never to come back
      if (growing) m.t0 = t + dt; else m.k += 1.0f;
      continue;
    }
    const float to_unit = 1.0f / half_extent;  // exact: a power of two
    const float cell_size = 2.0f * half_extent / (float)R;
    float c[3];
    u32 cell[3];
    for (int a = 0; a < 3; ++a) {
      c[a] = (p[a] * to_unit * 0.5f + 0.5f) * (float)R;
      cell[a] = (u32)f_clamp(f_floor(c[a]), 0.0f, (float)(R - 1));
    }
    // The empty box around p: its cell, or all the blocks within the clearance.
    u32 grain = 1, rings = 1;
    const u32 block = ((level * RB + cell[2] / BLOCK) * RB + cell[1] / BLOCK) * RB + cell[0] / BLOCK;
    const u32 clearance = grid.clearance[block];
    if (clearance == 0) {
      if (bit_set(grid.fine, ((level * R + cell[2]) * R + cell[1]) * R + cell[0])) {
        *t_start = t;
        if (growing) {
          *t_end = t + dt;
          m.t0 = t + dt;
        } else {
          m.k += 1.0f;
          *t_end = f_fma(m.k, s.step_size, m.t0);
        }
        return true;
      }
    } else {
      grain = BLOCK;
      rings = clearance;
    }
    // Distance in t to the exit of the empty box.
    float exit = 3.4e38f;
    for (int a = 0; a < 3; ++a) {
      const float base = (float)(cell[a] / grain), ahead = (float)rings;
      const float wall = (float)grain * (m.d[a] > 0.0f ? base + ahead : base + 1.0f - ahead);
      exit = f_min(exit, f_max((wall - c[a]) * cell_size * m.inv_d[a], 0.0f));
    }
    // Lattice points more than a hundredth of a step before the exit are inside for certain; the next one is tested again.
    if (growing) {
      const float until = t_mid + exit;
      float next = t + dt, next_dt = march_step(next, s);
      while (next + 0.51f * next_dt < until && next < m.t_far) {
        next += next_dt;
        next_dt = march_step(next, s);
      }
      m.t0 = next;
    } else {
      m.k += f_max(f_floor(exit * m.steps_per_length + 0.99f), 1.0f);
    }
  }
}
