// Emission-absorption along one ray (Max 1995; Mildenhall et al. 2020, equation 3), forward and backward side by side.
//
//   alpha_i = 1 - exp(-sigma_i dt_i)    T_i = prod_{j<i} (1 - alpha_j)    w_i = T_i alpha_i
//   color = sum w_i rgb_i    opacity = sum w_i    depth = sum w_i m_i    second moment = sum w_i |rgb_i|^2
//   distortion = sum_ij w_i w_j |m_i - m_j| + 1/3 sum w_i^2 dt_i        (Barron et al. 2022, equation 15)
//   median depth: where the opacity reaches 1/2
#pragma once
#include "common.h"

// A ray ends when less light than `stop` is left; a sample fainter than `faintest` counts as empty. A NaN is kept: it must show.
NERF_FN bool sample_is_skipped(float trans, float alpha, float stop, float faintest) {
  return trans < stop || alpha < faintest;
}

struct RaySums {
  float color[3], opacity, depth, second_moment, distortion, median_depth;
  float weighted_mids;  // sum w m so far, for the distortion
};

NERF_FN void composite_sample(RaySums& s, float weight, const float* rgb, float t_mid, float dt) {
  for (int c = 0; c < 3; ++c) s.color[c] += weight * rgb[c];
  s.second_moment += weight * (rgb[0] * rgb[0] + rgb[1] * rgb[1] + rgb[2] * rgb[2]);
  // Midpoints grow along the ray, so |m_i - m_j| needs no sorting: 2 w_i (m_i W_before - M_before).
  s.distortion += 2.0f * weight * (t_mid * s.opacity - s.weighted_mids) + weight * weight * dt * (1.0f / 3.0f);
  if (s.opacity < 0.5f && s.opacity + weight >= 0.5f) {  // within a sample light falls as exp(-sigma t)
    const float light = 1.0f - s.opacity, left = light - weight, least = 1e-6f * light;
    s.median_depth = t_mid + dt * (f_log(2.0f * light) / f_log(light / (left > least ? left : least)) - 0.5f);
  }
  s.opacity += weight;
  s.depth += weight * t_mid;
  s.weighted_mids += weight * t_mid;
}

struct RayGrads {
  float color[3], opacity, depth, second_moment, distortion;
};

// Derivative of the loss with respect to one weight. `before_*` are the sums in front of the sample, `all_*` those of the ray.
NERF_FN float grad_weight(const RayGrads& g, const float* rgb, float weight, float t_mid, float dt, float before_w,
                          float before_wm, float all_w, float all_wm) {
  float gw = g.opacity + g.depth * t_mid;
  for (int c = 0; c < 3; ++c) gw += (g.color[c] + g.second_moment * rgb[c]) * rgb[c];
  const float after_w = all_w - before_w - weight, after_wm = all_wm - before_wm - weight * t_mid;
  gw += g.distortion *
        (2.0f * (t_mid * (before_w - after_w) - before_wm + after_wm) + weight * dt * (2.0f / 3.0f));
  return gw;
}

// dL/dsigma_i = dt_i (T_{i+1} g_i - sum_{j>i} w_j g_j): raising sigma_i moves light from behind to sample i. No division.
NERF_FN float grad_sigma(float dt, float trans_after, float grad_w, float suffix) {
  return dt * (trans_after * grad_w - suffix);
}
NERF_FN float grad_rgb(const RayGrads& g, float weight, float rgb, int channel) {
  return weight * (g.color[channel] + 2.0f * g.second_moment * rgb);
}

// Space near a camera is sampled far more densely than what it looks at, by 1/t^2, so it learns too fast and keeps floaters;
// gradients of its samples are scaled down by as much (Philip and Deschaintre 2023, Radiance Field Gradient Scaling).
NERF_FN float near_scale(float t, float distance) {
  if (!(t < distance)) return 1.0f;
  const float ratio = t / distance;
  return ratio * ratio;
}
