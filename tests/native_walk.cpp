// One small walk through the CPU library - occupancy, march, field, render, backward - that prints what came out.
// test_arm.py compiles it for several processors (ARM runs under qemu) and compares the lines; see there.
#define NERF_SOURCE_HASH "walk"
#include "cpu.cpp"

#include <cmath>
#include <cstdio>

static u32 seed = 1;
static float draw() {  // [0, 1), the same everywhere
  seed = seed * 1664525u + 1013904223u;
  return (float)(seed >> 8) * (1.0f / 16777216.0f);
}

static void print_bits(const char* name, const std::vector<float>& values) {  // FNV-1a: equal to the bit or not
  unsigned long long hash = 1469598103934665603ull;
  const unsigned char* bytes = (const unsigned char*)values.data();
  for (size_t i = 0; i < values.size() * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 1099511628211ull;
  std::printf("bits %s %zu %016llx\n", name, values.size(), hash);
}

static void print_sums(const char* name, const std::vector<float>& values) {
  double weighted = 0, norm = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    weighted += values[i] * std::sin(0.37 * (double)i + 1.0);
    norm += (double)values[i] * values[i];
  }
  std::printf("sums %s %.9g %.9g\n", name, weighted, norm);
}

int main() {
  const int R = 64, n = 500;
  std::printf("lanes %d\n", nerf_lanes());
  std::vector<unsigned char> occupied(R * R * R);
  for (auto& cell : occupied) cell = draw() < 0.2f;
  std::vector<u32> fine(occupied.size() / 32), coarse(occupied.size() / 64 / 32 + 1);
  nerf_pack_occupancy(occupied.data(), 1, R, fine.data(), coarse.data());

  std::vector<float> jitter(n), rays_o(3 * n), rays_d(3 * n), t_near(n, 0.0f), t_far(n);
  nerf_jitter(7, 3, n, jitter.data());
  for (int i = 0; i < n; ++i) {
    float length = 0;
    for (int a = 0; a < 3; ++a) {
      rays_o[3 * i + a] = 1.6f * draw() - 0.8f;
      rays_d[3 * i + a] = draw() - 0.5f;
      length += rays_d[3 * i + a] * rays_d[3 * i + a];
    }
    for (int a = 0; a < 3; ++a) rays_d[3 * i + a] /= std::sqrt(length);
    t_far[i] = 0.2f + draw();
  }
  std::vector<float> colors(3 * n), opacities(n), depths(n), medians(n), moments(n), distortions(n);
  RenderDesc r{};
  r.grid = {fine.data(), coarse.data(), (u32)R, 1};
  r.march = {0.01f, 0.0f, 0.01f};
  r.stop_threshold = 1e-4f;
  r.n_rays = n;
  r.n_threads = 2;
  r.rays_o = rays_o.data(), r.rays_d = rays_d.data(), r.viewdirs = rays_d.data();
  r.t_near = t_near.data(), r.t_far = t_far.data(), r.jitter = jitter.data();
  r.colors = colors.data(), r.opacities = opacities.data(), r.depths = depths.data();
  r.median_depths = medians.data(), r.second_moments = moments.data(), r.distortions = distortions.data();

  std::vector<long long> starts(n), counts(n);
  nerf_march(&r, starts.data(), counts.data(), nullptr, nullptr, nullptr);
  long long total = 0;
  for (int i = 0; i < n; ++i) starts[i] = total, total += counts[i];
  std::vector<float> t_starts(total), t_ends(total);
  std::vector<long long> ray_indices(total);
  nerf_march(&r, starts.data(), nullptr, t_starts.data(), t_ends.data(), ray_indices.data());
  print_bits("jitter", jitter);
  print_bits("t_starts", t_starts);
  print_bits("t_ends", t_ends);

  FieldDesc f{};
  f.n_levels = 8, f.n_features = 4, f.width = 32, f.n_density_layers = 2, f.n_color_layers = 2, f.density_bias = 2;
  u32 rows = 0;
  for (int l = 0; l < f.n_levels; ++l) {
    const float scale = 16.0f * std::pow(1.5f, (float)l) - 1.0f;
    const u32 side = (u32)std::ceil(scale) + 1, dense = (side * side * side + 7) / 8 * 8;
    f.levels[l] = {scale, side, dense > 65536u ? 65536u : dense, rows, dense > 65536u};
    rows += f.levels[l].rows;
  }
  std::vector<float> table(rows * 4), weights[4], grad_weights[4], grad_table(rows * 4);
  for (auto& value : table) value = draw() - 0.5f;
  const int outputs[4] = {32, 16, 32, 3};
  for (int k = 0; k < 4; ++k) {
    weights[k].resize(outputs[k] * 32);
    grad_weights[k].resize(outputs[k] * 32);
    for (auto& value : weights[k]) value = 0.8f * (draw() - 0.5f);
  }
  f.table = table.data();
  f.density_weights[0] = weights[0].data(), f.density_weights[1] = weights[1].data();
  f.color_weights[0] = weights[2].data(), f.color_weights[1] = weights[3].data();
  std::vector<float> sigmas(n), rgbs(3 * n);
  nerf_field_forward(&f, rays_o.data(), rays_d.data(), n, sigmas.data(), rgbs.data(), 2);
  print_sums("sigmas", sigmas);
  print_sums("rgbs", rgbs);

  long long statistics[8] = {};
  void* context = nerf_render_forward(&f, &r, 1, statistics);
  print_sums("colors", colors);
  print_sums("opacities", opacities);
  print_sums("depths", depths);
  print_sums("median_depths", medians);
  print_sums("distortions", distortions);

  std::vector<float> ones(3 * n, 1.0f), grad_o(3 * n), grad_d(3 * n), grad_view(3 * n);
  RenderGrads g{};
  g.colors = g.opacities = g.depths = g.second_moments = g.distortions = ones.data();
  g.table = grad_table.data();
  g.density_weights[0] = grad_weights[0].data(), g.density_weights[1] = grad_weights[1].data();
  g.color_weights[0] = grad_weights[2].data(), g.color_weights[1] = grad_weights[3].data();
  g.rays_o = grad_o.data(), g.rays_d = grad_d.data(), g.viewdirs = grad_view.data();
  nerf_render_backward(context, &f, &r, &g);
  nerf_render_free(context);
  print_sums("grad_table", grad_table);
  for (auto& grad : grad_weights) print_sums("grad_weights", grad);
  print_sums("grad_rays_o", grad_o);
  print_sums("grad_rays_d", grad_d);
  print_sums("grad_viewdirs", grad_view);
}
