// Scene position -> unit cube of the hash grid: affine for boxes, L-infinity contraction for unbounded scenes.
#pragma once
#include "common.h"

// Lane-generic, as the march. x in [-1,1]^3 -> (x + 1) / 2;  contracted: y = x inside the unit box, else (2 - 1/r) x / r with r = |x|_inf; (y + 2) / 4.
template <class F>
NERF_FN void scene_to_unit(const F* x, bool contracted, F* unit) {
  const F one = splat(1.0f, x[0]);
  if (!contracted) {
    for (int a = 0; a < 3; ++a) unit[a] = f_min(f_max((x[a] + 1.0f) * 0.5f, one - one), one);
    return;
  }
  const F r = f_max(f_max(f_abs(x[0]), f_abs(x[1])), f_abs(x[2]));
  const F s = select(r > one, (2.0f - 1.0f / r) / r, one);
  for (int a = 0; a < 3; ++a) unit[a] = (x[a] * s + 2.0f) * 0.25f;
}

// grad_x = J^T grad_unit. With s(r) = 2/r - 1/r^2 and y = s x: dy/dx = s I + x s'(r) dr/dx, dr/dx = sign(x_m) e_m.
NERF_FN void scene_to_unit_backward(const float* x, bool contracted, const float* grad_unit, float* grad_x) {
  if (!contracted) {
    for (int a = 0; a < 3; ++a) grad_x[a] = (x[a] >= -1.0f && x[a] <= 1.0f) ? 0.5f * grad_unit[a] : 0.0f;
    return;
  }
  int m = 0;
  for (int a = 1; a < 3; ++a)
    if (f_abs(x[a]) > f_abs(x[m])) m = a;
  const float r = f_abs(x[m]);
  if (r <= 1.0f) {
    for (int a = 0; a < 3; ++a) grad_x[a] = 0.25f * grad_unit[a];
    return;
  }
  const float s = (2.0f - 1.0f / r) / r, ds = -2.0f / (r * r) + 2.0f / (r * r * r);
  float along = 0.0f;
  for (int a = 0; a < 3; ++a) {
    grad_x[a] = 0.25f * s * grad_unit[a];
    along += x[a] * grad_unit[a];
  }
  grad_x[m] += 0.25f * along * ds * (x[m] < 0.0f ? -1.0f : 1.0f);
}
