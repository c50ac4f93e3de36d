// The CPU library: C entry points over the loops of the headers beside it. Built once per instruction set by
// nerf/kernels/build.py, without torch or Python headers; called through ctypes, which releases the GIL.
#include <algorithm>

#include "cpu_adam.h"
#include "cpu_backward.h"
#include "cpu_bvh.h"
#include "cpu_fusion.h"
#include "cpu_matching.h"
#include "cpu_network.h"
#include "cpu_occupancy.h"
#include "cpu_raster.h"
#include "cpu_skyline.h"
#include "draw.h"
#include "cpu_winding.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* nerf_source_hash() { return NERF_SOURCE_HASH; }
// Bytes of the structs that Python also declares, in the order of bindings.STRUCTS; -1 past the last.
EXPORT int nerf_sizeof(int which) {
  const int sizes[] = {sizeof(GridLevel), sizeof(FieldDesc), sizeof(RenderDesc), sizeof(RenderGrads),
                       sizeof(AdamDesc),  sizeof(NetDesc),   sizeof(DepthView),  sizeof(MatchSource),
                       sizeof(MatchWindow), sizeof(DrawArgs), sizeof(PhotoRays)};
  return which >= 0 && which < (int)(sizeof(sizes) / sizeof(sizes[0])) ? sizes[which] : -1;
}
EXPORT int nerf_lanes() { return LANES; }
EXPORT int nerf_has_bf16() { return has_bf16(); }
EXPORT int nerf_has_openmp() {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

// ---- hash grid on its own: positions [n, D] -> features [n, L * F] ----------------------------------------------------

template <int D>
struct Columns {  // positions as one padded array per axis, clamped to the unit cube (a NaN becomes 0)
  std::vector<float> data[D];
  const float* at[D];
  Columns(const float* positions, long long first, int n) {
    const int padded = (n + GRID_BLOCK - 1) / GRID_BLOCK * GRID_BLOCK;
    for (int d = 0; d < D; ++d) {
      data[d].assign(padded, 0.0f);
      for (int i = 0; i < n; ++i) data[d][i] = f_clamp(positions[(first + i) * D + d], 0.0f, 1.0f);
      at[d] = data[d].data();
    }
  }
};

static const int ENCODE_CHUNK = 1 << 14;

template <int D, int F>
static void hashgrid_forward(const float* positions, long long n, const GridLevel* levels, int n_levels, const float* table,
                             float* out, int n_threads) {
  const int chunks = (int)((n + ENCODE_CHUNK - 1) / ENCODE_CHUNK);
  parallel_for(chunks, n_threads, [&](int c) {
    const long long first = (long long)c * ENCODE_CHUNK;
    const int count = (int)(n - first < ENCODE_CHUNK ? n - first : ENCODE_CHUNK);
    const Columns<D> unit(positions, first, count);
    for (int l = 0; l < n_levels; ++l)
      encode_level<D, F, float>(unit.at, count, levels[l], table, out + (size_t)first * n_levels * F + l * F, n_levels * F);
  });
}

template <int D, int F>
static void hashgrid_backward(const float* positions, long long n, const GridLevel* levels, int n_levels, const float* table,
                              const float* grad_out, float* grad_table, float* grad_positions, int n_threads) {
  const int chunks = (int)((n + ENCODE_CHUNK - 1) / ENCODE_CHUNK), stride = n_levels * F;
  if (grad_table)
    parallel_for(n_levels, n_threads, [&](int task) {
      const int l = n_levels - 1 - task;
      for (int c = 0; c < chunks; ++c) {
        const long long first = (long long)c * ENCODE_CHUNK;
        const int count = (int)(n - first < ENCODE_CHUNK ? n - first : ENCODE_CHUNK);
        const Columns<D> unit(positions, first, count);
        scatter_level<D, F>(unit.at, count, levels[l], grad_out + (size_t)first * stride + l * F, stride, grad_table);
      }
    });
  if (grad_positions)
    parallel_for(chunks, n_threads, [&](int c) {
      const long long first = (long long)c * ENCODE_CHUNK;
      const int count = (int)(n - first < ENCODE_CHUNK ? n - first : ENCODE_CHUNK);
      const Columns<D> unit(positions, first, count);
      std::vector<float> sums[D];
      float* to[D];
      for (int d = 0; d < D; ++d) {
        sums[d].assign(count + GRID_BLOCK, 0.0f);
        to[d] = sums[d].data();
      }
      for (int l = 0; l < n_levels; ++l)
        position_grad_level<D, F, float>(unit.at, count, levels[l], table, grad_out + (size_t)first * stride + l * F, stride, to);
      for (int i = 0; i < count; ++i)
        for (int d = 0; d < D; ++d) {
          const float x = positions[(first + i) * D + d];
          grad_positions[(first + i) * D + d] = x >= 0.0f && x <= 1.0f ? sums[d][i] : 0.0f;  // the clamp's derivative
        }
    });
}

#define FOR_GRID(CALL)                                                                                      \
  switch (n_dims * 16 + n_features) {                                                                       \
    case 1 * 16 + 1: CALL(1, 1); break; case 1 * 16 + 2: CALL(1, 2); break; case 1 * 16 + 4: CALL(1, 4); break; case 1 * 16 + 8: CALL(1, 8); break; \
    case 2 * 16 + 1: CALL(2, 1); break; case 2 * 16 + 2: CALL(2, 2); break; case 2 * 16 + 4: CALL(2, 4); break; case 2 * 16 + 8: CALL(2, 8); break; \
    case 3 * 16 + 1: CALL(3, 1); break; case 3 * 16 + 2: CALL(3, 2); break; case 3 * 16 + 4: CALL(3, 4); break; case 3 * 16 + 8: CALL(3, 8); break; \
    case 4 * 16 + 1: CALL(4, 1); break; case 4 * 16 + 2: CALL(4, 2); break; case 4 * 16 + 4: CALL(4, 4); break; case 4 * 16 + 8: CALL(4, 8); break; \
    default: return 1;                                                                                      \
  }                                                                                                         \
  return 0

EXPORT int nerf_hashgrid_forward(int n_dims, int n_features, const float* positions, long long n, const GridLevel* levels,
                                 int n_levels, const float* table, float* out, int n_threads) {
#define CALL(D, F) hashgrid_forward<D, F>(positions, n, levels, n_levels, table, out, n_threads)
  FOR_GRID(CALL);
#undef CALL
}
EXPORT int nerf_hashgrid_backward(int n_dims, int n_features, const float* positions, long long n, const GridLevel* levels,
                                  int n_levels, const float* table, const float* grad_out, float* grad_table,
                                  float* grad_positions, int n_threads) {
#define CALL(D, F) hashgrid_backward<D, F>(positions, n, levels, n_levels, table, grad_out, grad_table, grad_positions, n_threads)
  FOR_GRID(CALL);
#undef CALL
}

// ---- a network on its own: values, or a mean squared error with its gradients ------------------------------------------

EXPORT void nerf_network(NetDesc* d) {
  if (d->bf16 && has_bf16()) network_run<Pair>(*d);
  else network_run<Single>(*d);
}

// ---- field at scene points: density, and colour when directions are given ----------------------------------------------

EXPORT void nerf_field_forward(const FieldDesc* f, const float* positions, const float* directions, long long n,
                               float* sigmas, float* rgbs, int n_threads) {
  const FieldNets nets(*f);
  const int chunks = (int)((n + ENCODE_CHUNK - 1) / ENCODE_CHUNK);
  parallel_for(chunks, n_threads, [&](int c) {
    const long long start = (long long)c * ENCODE_CHUNK;
    const int count = (int)(n - start < ENCODE_CHUNK ? n - start : ENCODE_CHUNK), padded = count + GRID_BLOCK;
    std::vector<float> unit[3], staged((size_t)count * nets.n_in);
    for (auto& u : unit) u.assign(padded, 0.0f);
    for (int i = 0; i < count; ++i) {
      float u[3];
      scene_to_unit(positions + (start + i) * 3, f->contracted, u);
      for (int a = 0; a < 3; ++a) unit[a][i] = u[a];
    }
    const float* columns[3] = {unit[0].data(), unit[1].data(), unit[2].data()};
    encode_field(*f, columns, count, staged.data(), count);
    struct Room { MlpChunk density, color; };
    Room& room = thread_room<Room>();
    MlpChunk &density = room.density, &color = room.color;
    alignas(64) float chunk_s[CHUNK], chunk_c[CHUNK * 3];
    for (int first = 0; first < count; first += CHUNK) {
      const int size = count - first < CHUNK ? count - first : CHUNK;
      gather_features(*f, staged.data(), count, first, size, density.layer[0]);
      mlp_forward(nets.density, density, size);
      const float* h = density.layer[nets.density.n_layers];
      chunk_sigmas(h, f->density_bias, chunk_s);
      std::memcpy(sigmas + start + first, chunk_s, sizeof(float) * size);
      if (!directions) continue;
      for (int s = 0; s < size; ++s) {
        const float* d = directions + (start + first + s) * 3;
        sh4(d[0], d[1], d[2], color.layer[0] + s * 32);
        std::memcpy(color.layer[0] + s * 32 + 16, h + s * 16, sizeof(float) * 16);
      }
      mlp_forward(nets.color, color, size);
      chunk_rgbs(color.layer[nets.color.n_layers], chunk_c);
      std::memcpy(rgbs + (start + first) * 3, chunk_c, sizeof(float) * 3 * size);
    }
  });
}

// ---- march: count and fill are the same loop ---------------------------------------------------------------------------

EXPORT void nerf_march(const RenderDesc* r, const long long* starts, long long* counts, float* t_starts, float* t_ends,
                       long long* ray_indices) {
  const int rays = tile_rays(r->n_rays), n_tiles = (r->n_rays + rays - 1) / rays;
  parallel_for(n_tiles, r->n_threads, [&](int t) {
    for (int ray = t * rays; ray < (t + 1) * rays && ray < r->n_rays; ++ray) {
      long long n = 0;
      if (r->t_near[ray] < r->t_far[ray]) {
        MarchState m = march_begin(r->rays_o + 3 * ray, r->rays_d + 3 * ray, r->t_near[ray], r->t_far[ray], r->jitter[ray], r->march);
        float t_start, t_end;
        for (; march_next(m, r->grid, r->march, &t_start, &t_end); ++n)
          if (t_starts) {
            t_starts[starts[ray] + n] = t_start;
            t_ends[starts[ray] + n] = t_end;
            ray_indices[starts[ray] + n] = ray;
          }
      }
      if (counts) counts[ray] = n;
    }
  });
}

EXPORT void nerf_pack_occupancy(const unsigned char* occupied, int n_levels, int resolution, u32* fine,
                                unsigned char* clearance) {
  pack_occupancy(occupied, n_levels, resolution, fine, clearance);
}
EXPORT long long nerf_places_set(const unsigned char* mask, long long n, long long* places) { return places_set(mask, n, places); }
EXPORT void nerf_threshold_cells(const float* values, const unsigned char* candidates, long long n, float step_size, float highest,
                                 unsigned char* occupied, int n_threads) {
  threshold_cells(values, candidates, n, step_size, highest, occupied, n_threads);
}

// ---- fused render --------------------------------------------------------------------------------------------------------

EXPORT void* nerf_render_forward(const FieldDesc* f, const RenderDesc* r, int keep, long long* counts) {
  return render_forward(*f, *r, keep != 0, counts);
}
EXPORT void nerf_render_backward(void* context, const FieldDesc* f, const RenderDesc* r, const RenderGrads* g) {
  render_backward(*(RenderContext*)context, *f, *r, *g);
}
EXPORT void nerf_render_free(void* context) { give_context((RenderContext*)context); }

// ---- a training step ------------------------------------------------------------------------------------------------------

EXPORT void nerf_draw_rays(const DrawArgs* args, int n_threads) {
  const int block = 256, few = 16, n_blocks = (args->n + block - 1) / block;
  parallel_for(n_blocks, n_threads, [&](int b) {
    DrawnPixel drawn[few] = {};
    const int last = std::min((b + 1) * block, args->n);
    for (int first = b * block; first < last; first += few) {  // all of a few pixels are on their way at once
      const int count = std::min(few, last - first);
      long long from = drawn[few - 1].place;
      for (int k = 0; k < count; ++k) {
        drawn[k] = draw_pixel(*args, first + k, from);
        from = drawn[k].place;
        __builtin_prefetch((const char*)args->pixels + numbers_of(*args, drawn[k]) * args->bytes);
      }
      for (int k = 0; k < count; ++k) draw_ray(*args, first + k, drawn[k]);
    }
  });
  parallel_for((args->n_before + block - 1) / block, n_threads, [&](int b) {
    for (int j = b * block; j < std::min((b + 1) * block, args->n_before); ++j) draw_before(*args, j);
  });
}
EXPORT double nerf_learn(const FieldDesc* f, const RenderDesc* r, const PhotoRays* p, const RenderGrads* g, const AdamDesc* adam,
                         long long* counts) {
  return learn(*f, *r, *p, *g, adam, counts);
}
EXPORT void nerf_adam_step(const AdamDesc* a) { adam_rows(*a); }
EXPORT void nerf_jitter(u32 seed, u32 step, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] = hash_to_unit(seed, step, (u32)i);
}

// ---- meshes --------------------------------------------------------------------------------------------------------------

EXPORT void nerf_nearest_points(const float* vertices, const int* faces, int n_faces, const float* queries, long long n,
                                float* distances, int* nearest_faces, float* points, int n_threads) {
  nearest_points(vertices, faces, n_faces, queries, n, distances, nearest_faces, points, n_threads);
}
EXPORT void nerf_winding_numbers(const float* vertices, const int* faces, int n_faces, const float* areas,
                                 const float* queries, long long n, float* out, int n_threads) {
  winding_numbers(vertices, faces, n_faces, areas, queries, n, out, n_threads);
}

EXPORT void nerf_rasterise(const double* uv, const double* z, const int* faces, int n_faces, int width, int height, int* nearest,
                           int n_threads) {
  rasterise(uv, z, faces, n_faces, width, height, nearest, n_threads);
}
EXPORT int nerf_drop_outlines(const int* bottoms, const int* tops, const long long* starts, const int* widths, const int* order,
                              int n, int n_columns, int* places) {
  return drop_outlines(bottoms, tops, starts, widths, order, n, n_columns, places);
}
EXPORT void nerf_fuse_depths(const float* points, const float* scales, long long n, const DepthView* views, int n_views,
                             float front, float back, float* distances, float* weights, float* supports, int n_threads) {
  fuse_depths(points, scales, n, views, n_views, front, back, distances, weights, supports, n_threads);
}
EXPORT void nerf_match_planes(const float* picture, int height, int width, const MatchSource* sources, int n_sources,
                              const float* planes, const MatchWindow* window, float* costs, int n_threads) {
  match_planes(picture, height, width, sources, n_sources, planes, *window, costs, n_threads);
}
