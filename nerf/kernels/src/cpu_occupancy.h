// The occupancy grid on the CPU: which cells are occupied, and the bits that rays march through.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu_threads.h"
#include "march.h"

// Marks the candidates whose optical depth over one step, value * step_size, exceeds `highest` or half of its mean over the
// candidates (where each counts 1 at most), whichever is smaller. Sums by blocks: the same with any number of threads.
static void threshold_cells(const float* values, const unsigned char* candidates, long long n, float step_size, float highest,
                            unsigned char* occupied, int n_threads) {
  const long long block = 1 << 16;
  const int n_blocks = (int)((n + block - 1) / block);
  std::vector<double> sums(n_blocks), counts(n_blocks);
  parallel_for(n_blocks, n_threads, [&](int b) {
    double sum = 0.0;
    int count = 0;
    for (long long i = b * block; i < std::min(n, (b + 1) * block); i += 256) {
      float few[16] = {};  // sums side by side, of numbers up to 1
      const long long last = std::min(std::min(n, (b + 1) * block), i + 256);
      for (long long k = i; k < last; k += 16)
        for (int j = 0; j < 16 && k + j < last; ++j) {
          const float optical = values[k + j] * step_size;
          few[j] += candidates[k + j] ? (optical > 1.0f ? 1.0f : optical) : 0.0f;
          count += candidates[k + j] != 0;
        }
      for (float x : few) sum += x;
    }
    sums[b] = sum;
    counts[b] = count;
  });
  double sum = 0.0, count = 0.0;
  for (int b = 0; b < n_blocks; ++b) {
    sum += sums[b];
    count += counts[b];
  }
  const double half = count > 0.0 ? 0.5 * sum / count : 0.0;
  const float limit = half < highest ? (float)half : highest;  // a NaN leaves `highest`
  parallel_for(n_blocks, n_threads, [&](int b) {
    for (long long i = b * block; i < std::min(n, (b + 1) * block); ++i)
      occupied[i] = (values[i] * step_size > limit) & (candidates[i] != 0);
  });
}

// See OccupancyBits in march.h. The clearance is a chamfer transform: two sweeps, each taking over from the neighbours behind.
static void pack_occupancy(const unsigned char* occupied, int n_levels, int resolution, u32* fine, unsigned char* clearance) {
  const int R = resolution, RB = R / (int)BLOCK, side = RB + 2;
  std::memset(fine, 0, sizeof(u32) * ((size_t)n_levels * R * R * R / 32));
  std::vector<unsigned char> distance((size_t)side * side * side);  // with a border of one block
  auto at = [side](int x, int y, int z) { return ((size_t)(z + 1) * side + y + 1) * side + x + 1; };
  for (int level = 0; level < n_levels; ++level) {
    // Past the outermost level there is nothing; past the others, and where a finer level serves, nothing is known here.
    std::memset(distance.data(), level + 1 < n_levels ? 0 : 255, distance.size());
    for (int z = 0; z < RB; ++z)
      for (int y = 0; y < RB; ++y)
        for (int x = 0; x < RB; ++x) {
          auto inside = [RB](int c) { return c >= RB / 4 && c < RB - RB / 4; };
          distance[at(x, y, z)] = level > 0 && inside(x) && inside(y) && inside(z) ? 0 : 255;
        }
    for (int z = 0; z < R; ++z)
      for (int y = 0; y < R; ++y) {
        const size_t row = (((size_t)level * R + z) * R + y) * R;
        for (int x = 0; x < R; x += 8) {  // eight cells, of 0 or 1 each
          u64 eight;
          std::memcpy(&eight, occupied + row + x, sizeof eight);
          if (eight == 0) continue;
          const u32 bits = (u32)(eight * 0x0102040810204080ull >> 56);
          fine[(row + x) >> 5] |= bits << ((row + x) & 31);
          if (bits & 15) distance[at(x / (int)BLOCK, y / (int)BLOCK, z / (int)BLOCK)] = 0;
          if (bits >> 4) distance[at(x / (int)BLOCK + 1, y / (int)BLOCK, z / (int)BLOCK)] = 0;
        }
      }
    for (int sweep = 0; sweep < 2; ++sweep)
      for (int i = 0; i < RB * RB * RB; ++i) {
        const int k = sweep == 0 ? i : RB * RB * RB - 1 - i, back = sweep == 0 ? -1 : 1;
        const int x = k % RB, y = k / RB % RB, z = k / RB / RB;
        unsigned char& here = distance[at(x, y, z)];
        if (here == 0) continue;
        int least = distance[at(x + back, y, z)];
        for (int dx = -1; dx <= 1; ++dx) {
          least = std::min<int>(least, distance[at(x + dx, y + back, z)]);
          for (int dy = -1; dy <= 1; ++dy) least = std::min<int>(least, distance[at(x + dx, y + dy, z + back)]);
        }
        here = (unsigned char)std::min<int>(here, std::min(least + 1, 255));
      }
    for (int z = 0; z < RB; ++z)
      for (int y = 0; y < RB; ++y)
        std::memcpy(clearance + (((size_t)level * RB + z) * RB + y) * RB, &distance[at(0, y, z)], RB);
  }
}

// The places of a mask, of zeros and ones, at which it is set, in order; returns their number.
static long long places_set(const unsigned char* mask, long long n, long long* places) {
  long long found = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    u64 eight;
    std::memcpy(&eight, mask + i, sizeof eight);
    for (; eight; eight &= eight - 1) places[found++] = i + __builtin_ctzll(eight) / 8;
  }
  for (; i < n; ++i)
    if (mask[i]) places[found++] = i;
  return found;
}
