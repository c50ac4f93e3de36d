// The default loss of one ray and its gradient. Of a ray that shows a pixel the sum of
//
//   photo = sum_c huber(shown_c - y_c)                                                                   (Huber 1964)
//   surface = second moment - 2 y'.color + |y'|^2 opacity + (1 - opacity) |b - y'|^2
//   depth = sqrt(e^2 + r^2) - r + (1 - opacity)^2 with e = depth / t - opacity, where the pixel's place t > 0 on its ray is known
//
// with target y, background b and shown_c = own_c + (1 - opacity) b_c. own is the colour, or where photos have log gains g of
// their light, the colour in the photo's own exposure, a_c color_c + 0.055 (a_c - 1) opacity with a = exp(g / 2.4): sRGB values
// beyond their curve's straight part. Light of a flash falls off with distance: -exponent log(median depth / reference) is added
// to g. y' is y, or the photo's colour in the exposure common to all. The surface term is the radiance-field loss of the ray's
// samples (Zhang et al. 2025, arXiv 2501.18627), which needs per-ray sums alone. Photo and surface are means over pixels and
// channels, depth over pixels. Of a ray before a camera the loss is its opacity, a mean over these rays.
#pragma once
#include "composite.h"

static const float TOE = 0.055f, GAMMA = 2.4f;  // of the sRGB curve
static const float SATURATED = 0.998f;          // values from here on may have been brighter than the file can say
static const float FARTHEST = 4.0f;             // times the reference distance, from where on light falls off no further

struct PhotoRays {
  const float *targets, *backgrounds;  // [n, 3]
  const float* used;                   // [n] weights of photo and surface; null: 1
  const float* t_depths;               // [n] where what the pixel shows is known to be, 0: nowhere; null: nowhere
  const float *gains, *alphas;         // [n, 3] log gains of the photos' light and [n] the pixels' alpha; null: 0
  const float* exponents;              // [n] of a flash, where there are gains; null: none
  const long long* places;             // [n] in the error map
  const float* rates;                  // [4], whose last number is read instead of the surface's weight; or null
  float* errors;                       // [n] squared errors, written
  float* grad_gains;                   // [n, 3] written, where there are gains
  float* medians;                      // [n] median depths, written, where there are exponents
  float *error_sums, *error_counts;    // the error map, added to
  float photo, surface, depth, before; // weights
  float delta;                         // distance at which the Huber loss's parabola becomes a line
  float rounding;                      // r
  float reference;                     // distance at which a flash changes nothing
  float brightest;                     // colours and second moments are those of a ray times this, and its square
  int n, n_before;
};

// Of ray i; grads begins at 0.
NERF_FN float ray_loss(const PhotoRays& p, int i, const float* color, float opacity, float depth, float median_depth,
                       float second_moment, RayGrads& grads) {
  if (i >= p.n) {
    grads.opacity = p.before / (float)p.n_before;
    return grads.opacity * opacity;
  }
  const float used = p.used ? p.used[i] : 1.0f, mean = used / (3.0f * (float)p.n), scale = p.brightest;
  const float w_photo = mean * p.photo, w_surface = mean * (p.rates ? p.rates[3] : p.surface);
  float loss = 0.0f, error = 0.0f, surface = scale * scale * second_moment;
  grads.second_moment = w_surface * scale * scale;
  float falloff = 0.0f;
  if (p.exponents) {
    const float ratio = median_depth > 0.0f ? median_depth / p.reference : 1.0f;
    falloff = -p.exponents[i] * f_log(f_clamp(ratio, 1.0f / FARTHEST, FARTHEST));
    p.medians[i] = median_depth;
  }
  for (int c = 0; c < 3; ++c) {
    const float y = p.targets[3 * i + c], b = p.backgrounds[3 * i + c], light = scale * color[c];
    float a = 1.0f, toe = 0.0f, common = y;
    if (p.gains) {
      a = f_exp((p.gains[3 * i + c] + falloff) / GAMMA);
      toe = TOE * (a - 1.0f);
      const float alpha = p.alphas[i], behind = b * (1.0f - alpha);
      common = (y - behind - alpha * toe) / a + behind;
    }
    float apart = a * light + toe * opacity + (1.0f - opacity) * b - y;
    if (p.gains && y >= SATURATED && apart > 0.0f) apart = 0.0f;
    const float distance = f_abs(apart), near = f_min(distance, p.delta), slope = w_photo * (apart < 0.0f ? -near : near);
    loss += w_photo * near * (distance - 0.5f * near);
    surface += common * common * opacity - 2.0f * common * light + (1.0f - opacity) * (b - common) * (b - common);
    grads.color[c] = scale * (a * slope - 2.0f * w_surface * common);
    grads.opacity += w_surface * (common * common - (b - common) * (b - common)) + slope * (toe - b);
    if (p.gains) p.grad_gains[3 * i + c] = slope * a * (light + TOE * opacity) / GAMMA;
    error += apart * apart * (1.0f / 3.0f);
  }
  p.errors[i] = error * used;
  loss += w_surface * surface;
  const float t = p.t_depths ? p.t_depths[i] : 0.0f;
  if (t > 0.0f) {
    const float w = p.depth / (float)p.n, e = depth / t - opacity, length = f_sqrt(e * e + p.rounding * p.rounding);
    const float left = 1.0f - opacity, slope = w * e / length;
    loss += w * (length - p.rounding + left * left);
    grads.depth = slope / t;
    grads.opacity -= slope + 2.0f * w * left;
  }
  return loss;
}
