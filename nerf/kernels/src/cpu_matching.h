// How alike a picture's patches are in other pictures, warped there by a plane at each pixel: plane-sweep and PatchMatch
// stereo's inner loop (Bleyer et al. 2011; Schoenberger et al. 2016), without any search.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "cpu_simd.h"
#include "cpu_threads.h"

struct MatchSource {     // a picture to compare with
  float homography[9];   // row-major [3, 3]: takes a pixel (u, v, 1) of the reference that is infinitely far to a pixel here
  float epipole[3];      // times the inverse depth it is added to that
  int width, height;
  const float* picture;  // [height, width] grey, NaN where it shows nothing
};

struct MatchWindow {
  int radius, step;          // taps at -radius, -radius + step ... pixels around the middle
  int best;                  // so many views, those most alike, are averaged; at most MATCH_BEST
  float color, space;        // standard deviations of the weights of taps: of grey values, of pixels
  float noise;               // standard deviation of grey values that is no texture
};
static const int MATCH_BEST = 8, MATCH_TAPS = 144;

NERF_FN vuint vgather(const u32* base, vint at) {
#if defined(__AVX512F__)
  return (vuint)_mm512_i32gather_epi32((__m512i)at, base, 4);
#elif defined(__AVX2__)
  return (vuint)_mm256_i32gather_epi32((const int*)base, (__m256i)at, 4);
#else
  vuint out;
  for (int k = 0; k < LANES; ++k) out[k] = base[at[k]];
  return out;
#endif
}
NERF_FN vfloat vbyte(vuint packed, int shift) { return __builtin_convertvector((vint)(packed >> shift & 255u), vfloat); }

// The four pixels that bilinear interpolation asks for, a byte each (so one load serves a tap, not four): grey values in
// steps of 1/254, from 1 on; all 0 where one of them shows nothing.
struct PackedPicture {
  std::vector<u32> corners;
  explicit PackedPicture(const MatchSource& s) : corners((size_t)s.width * s.height, 0u) {
    std::vector<u32> grey((size_t)s.width * s.height);
    for (size_t i = 0; i < grey.size(); ++i) {
      const float value = s.picture[i];
      grey[i] = value == value ? 1u + (u32)(f_clamp(value, 0.0f, 1.0f) * 254.0f + 0.5f) : 0u;
    }
    for (int y = 0; y + 1 < s.height; ++y)
      for (int x = 0; x + 1 < s.width; ++x) {
        const u32 *a = grey.data() + (size_t)y * s.width + x, *b = a + s.width;
        if (a[0] && a[1] && b[0] && b[1]) corners[(size_t)y * s.width + x] = a[0] | a[1] << 8 | b[0] << 16 | b[1] << 24;
      }
  }
};

// planes [3, h, w]: inverse depth at the pixel's centre, its change to the right, down (of a plane it is affine in the
// picture). costs [h, w] from 0 (alike) to 1: mean over the best views of 1 - NCC, weighted bilaterally and with `noise` in
// the variances; 1 is of a view that does not show at least half of the patch.
static void match_planes(const float* picture, int height, int width, const MatchSource* sources, int n_sources,
                         const float* planes, const MatchWindow& window, float* costs, int n_threads) {
  const int reach = window.radius, pitch = (width + LANES - 1) / LANES * LANES + 2 * reach;
  std::vector<float> padded((size_t)pitch * (height + 2 * reach), std::numeric_limits<float>::quiet_NaN());
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) padded[(size_t)(y + reach) * pitch + x + reach] = picture[(size_t)y * width + x];
  const float by_color = -0.5f / (window.color * window.color), by_space = -0.5f / (window.space * window.space);
  const vfloat zero = vset(0.0f), one = vset(1.0f), noise = vset(window.noise * window.noise);
  const size_t n_pixels = (size_t)height * width;
  std::vector<PackedPicture> packed(sources, sources + n_sources);
  const int n_best = window.best < n_sources ? window.best : n_sources;

  parallel_for(height, n_threads, [&](int y) {
    vfloat tap_weight[MATCH_TAPS], tap_value[MATCH_TAPS], column;
    float tap_x[MATCH_TAPS], tap_y[MATCH_TAPS];
    for (int k = 0; k < LANES; ++k) column[k] = k + 0.5f;
    for (int x = 0; x < width; x += LANES) {
      const float* middle = padded.data() + (size_t)(y + reach) * pitch + x + reach;
      const vfloat centre = vload(middle);
      vfloat full = zero;
      int n_taps = 0;
      for (int dy = -reach; dy <= reach; dy += window.step)
        for (int dx = -reach; dx <= reach; dx += window.step) {
          const vfloat off = vload(middle + (ptrdiff_t)dy * pitch + dx) - centre;
          const vfloat weight = vexp(off * off * by_color + (float)(dx * dx + dy * dy) * by_space);
          const vint shown = off == off;
          tap_weight[n_taps] = shown ? weight : zero;
          tap_value[n_taps] = shown ? off : zero;
          tap_x[n_taps] = (float)dx, tap_y[n_taps] = (float)dy;
          full += tap_weight[n_taps++];
        }
      // Where nothing of the block has texture nothing is alike.
      vfloat spread = zero, mean = zero;
      for (int t = 0; t < n_taps; ++t) mean = vfma(tap_weight[t], tap_value[t], mean);
      mean = mean / full;
      for (int t = 0; t < n_taps; ++t) spread += tap_weight[t] * (tap_value[t] - mean) * (tap_value[t] - mean);
      const vint textured = spread > full * noise;
      int any = 0;
      for (int k = 0; k < LANES; ++k) any |= textured[k];
      const int count = width - x < LANES ? width - x : LANES;
      if (!any) {
        for (int k = 0; k < count; ++k) costs[(size_t)y * width + x + k] = 1.0f;
        continue;
      }
      vfloat plane[3];
      for (int c = 0; c < 3; ++c) {
        const float* from = planes + c * n_pixels + (size_t)y * width + x;
        if (count == LANES) plane[c] = vload(from);
        else
          for (int k = 0; k < LANES; ++k) plane[c][k] = from[k < count ? k : 0];
      }
      const vfloat u = column + (float)x;
      const float v = y + 0.5f;
      vfloat found[MATCH_BEST];
      for (int b = 0; b < n_best; ++b) found[b] = one;
      for (int j = 0; j < n_sources; ++j) {
        const MatchSource& s = sources[j];
        vfloat start[3], right[3], down[3];
        for (int c = 0; c < 3; ++c) {
          const float* h = s.homography + 3 * c;
          start[c] = vfma(vset(s.epipole[c]), plane[0], h[0] * u + (h[1] * v + h[2]));
          right[c] = vfma(vset(s.epipole[c]), plane[1], vset(h[0]));
          down[c] = vfma(vset(s.epipole[c]), plane[2], vset(h[1]));
        }
        const vfloat last_x = vset(s.width - 1.0f), last_y = vset(s.height - 1.0f);
        vfloat n = zero, sum_a = zero, sum_b = zero, sum_aa = zero, sum_bb = zero, sum_ab = zero;
        for (int t = 0; t < n_taps; ++t) {
          const vfloat dx = vset(tap_x[t]), dy = vset(tap_y[t]);
          const vfloat ahead = vfma(dy, down[2], vfma(dx, right[2], start[2])), inverse = one / ahead;
          const vfloat px = vfma(dy, down[0], vfma(dx, right[0], start[0])) * inverse - 0.5f;
          const vfloat py = vfma(dy, down[1], vfma(dx, right[1], start[1])) * inverse - 0.5f;
          const vint inside = (ahead > zero) & (px >= zero) & (py >= zero) & (px <= last_x) & (py <= last_y);
          const vfloat qx = inside ? px : zero, qy = inside ? py : zero;
          const vint x0 = __builtin_convertvector(vmin(qx, last_x - 1.0f), vint);
          const vint y0 = __builtin_convertvector(vmin(qy, last_y - 1.0f), vint);
          const vfloat fx = qx - __builtin_convertvector(x0, vfloat), fy = qy - __builtin_convertvector(y0, vfloat);
          const vint at = y0 * s.width + x0;
          const vuint corners = vgather(packed[j].corners.data(), at);
          const vfloat a = vbyte(corners, 0), c = vbyte(corners, 16);
          const vfloat upper = vfma(fx, vbyte(corners, 8) - a, a), lower = vfma(fx, vbyte(corners, 24) - c, c);
          const vfloat value = (vfma(fy, lower - upper, upper) - 1.0f) * (1.0f / 254.0f) - centre;
          const vint shown = inside & (corners != 0u);
          const vfloat w = shown ? tap_weight[t] : zero, there = shown ? value : zero, here = tap_value[t];
          const vfloat wa = w * here, wb = w * there;
          n += w;
          sum_a += wa, sum_b += wb;
          sum_aa = vfma(wa, here, sum_aa), sum_bb = vfma(wb, there, sum_bb), sum_ab = vfma(wa, there, sum_ab);
        }
        const vfloat per = one / n, mean_a = sum_a * per, mean_b = sum_b * per;
        const vfloat var_a = vmax(sum_aa * per - mean_a * mean_a, zero) + noise;
        const vfloat var_b = vmax(sum_bb * per - mean_b * mean_b, zero) + noise;
        const vfloat product = var_a * var_b, covariance = sum_ab * per - mean_a * mean_b;
        vfloat root;
        for (int k = 0; k < LANES; ++k) root[k] = f_sqrt(product[k]);
        vfloat cost = vmin(one - covariance / root, one);
        cost = n > 0.5f * full ? cost : one;  // of a NaN too
        for (int b = 0; b < n_best; ++b) {
          const vfloat better = vmin(found[b], cost);
          cost = vmax(found[b], cost);
          found[b] = better;
        }
      }
      vfloat total = zero;
      for (int b = 0; b < n_best; ++b) total += found[b];
      const vfloat average = n_best ? total / (float)n_best : one;
      for (int k = 0; k < count; ++k) costs[(size_t)y * width + x + k] = textured[k] ? average[k] : 1.0f;
    }
  });
}
