// One ray through nested occupancy levels. The candidates lie on a fixed lattice in t (jittered once per ray); a candidate
// interval is emitted when its midpoint lies in an occupied cell. Skipping empty cells only saves time: it never passes a
// lattice point that could be emitted. Same operations in the same order on every backend, so the same samples to the bit.
// Lane-generic: F, U and B are a float, an unsigned integer and a bool, or short vectors and masks of them.
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

template <class F>
struct MarchStates {
  F o[3], d[3], inv_d[3];
  F t0, t_far;  // constant steps: t_k = fma(k, step, t0); growing steps: t0 is the current t
  F k;          // exact in float up to 2^24 steps
  F steps_per_length;
};
typedef MarchStates<float> MarchState;

template <class F>
NERF_FN F march_step(F t, const MarchSettings& s) {
  return s.cone_angle > 0.0f ? f_min(f_max(t * s.cone_angle, splat(s.step_size, t)), splat(s.max_step, t)) : splat(s.step_size, t);
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

// Looks at the next candidate of the active rays and passes it: `hit` where its interval [t_start, t_end] is occupied, `gone`
// where the ray has left its range or the grid.
template <class F, class U, class B>
NERF_FN void march_look(MarchStates<F>& m, const OccupancyBits& grid, const MarchSettings& s, B active, B* hit, B* gone,
                        F* t_start, F* t_end) {
  const u32 R = grid.resolution, RB = R / BLOCK;
  const bool growing = s.cone_angle > 0.0f;
  const F one = splat(1.0f, m.k), none = one - one;
  const F t = growing ? m.t0 : f_fma(m.k, splat(s.step_size, one), m.t0);
  const F dt = march_step(t, s);
  const F t_mid = t + 0.5f * dt;
  const F next_k = m.k + 1.0f;
  *t_start = t;
  *t_end = growing ? t + dt : f_fma(next_k, splat(s.step_size, one), m.t0);
  *gone = active & b_not(t_mid < m.t_far);
  *hit = active & b_not(active);
  F p[3];
  for (int a = 0; a < 3; ++a) p[a] = f_fma(t_mid, m.d[a], m.o[a]);
  const F radius = f_max(f_max(f_abs(p[0]), f_abs(p[1])), f_abs(p[2]));
  U level = to_unsigned(none);
  F half_extent = one, to_unit = one;  // powers of two
  for (u32 i = 1; i < grid.n_levels; ++i) {
    const B beyond = radius >= half_extent;
    if (!any_lane(beyond)) break;
    level = select(beyond, level + 1, level);
    half_extent = select(beyond, half_extent * 2.0f, half_extent);
    to_unit = select(beyond, to_unit * 0.5f, to_unit);
  }
  const B inside = radius < half_extent;
  const B outside = active & b_not(inside | *gone);  // every level: in front of the box, or behind it
  if (any_lane(outside))
    for (int a = 0; a < 3; ++a)  // and never to come back
      *gone = *gone | (outside & (f_abs(p[a]) >= half_extent) & (p[a] * m.d[a] >= none));
  const B looking = active & inside & b_not(*gone);
  F advance = one;
  F until = t;  // growing steps: lattice points before it are passed
  if (any_lane(looking)) {
    const F cell_size = half_extent * (2.0f / (float)R);
    F c[3];
    U cell[3];
    for (int a = 0; a < 3; ++a) {
      c[a] = (p[a] * to_unit * 0.5f + 0.5f) * (float)R;
      cell[a] = to_unsigned(f_min(f_max(c[a], none), splat((float)(R - 1), one)));
    }
    // The empty box around p: its cell, or all the blocks within the clearance.
    const U block = ((level * RB + cell[2] / BLOCK) * RB + cell[1] / BLOCK) * RB + cell[0] / BLOCK;
    const U clearance = byte_at(grid.clearance, block);
    const B in_block = clearance == to_unsigned(none), near = looking & in_block;
    if (any_lane(near)) *hit = near & bit_set(grid.fine, ((level * R + cell[2]) * R + cell[1]) * R + cell[0], near);
    const B passing = looking & b_not(*hit);
    if (any_lane(passing)) {
      const F grain = select(in_block, one, one * (float)BLOCK), rings = select(in_block, one, to_float(clearance));
      // Distance in t to the exit of the empty box.
      F exit = splat(3.4e38f, one);
      for (int a = 0; a < 3; ++a) {
        const F base = to_float(select(in_block, cell[a], cell[a] / BLOCK));
        const F wall = grain * select(m.d[a] > none, base + rings, base + 1.0f - rings);
        exit = f_min(exit, f_max((wall - c[a]) * cell_size * m.inv_d[a], none));
      }
      // Lattice points more than a hundredth of a step before the exit are inside for certain; the next is looked at.
      if (growing) until = select(passing, t_mid + exit, t);
      else advance = select(passing, f_max(f_floor(exit * m.steps_per_length + 0.99f), one), one);
    }
  }
  if (growing) {
    F next = t + dt, next_dt = march_step(next, s);
    for (;;) {
      const B more = (next + 0.51f * next_dt < until) & (next < m.t_far) & active;
      if (!any_lane(more)) break;
      next = select(more, next + next_dt, next);
      next_dt = march_step(next, s);
    }
    m.t0 = select(active, next, m.t0);
  } else {
    m.k = select(active, m.k + advance, m.k);
  }
}

// Advances to the next occupied interval. Returns false when the ray has left its range or the grid.
NERF_FN bool march_next(MarchState& m, const OccupancyBits& grid, const MarchSettings& s, float* t_start, float* t_end) {
  for (;;) {
    bool hit, gone;
    march_look<float, u32, bool>(m, grid, s, true, &hit, &gone, t_start, t_end);
    if (gone || hit) return !gone;
  }
}
