// The fused render op of the CPU: march, field and composite for tiles of rays, lazily from front to back, so that what a
// surface hides is never evaluated. Kept samples (visible and not empty) are remembered for the backward pass.
#pragma once
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
  std::vector<float> features, geo;             // [kept, n_in], [kept, 16] in the order they were found
  std::vector<float> grad_features;             // [level][kept][F], ray order, of the backward pass
  std::vector<float> grad_weights;

  void clear() {  // keeps the memory
    n_kept = 0;
    n_evaluated = 0;
    features.clear();
    geo.clear();
  }
};

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
  std::vector<MarchState> state;
  std::vector<float> trans, x[3], unit[3], mids, dts, staged;
  std::vector<int> alive, owner, count;
  std::vector<char> done;
  std::vector<Found> found;
};

// Marches and evaluates one tile; leaves its kept samples sorted by ray, then t.
static void find_samples(const FieldDesc& f, const FieldNets& nets, const RenderDesc& r, Tile& tile, bool keep_features) {
  const int n = tile.n_rays, n_in = nets.n_in, capacity = n * WAVE + GRID_BLOCK;
  static thread_local Scratch scratch;
  std::vector<MarchState>& state = scratch.state;
  std::vector<float>&trans = scratch.trans, &mids = scratch.mids, &dts = scratch.dts, &staged = scratch.staged;
  std::vector<float>*xs = scratch.x, *us = scratch.unit;
  std::vector<int>&alive = scratch.alive, &owner = scratch.owner, &count = scratch.count;
  std::vector<char>& done = scratch.done;
  std::vector<Found>& found = scratch.found;
  if ((int)state.size() < n) state.resize(n);
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
    state[i] = march_begin(r.rays_o + 3 * ray, r.rays_d + 3 * ray, r.t_near[ray], r.t_far[ray], r.jitter[ray], r.march);
    alive.push_back(i);
  }
  static thread_local MlpChunk chunk;
  alignas(64) float sigmas[CHUNK], neg_depth[CHUNK];

  while (!alive.empty()) {
    int m = 0;
    for (int i : alive) {
      const int limit = m + WAVE;
      float t_start, t_end;
      while (m < limit) {
        if (!march_next(state[i], r.grid, r.march, &t_start, &t_end)) {
          done[i] = 1;
          break;
        }
        const float t_mid = 0.5f * (t_start + t_end);
        float x[3], u[3];
        for (int a = 0; a < 3; ++a) x[a] = f_fma(t_mid, state[i].d[a], state[i].o[a]);
        scene_to_unit(x, f.contracted, u);
        for (int a = 0; a < 3; ++a) {
          xs[a][m] = x[a];
          us[a][m] = u[a];
        }
        mids[m] = t_mid;
        dts[m] = t_end - t_start;
        owner[m++] = i;
      }
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
      mlp_forward(nets.density, chunk);
      const float* h = chunk.layer[nets.density.n_layers];
      chunk_sigmas(h, f.density_bias, sigmas);
      for (int s = 0; s < size; ++s) neg_depth[s] = -sigmas[s] * dts[first + s];
      for (int s = size; s < CHUNK; ++s) neg_depth[s] = 0.0f;
      for (int s = 0; s < CHUNK; s += LANES) vstore(neg_depth + s, vexp(vload(neg_depth + s)));
      for (int s = 0; s < size; ++s) {
        const int at = first + s, i = owner[at];
        const float alpha = 1.0f - neg_depth[s];
        if (sample_is_skipped(trans[i], alpha, r.stop_threshold, r.alpha_threshold)) continue;
        trans[i] *= neg_depth[s];
        Found k = {i, {xs[0][at], xs[1][at], xs[2][at]}, {us[0][at], us[1][at], us[2][at]}, mids[at], dts[at], sigmas[s], alpha};
        found.push_back(k);
        ++count[i + 1];
        if (keep_features) tile.features.insert(tile.features.end(), chunk.layer[0] + s * n_in, chunk.layer[0] + (s + 1) * n_in);
        tile.geo.insert(tile.geo.end(), h + s * GEO_FEATURES, h + (s + 1) * GEO_FEATURES);
      }
    }
    size_t kept = 0;
    for (int i : alive)
      if (!done[i] && trans[i] >= r.stop_threshold) alive[kept++] = i;
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
    std::memcpy(x + s * 32, sh + (size_t)ray_of[first + s] * SH_FEATURES, sizeof(float) * SH_FEATURES);
    std::memcpy(x + s * 32 + 16, tile.geo.data() + (size_t)tile.source[first + s] * GEO_FEATURES, sizeof(float) * GEO_FEATURES);
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

static void color_and_composite(const FieldNets& nets, const RenderDesc& r, Tile& tile) {
  static thread_local MlpChunk chunk;
  const std::vector<int> ray_of = rays_of_samples(tile);
  const std::vector<float> sh = tile_directions(r, tile);
  for (int first = 0; first < tile.n_kept; first += CHUNK) {
    const int size = tile.n_kept - first < CHUNK ? tile.n_kept - first : CHUNK;
    gather_color_input(tile, ray_of, sh.data(), first, size, chunk.layer[0]);
    mlp_forward(nets.color, chunk);
    chunk_rgbs(chunk.layer[nets.color.n_layers], tile.rgb.data() + (size_t)first * 3);
  }
  for (int i = 0; i < tile.n_rays; ++i) {
    RaySums sums = {};
    float trans = 1.0f;
    for (int k = tile.start[i]; k < tile.start[i + 1]; ++k) {
      composite_sample(sums, trans * tile.alpha[k], &tile.rgb[(size_t)k * 3], tile.t_mid[k], tile.dt[k]);
      trans *= 1.0f - tile.alpha[k];
    }
    const int ray = tile.first_ray + i;
    for (int c = 0; c < 3; ++c) r.colors[3 * ray + c] = sums.color[c];
    r.opacities[ray] = sums.opacity;
    r.depths[ray] = sums.depth;
    r.median_depths[ray] = sums.median_depth;
    r.second_moments[ray] = sums.second_moment;
    r.distortions[ray] = sums.distortion;
  }
}

static RenderContext* render_forward(const FieldDesc& f, const RenderDesc& r, bool keep, long long* counts) {
  const FieldNets nets(f);
  RenderContext* context = keep ? take_context() : nullptr;
  const int rays = tile_rays(r.n_rays), n_tiles = (r.n_rays + rays - 1) / rays;
  if (keep) context->tiles.resize(n_tiles);
  std::vector<long long> evaluated(n_tiles), kept(n_tiles);
  parallel_for(n_tiles, r.n_threads, [&](int t) {
    static thread_local Tile passing;  // without a backward pass a tile is forgotten at once
    Tile& tile = keep ? context->tiles[t] : passing;
    tile.clear();
    tile.first_ray = t * rays;
    tile.n_rays = r.n_rays - tile.first_ray < rays ? r.n_rays - tile.first_ray : rays;
    find_samples(f, nets, r, tile, keep);
    color_and_composite(nets, r, tile);
    evaluated[t] = tile.n_evaluated;
    kept[t] = tile.n_kept;
  });
  counts[0] = counts[1] = 0;
  for (int t = 0; t < n_tiles; ++t) {
    counts[0] += evaluated[t];
    counts[1] += kept[t];
  }
  return context;
}

struct RenderGrads {
  const float *colors, *opacities, *depths, *second_moments, *distortions;  // dL/d(per-ray output); null: zero
  float* table;                          // [rows, F], added to
  float* density_weights[MAX_LAYERS];    // [out, in], written
  float* color_weights[MAX_LAYERS];
  float *rays_o, *rays_d, *viewdirs;     // [n, 3], written; null: not wanted
};

// Per-ray gradients -> dL/dsigma and dL/drgb of each kept sample of the tile.
static void composite_backward(const RenderGrads& g, float gradient_distance, const Tile& tile, float* grad_sigmas,
                               float* grad_rgbs) {
  std::vector<float> weights, trans_after, grads_w;
  for (int i = 0; i < tile.n_rays; ++i) {
    const int ray = tile.first_ray + i, begin = tile.start[i], n = tile.start[i + 1] - begin;
    if (n == 0) continue;
    RayGrads rg = {};
    if (g.colors) for (int c = 0; c < 3; ++c) rg.color[c] = g.colors[3 * ray + c];
    if (g.opacities) rg.opacity = g.opacities[ray];
    if (g.depths) rg.depth = g.depths[ray];
    if (g.second_moments) rg.second_moment = g.second_moments[ray];
    if (g.distortions) rg.distortion = g.distortions[ray];
    weights.resize(n);
    trans_after.resize(n);
    grads_w.resize(n);
    float trans = 1.0f, all_w = 0.0f, all_wm = 0.0f;
    for (int k = 0; k < n; ++k) {
      weights[k] = trans * tile.alpha[begin + k];
      trans_after[k] = trans *= 1.0f - tile.alpha[begin + k];
      all_w += weights[k];
      all_wm += weights[k] * tile.t_mid[begin + k];
    }
    float before_w = 0.0f, before_wm = 0.0f;
    for (int k = 0; k < n; ++k) {
      const int s = begin + k;
      const float* rgb = &tile.rgb[(size_t)s * 3];
      grads_w[k] = grad_weight(rg, rgb, weights[k], tile.t_mid[s], tile.dt[s], before_w, before_wm, all_w, all_wm);
      const float scale = near_scale(tile.t_mid[s], gradient_distance);
      for (int c = 0; c < 3; ++c) grad_rgbs[(size_t)s * 3 + c] = scale * grad_rgb(rg, weights[k], rgb[c], c);
      before_w += weights[k];
      before_wm += weights[k] * tile.t_mid[s];
    }
    float suffix = 0.0f;
    for (int k = n - 1; k >= 0; --k) {
      grad_sigmas[begin + k] = near_scale(tile.t_mid[begin + k], gradient_distance) *
                               grad_sigma(tile.dt[begin + k], trans_after[k], grads_w[k], suffix);
      suffix += weights[k] * grads_w[k];
    }
  }
}

// dL/d(ray) of one tile from dL/d(feature): through the hash grid's positions, the contraction, and the direction's SH.
static void ray_gradients(const FieldDesc& f, const RenderDesc& r, const RenderGrads& g, const Tile& tile,
                          const std::vector<int>& ray_of, const float* grad_features, const float* grad_sh) {
  const int n = tile.n_kept, padded = (int)tile.unit[0].size();
  std::vector<float> gu[3];
  for (auto& v : gu) v.assign(padded, 0.0f);
  float* grad_unit[3] = {gu[0].data(), gu[1].data(), gu[2].data()};
  const float* unit[3] = {tile.unit[0].data(), tile.unit[1].data(), tile.unit[2].data()};
  for (int l = 0; l < f.n_levels; ++l) {
    const float* gf = grad_features + (size_t)l * n * f.n_features;
    if (f.n_features == 4) position_grad_level<3, 4, float>(unit, n, f.levels[l], f.table, gf, 4, grad_unit);
    else position_grad_level<3, 2, float>(unit, n, f.levels[l], f.table, gf, 2, grad_unit);
  }
  for (int k = 0; k < n; ++k) {
    const int ray = tile.first_ray + ray_of[k];
    const float x[3] = {tile.x[0][k], tile.x[1][k], tile.x[2][k]}, u[3] = {gu[0][k], gu[1][k], gu[2][k]};
    float gx[3];
    scene_to_unit_backward(x, f.contracted, u, gx);
    for (int a = 0; a < 3; ++a) {
      g.rays_o[3 * ray + a] += gx[a];
      g.rays_d[3 * ray + a] += tile.t_mid[k] * gx[a];
    }
  }
  for (int i = 0; i < tile.n_rays; ++i) {
    const int ray = tile.first_ray + i;
    const float* d = r.viewdirs + 3 * ray;
    sh4_backward(d[0], d[1], d[2], grad_sh + (size_t)i * SH_FEATURES, g.viewdirs + 3 * ray);
  }
}

static void render_backward(RenderContext& context, const FieldDesc& f, const RenderDesc& r, const RenderGrads& g) {
  const FieldNets nets(f);
  const int n_tiles = (int)context.tiles.size(), n_in = nets.n_in, F = f.n_features;
  const size_t density_size = nets.density.grad_size(), color_size = nets.color.grad_size();
  if (g.rays_o) {
    std::memset(g.rays_o, 0, sizeof(float) * 3 * r.n_rays);
    std::memset(g.rays_d, 0, sizeof(float) * 3 * r.n_rays);
    std::memset(g.viewdirs, 0, sizeof(float) * 3 * r.n_rays);
  }
  parallel_for(n_tiles, r.n_threads, [&](int t) {
    Tile& tile = context.tiles[t];
    const int n = tile.n_kept;
    tile.grad_weights.assign(density_size + color_size, 0.0f);
    tile.grad_features.resize((size_t)n * n_in);
    std::vector<float> grad_sigmas(n), grad_rgbs((size_t)n * 3), grad_sh;
    if (g.rays_o) grad_sh.assign((size_t)tile.n_rays * SH_FEATURES, 0.0f);
    composite_backward(g, r.gradient_distance, tile, grad_sigmas.data(), grad_rgbs.data());
    const std::vector<int> ray_of = rays_of_samples(tile);
    const std::vector<float> sh = tile_directions(r, tile);
    static thread_local MlpChunk density, color;
    alignas(64) static thread_local float grad[CHUNK * MAX_WIDTH], scratch[CHUNK * MAX_WIDTH], grad_geo[CHUNK * GEO_FEATURES];
    for (int first = 0; first < n; first += CHUNK) {
      const int size = n - first < CHUNK ? n - first : CHUNK;
      // Recomputed rather than stored: hidden activations would be the largest memory of a training step.
      gather_color_input(tile, ray_of, sh.data(), first, size, color.layer[0]);
      mlp_forward(nets.color, color);
      std::memset(grad, 0, sizeof(float) * CHUNK * 16);
      for (int s = 0; s < size; ++s)
        for (int c = 0; c < 3; ++c) {
          const float rgb = tile.rgb[(size_t)(first + s) * 3 + c];
          grad[s * 16 + c] = grad_rgbs[(size_t)(first + s) * 3 + c] * sigmoid_slope(rgb);
        }
      mlp_backward(nets.color, color, grad, scratch, tile.grad_weights.data() + density_size);
      for (int s = 0; s < CHUNK; ++s) std::memcpy(grad_geo + s * 16, grad + s * 32 + 16, sizeof(float) * 16);
      if (g.rays_o)
        for (int s = 0; s < size; ++s)
          for (int j = 0; j < SH_FEATURES; ++j) grad_sh[(size_t)ray_of[first + s] * SH_FEATURES + j] += grad[s * 32 + j];
      for (int s = 0; s < size; ++s)
        std::memcpy(density.layer[0] + s * n_in, tile.features.data() + (size_t)tile.source[first + s] * n_in, sizeof(float) * n_in);
      std::memset(density.layer[0] + size * n_in, 0, sizeof(float) * (CHUNK - size) * n_in);
      mlp_forward(nets.density, density, nets.density.n_layers - 1);  // the geometry outputs were kept
      for (int s = 0; s < size; ++s) {  // d sigma / d logit = sigma, also where the logit is held at its maximum
        grad_geo[s * 16] += grad_sigmas[first + s] * tile.sigma[first + s];
      }
      for (int s = size; s < CHUNK; ++s) std::memset(grad_geo + s * 16, 0, sizeof(float) * 16);
      std::memcpy(grad, grad_geo, sizeof grad_geo);
      mlp_backward(nets.density, density, grad, scratch, tile.grad_weights.data());
      for (int l = 0; l < f.n_levels; ++l) {
        float* to = tile.grad_features.data() + ((size_t)l * n + first) * F;
        for (int s = 0; s < size; ++s) std::memcpy(to + s * F, grad + s * n_in + l * F, sizeof(float) * F);
      }
    }
    if (g.rays_o) ray_gradients(f, r, g, tile, ray_of, tile.grad_features.data(), grad_sh.data());
  });
  // A level belongs to one thread and takes the tiles in order: no atomics, one result.
  parallel_for(f.n_levels, r.n_threads, [&](int task) {
    const int l = f.n_levels - 1 - task;  // the large levels first
    for (int t = 0; t < n_tiles; ++t) {
      const Tile& tile = context.tiles[t];
      if (tile.n_kept == 0) continue;
      const float* unit[3] = {tile.unit[0].data(), tile.unit[1].data(), tile.unit[2].data()};
      const float* gf = tile.grad_features.data() + (size_t)l * tile.n_kept * F;
      if (F == 4) scatter_level<3, 4>(unit, tile.n_kept, f.levels[l], gf, 4, g.table);
      else scatter_level<3, 2>(unit, tile.n_kept, f.levels[l], gf, 2, g.table);
    }
  });
  std::vector<double> sums(density_size + color_size, 0.0);
  for (int t = 0; t < n_tiles; ++t)
    for (size_t i = 0; i < sums.size(); ++i) sums[i] += context.tiles[t].grad_weights[i];
  auto write = [](const Mlp& net, const double* from, float* const* to) {
    for (int l = 0; l < net.n_layers; ++l) {
      const int real_out = l + 1 == net.n_layers ? net.outputs : net.dims[l + 1];
      for (size_t i = 0; i < (size_t)real_out * net.dims[l]; ++i) to[l][i] = (float)from[net.grad_offset(l) + i];
    }
  };
  write(nets.density, sums.data(), g.density_weights);
  write(nets.color, sums.data() + density_size, g.color_weights);
}
