// The hash grid on its own, in floats: positions [n, D] -> features [n, L * F], and its gradients. NERF_DIMS and
// NERF_FEATURES are constants of the compilation.
#include "cuda_fixed.h"
#include "cuda_grid.h"
#include "field.h"

#if !defined(NERF_DIMS)
#define NERF_DIMS 3
#endif
#if !defined(NERF_FEATURES)
#define NERF_FEATURES 4
#endif
static const int D = NERF_DIMS, F = NERF_FEATURES;

struct GridArgs {
  const float* positions;  // [n, D]
  const float* table;      // [rows, F]
  float* out;              // [n, L * F]
  const float* grad_out;   // [n, L * F]
  float* grad_table;       // [rows, F], added to
  float* grad_positions;   // [n, D], written
  long long* sums;         // [rows, F] the table's gradient (cuda_fixed.h); null: straight into grad_table
  const float* fixed_scale;
  long long n_numbers;     // rows * F
  long long n;
  int n_levels;
  GridLevel levels[MAX_LEVELS];
};

KERNEL(encode, GridArgs, 256) {
  const long long i = (long long)block_index() * block_size() + thread_index();
  if (i >= args.n) return;
  const int level = block_row();
  float out[F];
  look_up<D, F>(args.positions + i * D, args.levels[level], args.table, out);
  store_row<F>(args.out + ((size_t)i * args.n_levels + level) * F, out);
}

KERNEL(scatter, GridArgs, 256) {
  const long long i = (long long)block_index() * block_size() + thread_index();
  if (i >= args.n) return;
  const int level = block_row();
  Corners<D> c;
  find_corners<D>(args.positions + i * D, args.levels[level], c);
  float grad[F];
  load_row<F>(args.grad_out + ((size_t)i * args.n_levels + level) * F, 0, grad);
#pragma unroll
  for (int corner = 0; corner < (1 << D); ++corner) {
    float row[F];
#pragma unroll
    for (int f = 0; f < F; ++f) row[f] = c.weight[corner] * grad[f];
    const size_t first = (size_t)c.row[corner] * F;
    if (args.sums) add_fixed_row<F>(args.sums + first, args.grad_table + first, *args.fixed_scale, row);
    else atomic_add_row<F>(args.grad_table + first, row);
  }
}

KERNEL(add_table_sums, GridArgs, 256) {
  const long long i = (long long)block_index() * block_size() + thread_index();
  if (i < args.n_numbers && args.sums[i]) args.grad_table[i] += (float)args.sums[i] * (1.0f / *args.fixed_scale);
}

KERNEL(position_gradients, GridArgs, 256) {
  const long long i = (long long)block_index() * block_size() + thread_index();
  if (i >= args.n) return;
  float sums[D];
#pragma unroll
  for (int d = 0; d < D; ++d) sums[d] = 0.0f;
  for (int l = 0; l < args.n_levels; ++l) {
    Corners<D> c;
    find_corners<D>(args.positions + i * D, args.levels[l], c);
    float grad[F];
    load_row<F>(args.grad_out + ((size_t)i * args.n_levels + l) * F, 0, grad);
#pragma unroll
    for (int corner = 0; corner < (1 << D); ++corner) {
      float row[F], value = 0.0f;
      load_row<F>(args.table, c.row[corner], row);
#pragma unroll
      for (int f = 0; f < F; ++f) value += row[f] * grad[f];
#pragma unroll
      for (int d = 0; d < D; ++d) sums[d] += args.levels[l].scale * corner_slope<D>(c, corner, d) * value;
    }
  }
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const float x = args.positions[i * D + d];
    args.grad_positions[i * D + d] = x >= 0.0f && x <= 1.0f ? sums[d] : 0.0f;  // the clamp's derivative
  }
}
