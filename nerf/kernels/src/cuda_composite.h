// The backward pass of compositing along one ray: gradients of its outputs -> of its samples' logits.
#pragma once
#include "composite.h"
#include "cuda_samples.h"

struct CompositeArgs {
  KeptSamples kept;
  const float *colors, *opacities, *depths, *second_moments, *distortions;  // dL/d(per-ray output); null: zero
  float gradient_distance;
  int n_rays;
  float4* grads;      // [capacity] dL/d(logit) of red, green, blue and of the density
  u32* largest_bits;  // the largest of their magnitudes, as bits; zero at the start
};

// Returns the largest magnitude of what it writes.
NERF_FN float composite_ray_backward(const CompositeArgs& args, int i, const RayGrads& g) {
  float largest = 0.0f, after_w = 0.0f, after_wm = 0.0f, suffix = 0.0f;
  const float2 all = args.kept.totals[i];
  for (int k = args.kept.last_samples[i], before; k >= 0; k = before) {  // from the last sample to the first
    before = args.kept.links[k].y;  // asked for with the rest, not after it: a ray is one chain of such waits
    const float4 interval = args.kept.intervals[k], rgb_sigma = args.kept.rgb_sigmas[k];
    const float t_mid = interval.x, dt = interval.y, weight = interval.z;
    const float rgb[3] = {rgb_sigma.x, rgb_sigma.y, rgb_sigma.z};
    const float before_w = all.x - after_w - weight, before_wm = all.y - after_wm - weight * t_mid;
    const float gw = grad_weight(g, rgb, weight, t_mid, dt, before_w, before_wm, all.x, all.y);
    const float scale = near_scale(t_mid, args.gradient_distance);
    float out[4];
    for (int c = 0; c < 3; ++c) out[c] = scale * grad_rgb(g, weight, rgb[c], c) * sigmoid_slope(rgb[c]);
    // d sigma / d logit = sigma, also where the logit is held at its maximum
    out[3] = scale * grad_sigma(dt, interval.w, gw, suffix) * rgb_sigma.w;
    args.grads[k] = make_float4(out[0], out[1], out[2], out[3]);
    for (int c = 0; c < 4; ++c) largest = f_max(f_abs(out[c]), largest);
    suffix += weight * gw;
    after_w += weight;
    after_wm += weight * t_mid;
  }
  return largest;
}

// By all lanes of a warp: the largest of what each of them found.
NERF_FN void note_largest_all(float largest, u32* largest_bits) {
  for (int step = 16; step > 0; step >>= 1) largest = f_max(largest, shuffle_all(largest, lane_index() ^ step));
  if (lane_index() == 0 && largest > 0.0f) atomic_max(largest_bits, float_bits(largest));
}
