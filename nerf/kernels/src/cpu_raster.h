// Which triangle is nearest at every pixel centre of a picture: a z-buffer.
#pragma once
#include <cmath>
#include <vector>

#include "cpu_threads.h"

// In weights: a pixel centre this near an edge counts for both sides, so that rounding opens no hole.
static const double TOUCH = 1e-5;

// uv [v, 2]: corners in OpenCV pixels; z [v]: depths along the optical axis; faces [f, 3]. nearest [h * w]: the face, -1
// where there is none. Along a triangle 1/z is linear in the picture. Of equal depths the first face wins; a triangle
// that reaches behind the camera, or is seen edge-on, is left out.
static void rasterise(const double* uv, const double* z, const int* faces, int n_faces, int width, int height, int* nearest,
                      int n_threads) {
  const int rows = 64, n_bands = (height + rows - 1) / rows;
  // Each band of rows meets the faces that reach it, in their order: one result for any number of threads.
  std::vector<std::vector<int>> faces_of(n_bands);
  for (int f = 0; f < n_faces; ++f) {
    double low = 1e300, high = -1e300;
    bool ahead = true;
    for (int k = 0; k < 3; ++k) {
      const size_t v = (size_t)faces[3 * (size_t)f + k];
      ahead = ahead && z[v] > 0.0;
      low = uv[2 * v + 1] < low ? uv[2 * v + 1] : low;
      high = uv[2 * v + 1] > high ? uv[2 * v + 1] : high;
    }
    if (!ahead || !(high - low < 1e9) || high < 0.0 || low > height) continue;
    const int first = low > 0.0 ? (int)low / rows : 0;
    const int last = high < height ? (int)high / rows : n_bands - 1;
    for (int b = first; b <= last && b < n_bands; ++b) faces_of[b].push_back(f);
  }
  parallel_for(n_bands, n_threads, [&](int band) {
    const int top = band * rows, bottom = top + rows < height ? top + rows : height;
    std::vector<double> closest((size_t)(bottom - top) * width, 0.0);  // 1/z
    for (int i = top * width; i < bottom * width; ++i) nearest[i] = -1;
    for (int f : faces_of[band]) {
      const int* corner = faces + 3 * (size_t)f;
      const double *a = uv + 2 * (size_t)corner[0], *b = uv + 2 * (size_t)corner[1], *c = uv + 2 * (size_t)corner[2];
      const double area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
      if (!(std::fabs(area) > 1e-12)) continue;
      const double low[2] = {std::fmin(a[0], std::fmin(b[0], c[0])), std::fmin(a[1], std::fmin(b[1], c[1]))};
      const double high[2] = {std::fmax(a[0], std::fmax(b[0], c[0])), std::fmax(a[1], std::fmax(b[1], c[1]))};
      if (!(high[0] - low[0] < 1e9) || high[0] < 0.0 || low[0] > width) continue;
      const int x0 = (int)std::fmax(std::ceil(low[0] - 0.5), 0.0), y0 = (int)std::fmax(std::ceil(low[1] - 0.5), (double)top);
      const int x1 = (int)std::fmin(std::floor(high[0] - 0.5), width - 1.0);
      const int y1 = (int)std::fmin(std::floor(high[1] - 0.5), bottom - 1.0);
      // Weight of corner k at (x, y): start[k] + (x - x0) right[k] + (y - y0) down[k].
      const double right[2] = {(b[1] - c[1]) / area, (c[1] - a[1]) / area};
      const double down[2] = {(c[0] - b[0]) / area, (a[0] - c[0]) / area};
      const double px = x0 + 0.5, py = y0 + 0.5;
      const double start[2] = {((b[0] - px) * (c[1] - py) - (b[1] - py) * (c[0] - px)) / area,
                               ((c[0] - px) * (a[1] - py) - (c[1] - py) * (a[0] - px)) / area};
      const double inverse[3] = {1.0 / z[corner[0]], 1.0 / z[corner[1]], 1.0 / z[corner[2]]};
      for (int y = y0; y <= y1; ++y)
        for (int x = x0; x <= x1; ++x) {
          const double u = start[0] + (x - x0) * right[0] + (y - y0) * down[0];
          const double v = start[1] + (x - x0) * right[1] + (y - y0) * down[1];
          if (u < -TOUCH || v < -TOUCH || u + v > 1.0 + TOUCH) continue;
          const double near = u * inverse[0] + v * inverse[1] + (1.0 - u - v) * inverse[2];
          const size_t at = (size_t)(y - top) * width + x;
          if (near > closest[at]) {
            closest[at] = near;
            nearest[(size_t)y * width + x] = f;
          }
        }
    }
  });
}
