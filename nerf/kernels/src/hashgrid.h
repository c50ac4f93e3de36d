// The multiresolution hash grid (Mueller et al. 2022, section 3), with tiny-cuda-nn's conventions: position * scale + 0.5,
// dense levels while they fit their table, otherwise the spatial hash of equation 4. Lane-generic: F and I are a float and
// an unsigned integer, or short vectors of them.
#pragma once
#include "common.h"

struct GridLevel {
  float scale;      // base_resolution * per_level_scale^level - 1
  u32 resolution;   // ceil(scale) + 1 vertices an axis
  u32 rows;         // rows of this level's table
  u32 offset;       // first row in the whole table
  u32 hashed;       // 0: dense index, 1: spatial hash (rows is then a power of two)
};

NERF_TABLE u32 GRID_PRIMES[4] = {1u, 2654435761u, 805459861u, 3674653429u};

// Row of one corner inside its level. `cell` is the integer corner coordinate on each axis.
template <int D, class I>
NERF_FN I grid_row(const I* cell, const GridLevel& level) {
  if (level.hashed) {
    I h = cell[0];
    for (int d = 1; d < D; ++d) h ^= cell[d] * GRID_PRIMES[d];
    return h & (level.rows - 1);
  }
  I row = cell[0];
  u32 stride = level.resolution;
  for (int d = 1; d < D; ++d, stride *= level.resolution) row += cell[d] * stride;
  return row;  // at most one corner plane beyond the level when x = 1: the caller wraps it
}
