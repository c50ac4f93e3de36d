// The fused render op of the CPU: march, field and composite for tiles of rays, lazily from front to back, so that what a
// surface hides is never evaluated. Kept samples (visible and not empty) are remembered for the backward pass.
#pragma once
#include <algorithm>
#include <mutex>

#include "composite.h"
#include "cpu_field.h"
#include "cpu_threads.h"
#include "march.h"
#include "space.h"

static const int WAVE = 2;  // samples a ray advances before the field is asked again

// Rays of one task: about 32 tasks a batch, whatever the number of threads, so that sums do not depend on it.
static inline int tile_rays(int n_rays) {
  const int rays = (n_rays / 32 + 63) / 64 * 64;
  return rays < 64 ? 64 : (rays > 2048 ? 2048 : rays);
}

struct RenderDesc {
  OccupancyBits grid;
  MarchSettings march;
  float stop_threshold;   // a ray ends when its transmittance falls below
  float alpha_threshold;  // samples with less alpha count as empty
  float gradient_distance;  // samples nearer than this to the camera learn less; 0: off (see near_scale in composite.h)
  int n_rays, n_threads;
  const float *rays_o, *rays_d, *viewdirs;  // [n, 3]
  const float *t_near, *t_far, *jitter;     // [n]
  float *colors, *opacities, *depths, *median_depths, *second_moments, *distortions;
};

struct Tile {
  int first_ray = 0, n_rays = 0, n_kept = 0;
  long long n_evaluated = 0;
  std::vector<int> start;                       // [n_rays + 1] first kept sample of each ray
  std::vector<int> source;                      // kept sample in ray order -> row of features and geo
  std::vector<float> x[3], unit[3];             // scene and unit position (unit padded to whole blocks), ray order
  std::vector<float> t_mid, dt, sigma, alpha, rgb;
  std::vector<float> features, geo;             // [kept, n_in], [kept, 16] in the order they were found, and room for more
  std::vector<float> grad_features;             // [level][kept][F], ray order, of the backward pass
  std::vector<float> grad_weights;

};

// Room for at least n numbers, kept for the next time: what grows by rows need not be filled first.
static inline void make_room(std::vector<float>& v, size_t n) {
  if (v.size() < n) v.resize(n + n / 2);
}

struct RenderContext {
  std::vector<Tile> tiles;
};

// Fresh pages cost more than the arithmetic done on them, so the last context is kept for the next forward pass.
static std::mutex pool_mutex;
static RenderContext* pooled = nullptr;

static RenderContext* take_context() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  RenderContext* context = pooled ? pooled : new RenderContext;
  pooled = nullptr;
  return context;
}
static void give_context(RenderContext* context) {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (pooled) delete context;
  else pooled = context;
}

struct Found {  // a kept sample before sorting
  int ray;
  float x[3], unit[3], t_mid, dt, sigma, alpha;
};

struct Scratch {  // of one thread, for one tile at a time
  MlpChunk chunk;
  std::vector<MarchStates<vfloat>> states;  // of LANES rays each
  std::vector<float> trans, x[3], unit[3], mids, dts, staged;
  std::vector<int> alive, owner, count;
  std::vector<char> done;
  std::vector<Found> found;
};

// States of rays, LANES in one, as rows of floats.
static const int STATE_FLOATS = sizeof(MarchState) / sizeof(float);
NERF_FN float* lane_of(MarchStates<vfloat>* states, int at) { return (float*)(states + at / LANES) + at % LANES; }
NERF_FN void put_lane(MarchStates<vfloat>* states, int to, const MarchState& state) {
  for (int j = 0; j < STATE_FLOATS; ++j) lane_of(states, to)[j * LANES] = ((const float*)&state)[j];
}
NERF_FN void move_lane(MarchStates<vfloat>* states, int to, int from) {
  for (int j = 0; j < STATE_FLOATS; ++j) lane_of(states, to)[j * LANES] = lane_of(states, from)[j * LANES];
}

// The next WAVE samples of each of a group of rays, from place m on; returns the place behind them. Rays side by side: one
// that has its samples waits for the others.
static int march_group(MarchStates<vfloat>& state, const RenderDesc& r, bool contracted, int n_lanes, const int* rays, char* done,
                       Scratch& out, int m) {
  vint lane, found = {};
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  vint active = lane < n_lanes;
  MarchStates<vfloat> moving = state;
  while (any_lane(active)) {
    vint hit, gone;
    vfloat t_start, t_end;
    march_look<vfloat, vuint, vint>(moving, r.grid, r.march, active, &hit, &gone, &t_start, &t_end);
    const vfloat t_mid = 0.5f * (t_start + t_end), dt = t_end - t_start;
    vfloat x[3], unit[3];
    for (int a = 0; a < 3; ++a) x[a] = f_fma(t_mid, moving.d[a], moving.o[a]);
    scene_to_unit(x, contracted, unit);
    for (u32 bits = lane_bits(hit); bits; bits &= bits - 1) {
      const int i = __builtin_ctz(bits);
      for (int a = 0; a < 3; ++a) {
        out.x[a][m] = ((const float*)&x[a])[i];
        out.unit[a][m] = ((const float*)&unit[a])[i];
      }
      out.mids[m] = ((const float*)&t_mid)[i];
      out.dts[m] = ((const float*)&dt)[i];
      out.owner[m++] = rays[i];
    }
    for (u32 bits = lane_bits(gone); bits; bits &= bits - 1) done[rays[__builtin_ctz(bits)]] = 1;
    found -= hit;  // a mask is -1
    active &= ~gone & (found < WAVE);
  }
  state = moving;
  return m;
}

// Marches and evaluates one tile; leaves its kept samples sorted by ray, then t.
static void find_samples(const FieldDesc& f, const FieldNets& nets, const RenderDesc& r, Tile& tile, bool keep_features) {
  const int n = tile.n_rays, n_in = nets.n_in, capacity = n * WAVE + GRID_BLOCK;
  Scratch& scratch = thread_room<Scratch>();
  MlpChunk& chunk = scratch.chunk;
  std::vector<MarchStates<vfloat>>& states = scratch.states;
  std::vector<float>&trans = scratch.trans, &mids = scratch.mids, &dts = scratch.dts, &staged = scratch.staged;
  std::vector<float>*xs = scratch.x, *us = scratch.unit;
  std::vector<int>&alive = scratch.alive, &owner = scratch.owner, &count = scratch.count;
  std::vector<char>& done = scratch.done;
  std::vector<Found>& found = scratch.found;
  if ((int)states.size() * LANES < n) states.resize((n + LANES - 1) / LANES);
  trans.assign(n, 1.0f);
  done.assign(n, 0);
  count.assign(n + 1, 0);
  alive.clear();
  found.clear();
  if ((int)mids.size() < capacity) {
    for (int a = 0; a < 3; ++a) {
      xs[a].resize(capacity);
      us[a].resize(capacity);
    }
    mids.resize(capacity);
    dts.resize(capacity);
    owner.resize(capacity);
  }
  if (staged.size() < (size_t)capacity * n_in) staged.resize((size_t)capacity * n_in);
  for (int i = 0; i < n; ++i) {
    const int ray = tile.first_ray + i;
    if (!(r.t_near[ray] < r.t_far[ray])) continue;
    put_lane(states.data(), (int)alive.size(),
             march_begin(r.rays_o + 3 * ray, r.rays_d + 3 * ray, r.t_near[ray], r.t_far[ray], r.jitter[ray], r.march));
    alive.push_back(i);
  }
  alignas(64) float sigmas[CHUNK], neg_depth[CHUNK];
  tile.n_evaluated = 0;

  while (!alive.empty()) {
    int m = 0;
    for (size_t g = 0; g < alive.size(); g += LANES) {
      const int n_lanes = (int)std::min(alive.size() - g, (size_t)LANES);
      m = march_group(states[g / LANES], r, f.contracted, n_lanes, &alive[g], done.data(), scratch, m);
    }
    if (m == 0) break;
    for (int a = 0; a < 3; ++a)
      for (int s = m; s < (m + GRID_BLOCK - 1) / GRID_BLOCK * GRID_BLOCK; ++s) us[a][s] = 0.0f;
    const float* unit[3] = {us[0].data(), us[1].data(), us[2].data()};
    encode_field(f, unit, m, staged.data(), capacity);
    tile.n_evaluated += m;
    for (int first = 0; first < m; first += CHUNK) {
      const int size = m - first < CHUNK ? m - first : CHUNK;
      gather_features(f, staged.data(), capacity, first, size, chunk.layer[0]);
      mlp_forward(nets.density, chunk, size);
      const float* h = chunk.layer[nets.density.n_layers];
      chunk_sigmas(h, f.density_bias, sigmas);
      for (int s = 0; s < size; ++s) neg_depth[s] = -sigmas[s] * dts[first + s];
      for (int s = size; s < CHUNK; ++s) neg_depth[s] = 0.0f;
      for (int s = 0; s < CHUNK; s += LANES) vstore(neg_depth + s, vexp(vload(neg_depth + s)));
      make_room(tile.geo, (found.size() + size) * GEO_FEATURES);
      if (keep_features) make_room(tile.features, (found.size() + size) * n_in);
      for (int s = 0; s < size; ++s) {
        const int at = first + s, i = owner[at];
        const float alpha = 1.0f - neg_depth[s];
        if (sample_is_skipped(trans[i], alpha, r.stop_threshold, r.alpha_threshold)) continue;
        trans[i] *= neg_depth[s];
        Found k = {i, {xs[0][at], xs[1][at], xs[2][at]}, {us[0][at], us[1][at], us[2][at]}, mids[at], dts[at], sigmas[s], alpha};
        const size_t to = found.size();
        if (keep_features) copy_row(tile.features.data() + to * n_in, chunk.layer[0] + s * n_in, n_in);
        copy_row(tile.geo.data() + to * GEO_FEATURES, h + s * GEO_FEATURES, GEO_FEATURES);
        found.push_back(k);
        ++count[i + 1];
      }
    }
    size_t kept = 0;
    for (size_t at = 0; at < alive.size(); ++at) {
      const int i = alive[at];
      if (done[i] || !(trans[i] >= r.stop_threshold)) continue;
      if (kept != at) move_lane(states.data(), (int)kept, (int)at);
      alive[kept++] = i;
    }
    alive.resize(kept);
  }

  for (int i = 0; i < n; ++i) count[i + 1] += count[i];
  tile.start = count;
  const int total = tile.n_kept = (int)found.size(), padded = (total + GRID_BLOCK - 1) / GRID_BLOCK * GRID_BLOCK;
  tile.source.resize(total);
  for (int a = 0; a < 3; ++a) {
    tile.x[a].resize(total);
    tile.unit[a].assign(padded, 0.0f);
  }
  tile.t_mid.resize(total);
  tile.dt.resize(total);
  tile.sigma.resize(total);
  tile.alpha.resize(total);
  tile.rgb.resize((size_t)(total + CHUNK) * 3);
  for (int k = 0; k < total; ++k) {  // stable: waves were found in order of t
    const Found& s = found[k];
    const int to = count[s.ray]++;
    tile.source[to] = k;
    for (int a = 0; a < 3; ++a) {
      tile.x[a][to] = s.x[a];
      tile.unit[a][to] = s.unit[a];
    }
    tile.t_mid[to] = s.t_mid;
    tile.dt[to] = s.dt;
    tile.sigma[to] = s.sigma;
    tile.alpha[to] = s.alpha;
  }
}

// Input of the colour network for `size` kept samples from `first`: direction's spherical harmonics, geometry features.
static inline void gather_color_input(const Tile& tile, const std::vector<int>& ray_of, const float* sh, int first, int size,
                                      float* x) {
  for (int s = 0; s < size; ++s) {
    copy_row(x + s * 32, sh + (size_t)ray_of[first + s] * SH_FEATURES, SH_FEATURES);
    copy_row(x + s * 32 + 16, tile.geo.data() + (size_t)tile.source[first + s] * GEO_FEATURES, GEO_FEATURES);
  }
  if (size < CHUNK) std::memset(x + size * 32, 0, sizeof(float) * (CHUNK - size) * 32);
}

static std::vector<int> rays_of_samples(const Tile& tile) {
  std::vector<int> ray_of(tile.n_kept);
  for (int i = 0; i < tile.n_rays; ++i)
    for (int k = tile.start[i]; k < tile.start[i + 1]; ++k) ray_of[k] = i;
  return ray_of;
}

static std::vector<float> tile_directions(const RenderDesc& r, const Tile& tile) {
  std::vector<float> sh((size_t)tile.n_rays * SH_FEATURES);
  for (int i = 0; i < tile.n_rays; ++i) {
    const float* d = r.viewdirs + 3 * (tile.first_ray + i);
    if (tile.start[i + 1] > tile.start[i]) sh4(d[0], d[1], d[2], sh.data() + (size_t)i * SH_FEATURES);
  }
  return sh;
}

static RaySums composite_ray(const Tile& tile, int i) {
  RaySums sums = {};
  float trans = 1.0f;
  for (int k = tile.start[i]; k < tile.start[i + 1]; ++k) {
    composite_sample(sums, trans * tile.alpha[k], &tile.rgb[(size_t)k * 3], tile.t_mid[k], tile.dt[k]);
    trans *= 1.0f - tile.alpha[k];
  }
  return sums;
}

static void color_and_composite(const FieldNets& nets, const RenderDesc& r, Tile& tile) {
  MlpChunk& chunk = thread_room<Scratch>().chunk;
  const std::vector<int> ray_of = rays_of_samples(tile);
  const std::vector<float> sh = tile_directions(r, tile);
  for (int first = 0; first < tile.n_kept; first += CHUNK) {
    const int size = tile.n_kept - first < CHUNK ? tile.n_kept - first : CHUNK;
    gather_color_input(tile, ray_of, sh.data(), first, size, chunk.layer[0]);
    mlp_forward(nets.color, chunk, size);
    chunk_rgbs(chunk.layer[nets.color.n_layers], tile.rgb.data() + (size_t)first * 3);
  }
  for (int i = 0; i < tile.n_rays; ++i) {
    const RaySums sums = composite_ray(tile, i);
    const int ray = tile.first_ray + i;
    for (int c = 0; c < 3; ++c) r.colors[3 * ray + c] = sums.color[c];
    r.opacities[ray] = sums.opacity;
    r.depths[ray] = sums.depth;
    r.median_depths[ray] = sums.median_depth;
    r.second_moments[ray] = sums.second_moment;
    r.distortions[ray] = sums.distortion;
  }
}

// Calls body(t, tile) for the tiles of the batch: each with its rays, in the context's memory or, without one, in the
// thread's. Adds up counts of samples evaluated and kept.
template <class Body>
static void for_tiles(const RenderDesc& r, RenderContext* context, long long* counts, const Body& body) {
  const int rays = tile_rays(r.n_rays), n_tiles = (r.n_rays + rays - 1) / rays;
  if (context) context->tiles.resize(n_tiles);
  std::vector<long long> evaluated(n_tiles), kept(n_tiles);
  parallel_for(n_tiles, r.n_threads, [&](int t) {
    Tile& tile = context ? context->tiles[t] : thread_room<Tile>();
    tile.first_ray = t * rays;
    tile.n_rays = r.n_rays - tile.first_ray < rays ? r.n_rays - tile.first_ray : rays;
    body(tile);
    evaluated[t] = tile.n_evaluated;
    kept[t] = tile.n_kept;
  });
  counts[0] = counts[1] = 0;
  for (int t = 0; t < n_tiles; ++t) {
    counts[0] += evaluated[t];
    counts[1] += kept[t];
  }
}

static RenderContext* render_forward(const FieldDesc& f, const RenderDesc& r, bool keep, long long* counts) {
  const FieldNets nets(f);
  RenderContext* context = keep ? take_context() : nullptr;
  for_tiles(r, context, counts, [&](Tile& tile) {
    find_samples(f, nets, r, tile, keep);
    color_and_composite(nets, r, tile);
  });
  return context;
}
