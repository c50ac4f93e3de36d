// The fused render op of the GPU: march, field and composite in one kernel, lazily from front to back, so that what a surface
// hides is never evaluated. Every lane of a warp owns one ray; a warp evaluates one sample of each of its 32 rays at a time,
// and a lane whose ray has ended takes the next one from a common queue, so no lane idles while there are rays.
#include "cuda_composite.h"
#include "cuda_net.h"
#include "march.h"
#include "space.h"

struct RenderArgs {
  FieldDesc field;
  OccupancyBits grid;
  MarchSettings march;
  float stop_threshold, alpha_threshold;
  int n_rays;
  const float *rays_o, *rays_d;          // [n, 3]
  const float *t_near, *t_far, *jitter;  // [n]
  const Pair* sh;                        // [n, 8] of the viewing directions
  const Operand* weights;
  float *colors, *opacities, *depths, *median_depths, *second_moments, *distortions;
  int* next_ray;                         // zero at the start
  u64* n_evaluated;                      // added to
  KeptSamples kept;                      // kept.n null: nothing is remembered for a backward pass
};

struct Ray {  // of one lane
  int index = -1;
  int last_sample = -1;  // kept one
  float trans = 1.0f;
  MarchState march;
  RaySums sums;
};

NERF_FN void begin_ray(const RenderArgs& args, int index, Ray& ray) {
  ray.index = index;
  ray.last_sample = -1;
  ray.trans = 1.0f;
  const RaySums nothing = {};
  ray.sums = nothing;
  ray.march = march_begin(args.rays_o + 3 * index, args.rays_d + 3 * index, args.t_near[index], args.t_far[index],
                          args.jitter[index], args.march);
}

NERF_FN void end_ray(const RenderArgs& args, Ray& ray) {
  const int i = ray.index;
  for (int c = 0; c < 3; ++c) args.colors[3 * i + c] = ray.sums.color[c];
  args.opacities[i] = ray.sums.opacity;
  args.depths[i] = ray.sums.depth;
  args.median_depths[i] = ray.sums.median_depth;
  args.second_moments[i] = ray.sums.second_moment;
  args.distortions[i] = ray.sums.distortion;
  if (args.kept.n) {
    args.kept.last_samples[i] = ray.last_sample;
    args.kept.totals[i] = make_float2(ray.sums.opacity, ray.sums.depth);
  }
  ray.index = -1;
}

// Every lane gets a sample of its own ray, if there is one: lanes whose rays end take new ones. False where none has any.
NERF_FN bool next_samples_all(const RenderArgs& args, Ray& ray, bool& exhausted, bool& has, float* t_start, float* t_end) {
  has = false;
  for (;;) {
    if (ray.index >= 0 && !has) {
      has = args.t_near[ray.index] < args.t_far[ray.index] && march_next(ray.march, args.grid, args.march, t_start, t_end);
      if (!has) end_ray(args, ray);
    }
    const u32 idle = ballot_all(ray.index < 0);
    if (idle == 0 || exhausted) return ballot_all(has) != 0;
    int first = 0;
    if (lane_index() == 0) first = atomic_add(args.next_ray, count_bits(idle));
    first = shuffle_all(first, 0);
    if (ray.index < 0) {
      const int mine = first + count_bits(idle & ((1u << lane_index()) - 1));
      if (mine < args.n_rays) begin_ray(args, mine, ray);
    }
    exhausted = first + count_bits(idle) >= args.n_rays;
  }
}

KERNEL(render_forward, RenderArgs, 256) {
  const Operand* weights = stage_operands(args.weights, N_OPERANDS, shared_memory());
  LaneLevels levels;
  lane_levels(args.field, levels);
  const TableNumber* table = field_table(args.field);
  const int lane = lane_index(), g = lane >> 2, t = lane & 3;
  Ray ray;
  bool exhausted = false, has;
  u32 n_evaluated = 0;
  float t_start, t_end;
  while (next_samples_all(args, ray, exhausted, has, &t_start, &t_end)) {
    const u32 present = ballot_all(has);
    const float t_mid = 0.5f * (t_start + t_end), dt = t_end - t_start;
    float unit[3] = {0.0f, 0.0f, 0.0f};
    if (has) {
      float x[3];
      for (int a = 0; a < 3; ++a) x[a] = f_fma(t_mid, ray.march.d[a], ray.march.o[a]);
      scene_to_unit(x, args.field.contracted, unit);
      ++n_evaluated;
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {  // the tensor cores take 16 samples at a time
      if (((present >> (16 * half)) & 0xffffu) == 0) continue;
      const int upper = 16 * half + g, lower = upper + 8;  // lanes that own this lane's two rows
      float at[2][3];
      for (int a = 0; a < 3; ++a) {
        at[0][a] = shuffle_all(unit[a], upper);
        at[1][a] = shuffle_all(unit[a], lower);
      }
      Pair x[ENCODED_STEPS][4];
      float geo[2][4];
      encode_rows(levels, table, at[0], at[1], x);
      density_network_all(x, weights, geo);

      const float logit = own_row_all(geo[0], 0) + args.field.density_bias;
      const float sigma = f_exp(f_min(DENSITY_LOGIT_MAX, logit));
      const float passes = f_exp(-sigma * dt), alpha = 1.0f - passes;
      const bool keep = has && (lane >> 4) == half && !sample_is_skipped(ray.trans, alpha, args.stop_threshold, args.alpha_threshold);
      const u32 kept = ballot_all(keep);
      if (kept == 0) continue;
      int first = 0;  // slot: asked for before the colour network, which takes as long as the answer
      if (args.kept.n && lane == 0) first = atomic_add(args.kept.n, count_bits(kept));

      Pair c[2][4];
      float logits[1][4], rgb[3];
      color_inputs(args.sh, shuffle_all(ray.index, upper), shuffle_all(ray.index, lower), geo, c);
      color_network_all(c, weights, logits);
      for (int i = 0; i < 3; ++i) rgb[i] = 1.0f / (1.0f + f_exp(-own_row_all(logits[0], i)));

      int slot = -1;
      if (args.kept.n) {
        first = shuffle_all(first, 0);
        if (keep) slot = first + count_bits(kept & ((1u << lane) - 1));
        if (slot >= args.kept.capacity) slot = -1;  // no room: it still counts in the picture, but teaches nothing
      }
      if (keep) {
        const float weight = ray.trans * alpha;
        composite_sample(ray.sums, weight, rgb, t_mid, dt);
        ray.trans *= passes;
        if (slot >= 0) {
          args.kept.intervals[slot] = make_float4(t_mid, dt, weight, ray.trans);
          args.kept.rgb_sigmas[slot] = make_float4(rgb[0], rgb[1], rgb[2], sigma);
          args.kept.unit_positions[slot] = make_float4(unit[0], unit[1], unit[2], 0.0f);
          args.kept.links[slot] = make_int2(ray.index, ray.last_sample);
          ray.last_sample = slot;
        }
      }
      if (args.kept.n) {
        const int slots[2] = {shuffle_all(slot, upper), shuffle_all(slot, lower)};
        Pair* features = (Pair*)args.kept.features;
        for (int row = 0; row < 2; ++row)
          if (slots[row] >= 0)
#pragma unroll
            for (int s = 0; s < ENCODED_STEPS; ++s) {
              Operand both;
              both.b[0] = x[s][row], both.b[1] = x[s][2 + row];
              ((Operand*)features)[(size_t)slots[row] * (ENCODED / 4) + 4 * s + t] = both;
            }
      }
    }
    if (has && ray.trans < args.stop_threshold) end_ray(args, ray);
  }
  int of_warp = (int)n_evaluated;
  for (int step = 16; step > 0; step >>= 1) of_warp += shuffle_all(of_warp, lane ^ step);
  if (lane == 0 && of_warp) atomic_add_long(args.n_evaluated, (u64)of_warp);
}

// ---- backward, per ray: gradients of its outputs -> of its samples' logits ------------------------------------------------

KERNEL(composite_backward, CompositeArgs, 128) {
  const int i = block_index() * block_size() + thread_index();
  float largest = 0.0f;
  if (i < args.n_rays) {
    RayGrads g = {};
    if (args.colors) for (int c = 0; c < 3; ++c) g.color[c] = args.colors[3 * i + c];
    if (args.opacities) g.opacity = args.opacities[i];
    if (args.depths) g.depth = args.depths[i];
    if (args.second_moments) g.second_moment = args.second_moments[i];
    if (args.distortions) g.distortion = args.distortions[i];
    largest = composite_ray_backward(args, i, g);
  }
  note_largest_all(largest, args.largest_bits);
}
