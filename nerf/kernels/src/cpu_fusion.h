// Depth maps fused into one signed distance (Curless and Levoy 1996): at every point a weighted mean over the views.
#pragma once
#include <cmath>

#include "cpu_threads.h"

struct DepthView {           // a pinhole camera and its depth map
  float camera_from_scene[12];  // row-major [3, 4]; x right, y down, z ahead
  float fx, fy, cx, cy;         // pixels; the first pixel's centre is at (0.5, 0.5)
  int width, height;
  const float* depths;   // [height, width] along z; infinity where the ray hits nothing, NaN: no say
  const float* weights;  // [height, width] of each pixel's say
};

// points [n, 3] -> distances [n] in units of `front`, above 0 before the surface, and the weights [n] that stand behind
// them: 0 where every view has the point far behind its surface, -1 where it is in no picture. supports [n]: how many views
// see a surface within `front` of the point, whatever their pixels weigh, those that have it behind theirs less.
// scales [n]: times what `front` and `back` are at each point; null: 1.
static void fuse_depths(const float* points, const float* scales, long long n, const DepthView* views, int n_views,
                        float front_unit, float back_unit, float* distances, float* weights, float* supports,
                        int n_threads) {
  const int chunk = 512;
  const long long n_chunks = (n + chunk - 1) / chunk;
  parallel_for((int)n_chunks, n_threads, [&](int task) {
    const long long first = (long long)task * chunk;
    const int count = (int)(n - first < chunk ? n - first : chunk);
    float x[chunk], y[chunk], z[chunk], total[chunk], weight[chunk], support[chunk], front[chunk], back[chunk];
    float s[chunk], t[chunk], ahead[chunk], stretch[chunk];
    int inside[chunk], pictured[chunk], upper_left[chunk], upper_right[chunk], lower_left[chunk], lower_right[chunk];
    for (int i = 0; i < count; ++i) {
      const float* p = points + 3 * (first + i);
      x[i] = p[0], y[i] = p[1], z[i] = p[2];
      total[i] = weight[i] = support[i] = 0.0f;
      front[i] = scales ? front_unit * scales[first + i] : front_unit;
      back[i] = scales ? back_unit * scales[first + i] : back_unit;
      pictured[i] = 0;
    }
    for (int k = 0; k < n_views; ++k) {
      const float* m = views[k].camera_from_scene;
      const float fx = views[k].fx, fy = views[k].fy, cx = views[k].cx, cy = views[k].cy;
      const int w = views[k].width, h = views[k].height;
      const float *depths = views[k].depths, *pixel_weights = views[k].weights;
      // Loops without branches over arrays: each of them is vectorised, the second one as gathers.
      for (int i = 0; i < count; ++i) {
        const float d = m[8] * x[i] + m[9] * y[i] + m[10] * z[i] + m[11], inverse = 1.0f / d;
        const float right = (m[0] * x[i] + m[1] * y[i] + m[2] * z[i] + m[3]) * inverse;
        const float down = (m[4] * x[i] + m[5] * y[i] + m[6] * z[i] + m[7]) * inverse;
        const float u = fx * right + cx, v = fy * down + cy;
        inside[i] = (int)(d > 0.0f) & (int)(u >= 0.0f) & (int)(v >= 0.0f) & (int)(u < w) & (int)(v < h);
        const float px = f_clamp(u - 0.5f, 0.0f, w - 1.0f), py = f_clamp(v - 0.5f, 0.0f, h - 1.0f);
        const int x0 = (int)px, y0 = (int)py, below = y0 < h - 1 ? w : 0;
        s[i] = px - x0;
        t[i] = py - y0;
        ahead[i] = d;
        stretch[i] = std::sqrt(1.0f + right * right + down * down);  // of a length along z, along the ray
        upper_left[i] = y0 * w + x0;
        upper_right[i] = upper_left[i] + (x0 < w - 1 ? 1 : 0);
        lower_left[i] = upper_left[i] + below;
        lower_right[i] = upper_right[i] + below;
      }
      for (int i = 0; i < count; ++i) {
        const float a = depths[upper_left[i]], b = depths[upper_right[i]];
        const float c = depths[lower_left[i]], d = depths[lower_right[i]];
        // Linear between the four centres around where they lie on one surface, else the nearest one's.
        const float low = f_min(f_min(a, b), f_min(c, d)), high = f_max(f_max(a, b), f_max(c, d));
        const int upper = s[i] < 0.5f ? upper_left[i] : upper_right[i], lower = s[i] < 0.5f ? lower_left[i] : lower_right[i];
        const int nearest = t[i] < 0.5f ? upper : lower;
        const float between = (a + s[i] * (b - a)) * (1.0f - t[i]) + (c + s[i] * (d - c)) * t[i];
        const float depth = (int)(high - low < front[i]) & (int)(between == between) ? between : depths[nearest];
        const float before = (depth - ahead[i]) * stretch[i], behind = 1.0f + f_min(before, 0.0f) / back[i];
        const float counts = (int)(inside[i] != 0) & (int)(before > -back[i]) ? behind : 0.0f;  // not of a NaN
        const float say = counts * pixel_weights[nearest];
        pictured[i] |= inside[i];
        weight[i] += say;
        total[i] += say > 0.0f ? say * f_min(before / front[i], 1.0f) : 0.0f;
        support[i] += (int)(before < front[i]) & (int)(before > -front[i]) ? counts : 0.0f;
      }
    }
    for (int i = 0; i < count; ++i) {
      distances[first + i] = weight[i] > 0.0f ? total[i] / weight[i] : 0.0f;
      weights[first + i] = pictured[i] ? weight[i] : -1.0f;
      supports[first + i] = support[i];
    }
  });
}
