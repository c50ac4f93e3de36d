// The default loss of one ray and its gradient: a Huber loss of the colour over the background (Huber 1964), and the
// radiance-field loss of its samples (Zhang et al. 2025, arXiv 2501.18627), which needs per-ray sums alone:
//
//   photo = sum_c huber(color_c + (1 - opacity) b_c - y_c)
//   surface = second moment - 2 y.color + |y|^2 opacity + (1 - opacity) |b - y|^2
//
// with target y and background b. Both are means over rays and channels.
#pragma once
#include "composite.h"

struct PhotoWeights {
  float photo, surface;  // divided by the number of rays and channels
  float delta;           // distance at which the Huber loss's parabola becomes a line
};

NERF_FN float photo_loss(const float* color, float opacity, float second_moment, const float* target, const float* background,
                         const PhotoWeights& w, RayGrads& grads, float* squared_error) {
  float loss = 0.0f, surface = second_moment;
  *squared_error = 0.0f;
  grads.second_moment = w.surface;
  for (int c = 0; c < 3; ++c) {
    const float y = target[c], b = background[c], apart = color[c] + (1.0f - opacity) * b - y;
    const float distance = f_abs(apart), near = f_min(distance, w.delta), slope = w.photo * (apart < 0.0f ? -near : near);
    loss += w.photo * near * (distance - 0.5f * near);
    surface += y * y * opacity - 2.0f * y * color[c] + (1.0f - opacity) * (b - y) * (b - y);
    grads.color[c] = slope - 2.0f * w.surface * y;
    grads.opacity += w.surface * (y * y - (b - y) * (b - y)) - slope * b;
    *squared_error += apart * apart * (1.0f / 3.0f);
  }
  return loss + w.surface * surface;
}
