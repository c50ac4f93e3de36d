// The backward pass of the fused render op, and a training step's forward and backward pass in one, tile by tile.
#pragma once
#include "cpu_adam.h"
#include "cpu_render.h"
#include "photo.h"

struct RenderGrads {
  const float *colors, *opacities, *depths, *second_moments, *distortions;  // dL/d(per-ray output); null: zero
  float* table;                          // [rows, F], added to
  float* density_weights[MAX_LAYERS];    // [out, in], written
  float* color_weights[MAX_LAYERS];
  float *rays_o, *rays_d, *viewdirs;     // [n, 3], written; null: not wanted
};

static const int RING = 3;  // chunks whose activations in the colour network are kept

struct BackwardRoom {  // of one thread, for one tile at a time
  MlpChunk density, color[RING], again;
  alignas(64) float grad[CHUNK * MAX_WIDTH], scratch[CHUNK * MAX_WIDTH];
  std::vector<float> grad_sigmas, grad_rgbs;            // [kept], [kept, 3]
  std::vector<float> weights, trans_after, grads_w;     // of one ray's samples
};

// The gradients of one ray's outputs -> dL/dsigma and dL/drgb of each of its kept samples.
static void composite_ray_backward(const RayGrads& rg, float gradient_distance, const Tile& tile, int i, BackwardRoom& room) {
  const int begin = tile.start[i], n = tile.start[i + 1] - begin;
  if (n == 0) return;
  std::vector<float>&weights = room.weights, &trans_after = room.trans_after, &grads_w = room.grads_w;
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
    for (int c = 0; c < 3; ++c) room.grad_rgbs[(size_t)s * 3 + c] = scale * grad_rgb(rg, weights[k], rgb[c], c);
    before_w += weights[k];
    before_wm += weights[k] * tile.t_mid[s];
  }
  float suffix = 0.0f;
  for (int k = n - 1; k >= 0; --k) {
    room.grad_sigmas[begin + k] = near_scale(tile.t_mid[begin + k], gradient_distance) *
                                  grad_sigma(tile.dt[begin + k], trans_after[k], grads_w[k], suffix);
    suffix += weights[k] * grads_w[k];
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

// What the passes of one tile share.
struct TileBackward {
  const FieldDesc& f;
  const FieldNets& nets;
  const Tile& tile;
  const std::vector<int> ray_of;
  const std::vector<float> sh;
  BackwardRoom& room;
  std::vector<float>&grad_features, &grad_weights;
  float* grad_sh;  // [rays of the tile, 16] added to; null: not wanted

  TileBackward(const FieldDesc& f, const FieldNets& nets, const RenderDesc& r, Tile& tile, float* grad_sh)
      : f(f), nets(nets), tile(tile), ray_of(rays_of_samples(tile)), sh(tile_directions(r, tile)),
        room(thread_room<BackwardRoom>()), grad_features(tile.grad_features), grad_weights(tile.grad_weights), grad_sh(grad_sh) {
    grad_weights.assign(nets.density.grad_size() + nets.color.grad_size(), 0.0f);
    make_room(grad_features, (size_t)tile.n_kept * nets.n_in);
    make_room(room.grad_sigmas, tile.n_kept);
    make_room(room.grad_rgbs, (size_t)tile.n_kept * 3);
  }
  int size_of(int first) const { return tile.n_kept - first < CHUNK ? tile.n_kept - first : CHUNK; }

  void forward_color(int first, MlpChunk& color) const {
    gather_color_input(tile, ray_of, sh.data(), first, size_of(first), color.layer[0]);
    mlp_forward(nets.color, color, CHUNK);
  }

  // From dL/dsigma and dL/drgb of a chunk's samples to the weights and the features; color: what forward_color left.
  void chunk(int first, const MlpChunk& color) {
    const int size = size_of(first), n = tile.n_kept, n_in = nets.n_in, F = f.n_features, from = grad_sh ? 0 : SH_FEATURES;
    const int width = SH_FEATURES + GEO_FEATURES - from;
    float *grad = room.grad, *scratch = room.scratch;
    MlpChunk& density = room.density;
    std::memset(grad, 0, sizeof(float) * CHUNK * 16);
    for (int s = 0; s < size; ++s)
      for (int c = 0; c < 3; ++c) {
        const float rgb = tile.rgb[(size_t)(first + s) * 3 + c];
        grad[s * 16 + c] = room.grad_rgbs[(size_t)(first + s) * 3 + c] * sigmoid_slope(rgb);
      }
    mlp_backward(nets.color, color, grad, scratch, grad_weights.data() + nets.density.grad_size(), from);
    if (grad_sh) {
      for (int s = 0; s < size; ++s)
        for (int j = 0; j < SH_FEATURES; ++j) grad_sh[(size_t)ray_of[first + s] * SH_FEATURES + j] += grad[s * 32 + j];
      for (int s = 0; s < size; ++s) copy_row(grad + s * 16, grad + s * width + width - GEO_FEATURES, GEO_FEATURES);
    }
    for (int s = 0; s < size; ++s)
      copy_row(density.layer[0] + s * n_in, tile.features.data() + (size_t)tile.source[first + s] * n_in, n_in);
    std::memset(density.layer[0] + size * n_in, 0, sizeof(float) * (CHUNK - size) * n_in);
    mlp_forward(nets.density, density, nets.density.n_layers - 1, CHUNK);  // the geometry outputs were kept
    for (int s = 0; s < size; ++s)  // d sigma / d logit = sigma, also where the logit is held at its maximum
      grad[s * 16] += room.grad_sigmas[first + s] * tile.sigma[first + s];
    std::memset(grad + size * 16, 0, sizeof(float) * (CHUNK - size) * 16);
    mlp_backward(nets.density, density, grad, scratch, grad_weights.data(), 0);
    for (int l = 0; l < f.n_levels; ++l) {
      float* to = grad_features.data() + ((size_t)l * n + first) * F;
      if (F == 4)
        for (int s = 0; s < size; ++s) *(row4_u*)(to + s * 4) = *(const row4_u*)(grad + s * n_in + l * 4);
      else
        for (int s = 0; s < size; ++s) std::memcpy(to + s * 2, grad + s * n_in + l * 2, sizeof(float) * 2);
    }
  }
};

// One step of Adam for a level's rows; grads: theirs.
static void step_level(AdamDesc adam, const GridLevel& level, float* grads) {
  const size_t first = (size_t)level.offset * adam.n_columns;
  adam.param += first;
  adam.m += first;
  adam.v += first;
  if (adam.half_copy) adam.half_copy += first;
  adam.grad = grads;
  adam.n_rows = level.rows;
  adam.decay_from -= level.offset;
  adam.n_threads = 1;
  adam_rows(adam);
}

// The tiles' gradients together. A level belongs to one thread and takes the tiles in order: no atomics, one result.
// adam: takes its step for the table level by level, whose gradients are then the thread's and never leave its caches; null:
// they are added to g.table.
static void add_tiles(const RenderContext& context, const FieldDesc& f, const FieldNets& nets, int n_threads,
                      const RenderGrads& g, const AdamDesc* adam) {
  struct LevelGrads { std::vector<float> rows; };  // zero between steps
  const int n_tiles = (int)context.tiles.size(), F = f.n_features;
  const size_t density_size = nets.density.grad_size(), color_size = nets.color.grad_size();
  parallel_for(f.n_levels, n_threads, [&](int task) {
    const int l = f.n_levels - 1 - task;  // the large levels first
    GridLevel level = f.levels[l];
    float* grads = g.table;
    if (adam) {
      std::vector<float>& rows = thread_room<LevelGrads>().rows;
      if (rows.size() < (size_t)level.rows * F) rows.resize((size_t)level.rows * F);
      grads = rows.data();
      level.offset = 0;
    }
    for (int t = 0; t < n_tiles; ++t) {
      const Tile& tile = context.tiles[t];
      if (tile.n_kept == 0) continue;
      const float* unit[3] = {tile.unit[0].data(), tile.unit[1].data(), tile.unit[2].data()};
      const float* gf = tile.grad_features.data() + (size_t)l * tile.n_kept * F;
      if (F == 4) scatter_level<3, 4>(unit, tile.n_kept, level, gf, 4, grads);
      else scatter_level<3, 2>(unit, tile.n_kept, level, gf, 2, grads);
    }
    if (adam) step_level(*adam, f.levels[l], grads);
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

static void render_backward(RenderContext& context, const FieldDesc& f, const RenderDesc& r, const RenderGrads& g) {
  const FieldNets nets(f);
  if (g.rays_o) {
    std::memset(g.rays_o, 0, sizeof(float) * 3 * r.n_rays);
    std::memset(g.rays_d, 0, sizeof(float) * 3 * r.n_rays);
    std::memset(g.viewdirs, 0, sizeof(float) * 3 * r.n_rays);
  }
  parallel_for((int)context.tiles.size(), r.n_threads, [&](int t) {
    Tile& tile = context.tiles[t];
    std::vector<float> grad_sh;
    if (g.rays_o) grad_sh.assign((size_t)tile.n_rays * SH_FEATURES, 0.0f);
    TileBackward pass(f, nets, r, tile, g.rays_o ? grad_sh.data() : nullptr);
    for (int i = 0; i < tile.n_rays; ++i) {
      const int ray = tile.first_ray + i;
      RayGrads rg = {};
      if (g.colors) for (int c = 0; c < 3; ++c) rg.color[c] = g.colors[3 * ray + c];
      if (g.opacities) rg.opacity = g.opacities[ray];
      if (g.depths) rg.depth = g.depths[ray];
      if (g.second_moments) rg.second_moment = g.second_moments[ray];
      if (g.distortions) rg.distortion = g.distortions[ray];
      composite_ray_backward(rg, r.gradient_distance, tile, i, pass.room);
    }
    for (int first = 0; first < tile.n_kept; first += CHUNK) {
      // Recomputed rather than stored: hidden activations would be the largest memory of a training step.
      pass.forward_color(first, pass.room.again);
      pass.chunk(first, pass.room.again);
    }
    if (g.rays_o) ray_gradients(f, r, g, tile, pass.ray_of, tile.grad_features.data(), grad_sh.data());
  });
  add_tiles(context, f, nets, r.n_threads, g, nullptr);
}

// ---- a training step: the default loss of drawn rays, forward and backward in one pass over the tiles ---------------------

// Chunks of samples go through the colour network in the order of rays. As soon as all samples of a ray have their colours,
// so do its loss and the gradients of its samples; as soon as all samples of a chunk have gradients, it goes back, with its
// activations still at hand. Only the chunks of rays of hundreds of samples are computed again.
static double learn_tile(const FieldDesc& f, const FieldNets& nets, const RenderDesc& r, const PhotoRays& p, Tile& tile) {
  TileBackward pass(f, nets, r, tile, nullptr);
  const int n = tile.n_kept, n_chunks = (n + CHUNK - 1) / CHUNK;
  double loss = 0.0;
  int ray = 0, back = 0;
  for (int ahead = 1; ahead <= n_chunks || ray < tile.n_rays; ++ahead) {
    if (ahead <= n_chunks) {
      const int first = (ahead - 1) * CHUNK;
      MlpChunk& color = pass.room.color[(ahead - 1) % RING];
      pass.forward_color(first, color);
      chunk_rgbs(color.layer[nets.color.n_layers], tile.rgb.data() + (size_t)first * 3);
    }
    for (; ray < tile.n_rays && tile.start[ray + 1] <= ahead * CHUNK; ++ray) {
      const int i = tile.first_ray + ray;
      const RaySums sums = composite_ray(tile, ray);
      RayGrads g = {};
      loss += ray_loss(p, i, sums.color, sums.opacity, sums.depth, sums.median_depth, sums.second_moment, g);
      composite_ray_backward(g, r.gradient_distance, tile, ray, pass.room);
    }
    const int ready = tile.start[ray];  // all samples before it have gradients
    for (; back < n_chunks && (back + 1 < n_chunks ? (back + 1) * CHUNK : n) <= ready; ++back) {
      const bool at_hand = back + RING >= (ahead < n_chunks ? ahead : n_chunks);
      if (!at_hand) pass.forward_color(back * CHUNK, pass.room.again);
      pass.chunk(back * CHUNK, at_hand ? pass.room.color[back % RING] : pass.room.again);
    }
  }
  return loss;
}

static double learn(const FieldDesc& f, const RenderDesc& r, const PhotoRays& p, const RenderGrads& g, const AdamDesc* adam,
                    long long* counts) {
  const FieldNets nets(f);
  RenderContext* context = take_context();
  std::vector<double> losses(r.n_rays);  // of the tiles, by their first rays
  for_tiles(r, context, counts, [&](Tile& tile) {
    // Only what the table's gradient is made of outlives its tile: the rest is the thread's, still in the nearest caches.
    Tile& work = thread_room<Tile>();
    work.first_ray = tile.first_ray;
    work.n_rays = tile.n_rays;
    find_samples(f, nets, r, work, true);
    losses[tile.first_ray] = learn_tile(f, nets, r, p, work);
    tile.n_kept = work.n_kept;
    tile.n_evaluated = work.n_evaluated;
    for (int a = 0; a < 3; ++a) tile.unit[a].swap(work.unit[a]);
    tile.grad_features.swap(work.grad_features);
    tile.grad_weights.swap(work.grad_weights);
  });
  add_tiles(*context, f, nets, r.n_threads, g, adam);
  give_context(context);
  double loss = 0.0;
  for (const double part : losses) loss += part;
  for (int i = 0; i < p.n; ++i) {
    p.error_sums[p.places[i]] += p.errors[i];
    p.error_counts[p.places[i]] += 1.0f;
  }
  return loss;
}
