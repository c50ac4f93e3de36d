// Real spherical harmonics up to degree 4 (bands 0..3) in the order and signs of tiny-cuda-nn, and their derivatives.
#pragma once
#include "common.h"

NERF_FN void sh4(float x, float y, float z, float* out) {
  const float xy = x * y, xz = x * z, yz = y * z, x2 = x * x, y2 = y * y, z2 = z * z;
  out[0] = 0.28209479177387814f;
  out[1] = -0.48860251190291987f * y;
  out[2] = 0.48860251190291987f * z;
  out[3] = -0.48860251190291987f * x;
  out[4] = 1.0925484305920792f * xy;
  out[5] = -1.0925484305920792f * yz;
  out[6] = 0.94617469575755997f * z2 - 0.31539156525251999f;
  out[7] = -1.0925484305920792f * xz;
  out[8] = 0.54627421529603959f * (x2 - y2);
  out[9] = 0.59004358992664352f * y * (-3.0f * x2 + y2);
  out[10] = 2.8906114426405538f * xy * z;
  out[11] = 0.45704579946446572f * y * (1.0f - 5.0f * z2);
  out[12] = 0.3731763325901154f * z * (5.0f * z2 - 3.0f);
  out[13] = 0.45704579946446572f * x * (1.0f - 5.0f * z2);
  out[14] = 1.4453057213202769f * z * (x2 - y2);
  out[15] = 0.59004358992664352f * x * (-x2 + 3.0f * y2);
}

// grad_dir += J^T grad_out, term by term the derivative of sh4.
NERF_FN void sh4_backward(float x, float y, float z, const float* g, float* grad_dir) {
  const float xy = x * y, xz = x * z, yz = y * z, x2 = x * x, y2 = y * y, z2 = z * z;
  float gx = -0.48860251190291987f * g[3], gy = -0.48860251190291987f * g[1], gz = 0.48860251190291987f * g[2];
  gx += 1.0925484305920792f * (y * g[4] - z * g[7]) + 1.0925484305920792f * x * g[8];
  gy += 1.0925484305920792f * (x * g[4] - z * g[5]) - 1.0925484305920792f * y * g[8];
  gz += -1.0925484305920792f * (y * g[5] + x * g[7]) + 1.8923493915151202f * z * g[6];
  gx += 0.59004358992664352f * -6.0f * xy * g[9] + 2.8906114426405538f * yz * g[10];
  gy += 0.59004358992664352f * (-3.0f * x2 + 3.0f * y2) * g[9] + 2.8906114426405538f * xz * g[10];
  gz += 2.8906114426405538f * xy * g[10];
  gy += 0.45704579946446572f * (1.0f - 5.0f * z2) * g[11];
  gz += -4.5704579946446572f * yz * g[11] + 0.3731763325901154f * (15.0f * z2 - 3.0f) * g[12] - 4.5704579946446572f * xz * g[13];
  gx += 0.45704579946446572f * (1.0f - 5.0f * z2) * g[13];
  gx += 1.4453057213202769f * 2.0f * xz * g[14];
  gy += -1.4453057213202769f * 2.0f * yz * g[14];
  gz += 1.4453057213202769f * (x2 - y2) * g[14];
  gx += 0.59004358992664352f * (-3.0f * x2 + 3.0f * y2) * g[15];
  gy += 0.59004358992664352f * 6.0f * xy * g[15];
  grad_dir[0] += gx;
  grad_dir[1] += gy;
  grad_dir[2] += gz;
}
