// Outlines let fall, one after the other, to where each lies lowest on the skyline of those before it.
#pragma once
#include <algorithm>
#include <vector>

// Outline i covers widths[i] columns and stands in each from bottoms to tops, [starts[i], starts[i] + widths[i]). They
// fall in the `order` [n] given, onto n_columns columns as high as they are many. places [n, 2]: the first column and
// the height above 0 of each; of places that are as low the first. Returns whether all fit.
static bool drop_outlines(const int* bottoms, const int* tops, const long long* starts, const int* widths, const int* order,
                          int n, int n_columns, int* places) {
  std::vector<int> skyline(n_columns, 0), rests(n_columns);
  for (int k = 0; k < n; ++k) {
    const int i = order[k], width = widths[i], n_rests = n_columns - width + 1;
    const int *low = bottoms + starts[i], *high = tops + starts[i];
    if (n_rests < 1) return false;
    std::fill(rests.begin(), rests.begin() + n_rests, 0);
    int* __restrict rest = rests.data();
    for (int c = 0; c < width; ++c) {
      const int *at = skyline.data() + c, bottom = low[c];
      for (int x = 0; x < n_rests; ++x) rest[x] = std::max(rest[x], at[x] - bottom);
    }
    const int x = (int)(std::min_element(rest, rest + n_rests) - rest), y = rest[x];
    for (int c = 0; c < width; ++c) {
      if (y + high[c] > n_columns) return false;
      skyline[x + c] = std::max(skyline[x + c], y + high[c]);
    }
    places[2 * i] = x;
    places[2 * i + 1] = y;
  }
  return true;
}
