// The backward pass of the GPU's field, from the gradients of the kept samples' logits (see composite_backward) to those of
// the networks, the table and the rays. Gradients travel through the networks in their precision, scaled by a power of two
// that the largest of them decides (loss scaling without a setting): the largest becomes 64 to 128, which leaves a factor of
// 500 above, and 31 binary orders below.
#include "cuda_fixed.h"
#include "cuda_net.h"
#include "cuda_samples.h"
#include "space.h"

NERF_FN float gradient_scale(const u32* largest_bits) {
#if NERF_SINGLE
  return 1.0f;
#else
  const u32 bits = *largest_bits;
  if (bits == 0) return 1.0f;
  const int exponent = (int)(bits >> 23) - 127, wanted = 6 - exponent;
  const int bounded = wanted > 120 ? 120 : (wanted < -120 ? -120 : wanted);
  return bits_float((u32)(bounded + 127) << 23);
#endif
}

struct BackwardArgs {
  KeptSamples kept;
  const Pair* sh;             // [n_rays, 8]
  const Operand *forward, *backward;
  const float4* grads;        // [capacity]
  const u32* largest_bits;
  Element* grad_features;     // [levels, capacity, F], scaled
  float* grad_sh;             // [n_rays, 16], or [capacity, 16] when by_sample; added to; null: not wanted
  int by_sample;
  float* partials;            // [blocks, gradients_before(N_LAYERS)], scaled
};

static const int ROWS = 16 * WARPS;  // samples of a block at a time
static const int WIDEST = WIDTH > ENCODED ? (WIDTH > 32 ? WIDTH : 32) : (ENCODED > 32 ? ENCODED : 32);
static const int STRIDE = WIDEST + 8;  // of the staged rows: 16-byte aligned, and lanes of a column fall on different banks

NERF_CONSTEXPR int ceil_div(int a, int b) { return (a + b - 1) / b; }
// 16x16 tiles of a layer's weight gradient that one warp sums up.
NERF_CONSTEXPR int tiles_of_warp(int l) { return ceil_div(layer_inputs(l) / 16 * (layer_outputs(l) / 16), WARPS); }

// This warp's 16 rows of an operand a [16, 16 K] into shared memory [ROWS, STRIDE].
template <int K>
NERF_FN void stage_rows(const Pair (*a)[4], Element* rows) {
  const int g = lane_index() >> 2, t = lane_index() & 3;
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *(Pair*)(rows + (16 * warp_index() + g + 8 * (i & 1)) * STRIDE + 16 * k + 8 * (i >> 1) + 2 * t) = a[k][i];
}

// Tiles of the layers before l, in the one array of sums that a warp keeps in registers until the kernel ends.
NERF_CONSTEXPR int tiles_before(int l) {
  int n = 0;
  for (int k = 0; k < l; ++k) n += tiles_of_warp(k);
  return n;
}
typedef float WeightSums[tiles_before(N_LAYERS)][2][4];

// dW [out, in] += grad^T x over the block's samples, all of whose warps give their 16 rows; every warp sums its own tiles.
template <int LAYER, int K_OUT, int K_IN>
NERF_FN void add_weight_gradients_all(const Pair (*grad)[4], const Pair (*x)[4], Element* shared, WeightSums& sums) {
  Element *grads = shared, *inputs = shared + ROWS * STRIDE;
  sync_block();  // some warp may still read the layer before
  stage_rows<K_OUT>(grad, grads);
  stage_rows<K_IN>(x, inputs);
  sync_block();
#pragma unroll
  for (int i = 0; i < tiles_of_warp(LAYER); ++i) {
    const int tile = warp_index() + i * WARPS, row = tile / K_IN, column = tile % K_IN;
    if (tile >= K_OUT * K_IN) continue;
    float(*sum)[4] = sums[tiles_before(LAYER) + i];
    for (int k = 0; k < ROWS / 16; ++k) {
      Pair a[4], b[4];
      load_block_all(grads + 16 * k * STRIDE + 16 * row, STRIDE, a);
      load_block_all(inputs + 16 * k * STRIDE + 16 * column, STRIDE, b);
      const Pair left[2] = {b[0], b[2]}, right[2] = {b[1], b[3]};
      mma_all(sum[0], a, left);
      mma_all(sum[1], a, right);
    }
  }
}

template <int LAYER>
NERF_FN void write_weight_gradients(const WeightSums& sums, float* partial) {
  const int g = lane_index() >> 2, t = lane_index() & 3, steps = layer_inputs(LAYER) / 16;
#pragma unroll
  for (int i = 0; i < tiles_of_warp(LAYER); ++i) {
    const int tile = warp_index() + i * WARPS;
    if (tile >= steps * (layer_outputs(LAYER) / 16)) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int output = 16 * (tile / steps) + g + ((j & 2) ? 8 : 0);
      const int column = 16 * (tile % steps) + 8 * (j >> 2) + 2 * t + (j & 1);
      if (output < real_outputs(LAYER))
        partial[gradients_before(LAYER) + output * layer_inputs(LAYER) + (LAYER == 0 ? feature_of_column(column) : column)] =
            sums[tiles_before(LAYER) + i][j >> 2][j & 3];
    }
  }
  if constexpr (LAYER + 1 < N_LAYERS) write_weight_gradients<LAYER + 1>(sums, partial);
}

// Gradients in front of a ReLU from those behind it, as the next operand.
NERF_FN void through_relu(const float (*c)[4], const Pair (*h)[4], Pair (*grad)[4]) {
#pragma unroll
  for (int k = 0; k < WIDTH_STEPS; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* from = c[2 * k + (i >> 1)] + 2 * (i & 1);
      float a, b;
      get_pair(h[k][i], &a, &b);
      set_pair(grad[k][i], a > 0.0f ? from[0] : 0.0f, b > 0.0f ? from[1] : 0.0f);
    }
}

// Layers I .. 0 of the network of N layers that begins with layer FIRST and has 16 K inputs x, given the gradient of layer I's
// output; adds to the weights' gradients and leaves that of x in c [16, 16 K].
template <int FIRST, int N, int K, int I>
NERF_FN void network_backward_all(const Pair (*grad)[4], const Pair (*x)[4], const Hidden<N>& hidden, const Operand* weights,
                                  Element* shared, WeightSums& sums, float (*c)[4]) {
  constexpr int K_OUT = layer_outputs(FIRST + I) / 16;
  constexpr int at = weights_before(FIRST + I) / 4;
  const Operand* w = weights + at;
  if constexpr (I == 0) {
    add_weight_gradients_all<FIRST, K_OUT, K>(grad, x, shared, sums);
    multiply_all<K_OUT, 2 * K>(grad, w, c);
  } else {
    add_weight_gradients_all<FIRST + I, K_OUT, WIDTH_STEPS>(grad, hidden.h[I - 1], shared, sums);
    float behind[2 * WIDTH_STEPS][4];
    Pair next[WIDTH_STEPS][4];
    multiply_all<K_OUT, 2 * WIDTH_STEPS>(grad, w, behind);
    through_relu(behind, hidden.h[I - 1], next);
    network_backward_all<FIRST, N, K, I - 1>(next, x, hidden, weights, shared, sums, c);
  }
}

KERNEL(field_backward, BackwardArgs, 32 * WARPS) {
  Element* shared = (Element*)shared_memory();
  const int in_tiles = 2 * ROWS * STRIDE * (int)sizeof(Element);
  const Operand* forward = stage_operands(args.forward, N_OPERANDS, shared_memory() + in_tiles);
  const Operand* backward =
      stage_operands(args.backward, N_OPERANDS, shared_memory() + in_tiles + N_OPERANDS * (int)sizeof(Operand));
  const int g = lane_index() >> 2, t = lane_index() & 3, capacity = args.kept.capacity;
  const int n = *args.kept.n < capacity ? *args.kept.n : capacity, n_tiles = ceil_div(n, ROWS);
  const float scale = gradient_scale(args.largest_bits);
  WeightSums sums;
#pragma unroll
  for (int i = 0; i < tiles_before(N_LAYERS); ++i)
    for (int j = 0; j < 8; ++j) sums[i][j >> 2][j & 3] = 0.0f;

  for (int tile = block_index(); tile < n_tiles; tile += block_count()) {
    int rows[2], rays[2];
    float4 grads[2];
    Pair x[ENCODED_STEPS][4], c[2][4];
    for (int half = 0; half < 2; ++half) {
      const int k = tile * ROWS + 16 * warp_index() + g + 8 * half;
      rows[half] = k < n ? k : -1;
      rays[half] = k < n ? args.kept.links[k].x : -1;
      grads[half] = k < n ? args.grads[k] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int s = 0; s < ENCODED_STEPS; ++s) {
        zero_pair(x[s][half]);
        zero_pair(x[s][2 + half]);
        if (k < n) {
          const Operand both = ((const Operand*)args.kept.features)[(size_t)k * (ENCODED / 4) + 4 * s + t];
          x[s][half] = both.b[0], x[s][2 + half] = both.b[1];
        }
      }
    }
    // Hidden activations are computed again: storing them would take more memory traffic than this takes time.
    Hidden<N_DENSITY> density;
    Hidden<N_COLOR> color;
    float geo[2][4];
    hidden_layers_all<ENCODED_STEPS, N_DENSITY, 0>(x, forward, density);
    last_layer_all<ENCODED_STEPS, N_DENSITY, 0, 2>(x, forward, density, geo);
    color_inputs(args.sh, rays[0], rays[1], geo, c);
    hidden_layers_all<2, N_COLOR, N_DENSITY>(c, forward, color);

    Pair grad[1][4];  // of the colours' logits: columns 0 and 1 are with t = 0, column 2 with t = 1
    for (int half = 0; half < 2; ++half) {
      const float4 at = grads[half];
      zero_pair(grad[0][2 + half]);
      set_pair(grad[0][half], t == 0 ? at.x * scale : (t == 1 ? at.z * scale : 0.0f), t == 0 ? at.y * scale : 0.0f);
    }
    float grad_c[4][4];  // columns 0-15: spherical harmonics, 16-31: geometry features
    network_backward_all<N_DENSITY, N_COLOR, 2, N_COLOR - 1>(grad, c, color, backward, shared, sums, grad_c);
    if (args.grad_sh)
      for (int j = 0; j < 8; ++j) {
        const int to = args.by_sample ? rows[(j >> 1) & 1] : rays[(j >> 1) & 1];
        if (to >= 0) atomic_add(args.grad_sh + (size_t)to * 16 + 8 * (j >> 2) + 2 * t + (j & 1), grad_c[j >> 2][j & 3] / scale);
      }
    if (t == 0) {
      grad_c[2][0] += grads[0].w * scale;
      grad_c[2][2] += grads[1].w * scale;
    }
    to_operand<1, false>(grad_c + 2, grad);
    float grad_x[2 * ENCODED_STEPS][4];
    network_backward_all<0, N_DENSITY, ENCODED_STEPS, N_DENSITY - 1>(grad, x, density, backward, shared, sums, grad_x);
#pragma unroll
    for (int s = 0; s < ENCODED_STEPS; ++s)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (rows[half] < 0) continue;
        const int level = LEVELS_PER_STEP * s + LEVELS_PER_LANE * t;
        Operand both;  // features 16 s + 4 t .. 4 t + 3
        set_pair(both.b[0], grad_x[2 * s][2 * half], grad_x[2 * s][2 * half + 1]);
        set_pair(both.b[1], grad_x[2 * s + 1][2 * half], grad_x[2 * s + 1][2 * half + 1]);
#if NERF_FEATURES == 4
        ((Operand*)args.grad_features)[(size_t)level * capacity + rows[half]] = both;
#else
        ((Pair*)args.grad_features)[(size_t)level * capacity + rows[half]] = both.b[0];
        ((Pair*)args.grad_features)[(size_t)(level + 1) * capacity + rows[half]] = both.b[1];
#endif
      }
  }
  write_weight_gradients<0>(sums, args.partials + (size_t)block_index() * gradients_before(N_LAYERS));
}

// ---- the networks' gradients: blocks' sums in a fixed order -----------------------------------------------------------------

struct ReduceArgs {
  const float* partials;  // [n_blocks, gradients_before(N_LAYERS)]
  const u32* largest_bits;
  float* grads;           // [gradients_before(N_LAYERS)]: layer after layer, each [out, in]
  int n_blocks;
};

KERNEL(reduce_weights, ReduceArgs, 64) {
  const int i = block_index() * block_size() + thread_index();
  if (i >= gradients_before(N_LAYERS)) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int b = 0; b < args.n_blocks; ++b) sum += args.partials[(size_t)b * gradients_before(N_LAYERS) + i];
  args.grads[i] = sum / gradient_scale(args.largest_bits);
}

// ---- the table's gradient: one thread per sample and level, level after level -------------------------------------------------

struct ScatterArgs {
  FieldDesc field;
  KeptSamples kept;
  const Element* grad_features;
  const u32* largest_bits;
  float* grad_table;         // [rows, F], added to
  long long* sums;           // [rows, F] the scaled gradient's (cuda_fixed.h); null: straight into grad_table
  const float* fixed_scale;  // [1]
  long long n_numbers;       // rows * F
};

// Gradient of the features of one level, unscaled.
NERF_FN void load_feature_gradient(const Element* grad_features, size_t at, float to_one, float* out) {
#pragma unroll
  for (int f = 0; f < NERF_FEATURES; f += 2) {
    get_pair(((const Pair*)grad_features)[at * (NERF_FEATURES / 2) + f / 2], out + f, out + f + 1);
    out[f] *= to_one, out[f + 1] *= to_one;
  }
}

KERNEL(scatter_table, ScatterArgs, 256) {
  const int capacity = args.kept.capacity, level = block_row();
  const int n = *args.kept.n < capacity ? *args.kept.n : capacity;
  const float to_one = args.sums ? 1.0f : 1.0f / gradient_scale(args.largest_bits);
  const float fixed_scale = args.sums ? *args.fixed_scale : 1.0f;
  for (int k = block_index() * block_size() + thread_index(); k < n; k += block_count() * block_size()) {
    const float4 at = args.kept.unit_positions[k];
    const float unit[3] = {at.x, at.y, at.z};
    float grad[NERF_FEATURES];
    load_feature_gradient(args.grad_features, (size_t)level * capacity + k, to_one, grad);
    bool any = false;  // a row whose gradient is zero must stay untouched by the optimiser, and costs nothing
#pragma unroll
    for (int f = 0; f < NERF_FEATURES; ++f) any |= grad[f] != 0.0f;
    if (!any) continue;
    Corners<3> c;
    find_corners<3>(unit, args.field.levels[level], c);
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) {
      float row[NERF_FEATURES];
#pragma unroll
      for (int f = 0; f < NERF_FEATURES; ++f) row[f] = c.weight[corner] * grad[f];
      const size_t first = (size_t)c.row[corner] * NERF_FEATURES;
      if (args.sums) add_fixed_row<NERF_FEATURES>(args.sums + first, args.grad_table + first, fixed_scale, row);
      else atomic_add_row<NERF_FEATURES>(args.grad_table + first, row);
    }
  }
}

KERNEL(add_table_sums, ScatterArgs, 256) {
  const float to_one = 1.0f / gradient_scale(args.largest_bits), unit = 1.0f / *args.fixed_scale;
  const long long i = (long long)block_index() * block_size() + thread_index();
  if (i < args.n_numbers && args.sums[i]) args.grad_table[i] += (float)args.sums[i] * unit * to_one;
}

// ---- gradients of the rays ----------------------------------------------------------------------------------------------------

struct RayGradientArgs {
  FieldDesc field;
  KeptSamples kept;
  const Element* grad_features;
  const u32* largest_bits;
  const float *rays_o_in, *rays_d_in, *viewdirs;  // [n, 3]
  const float* grad_sh;                           // [n, 16]
  float *rays_o, *rays_d, *grad_viewdirs;         // [n, 3], added to; rays_o, rays_d [capacity, 3] when by_sample
  int n_rays;
  int by_sample;
};

KERNEL(ray_gradients, RayGradientArgs, 256) {
  const int capacity = args.kept.capacity;
  const int n = *args.kept.n < capacity ? *args.kept.n : capacity;
  const float to_one = 1.0f / gradient_scale(args.largest_bits);
  for (int k = block_index() * block_size() + thread_index(); k < n; k += block_count() * block_size()) {
    const float4 at = args.kept.unit_positions[k];
    const float unit[3] = {at.x, at.y, at.z}, t_mid = args.kept.intervals[k].x;
    const int ray = args.kept.links[k].x;
    float grad_unit[3] = {0.0f, 0.0f, 0.0f};
    for (int l = 0; l < NERF_LEVELS; ++l) {
      float grad[NERF_FEATURES];
      load_feature_gradient(args.grad_features, (size_t)l * capacity + k, to_one, grad);
      Corners<3> c;
      find_corners<3>(unit, args.field.levels[l], c);
#pragma unroll
      for (int corner = 0; corner < 8; ++corner) {
        float row[NERF_FEATURES], value = 0.0f;
        load_row<NERF_FEATURES>(args.field.table, c.row[corner], row);
        for (int f = 0; f < NERF_FEATURES; ++f) value += row[f] * grad[f];
        for (int a = 0; a < 3; ++a) grad_unit[a] += args.field.levels[l].scale * corner_slope<3>(c, corner, a) * value;
      }
    }
    float x[3], grad_x[3];
    for (int a = 0; a < 3; ++a) x[a] = f_fma(t_mid, args.rays_d_in[3 * ray + a], args.rays_o_in[3 * ray + a]);
    scene_to_unit_backward(x, args.field.contracted, grad_unit, grad_x);
    const size_t to = 3 * (size_t)(args.by_sample ? k : ray);
    for (int a = 0; a < 3; ++a) {
      atomic_add(args.rays_o + to + a, grad_x[a]);
      atomic_add(args.rays_d + to + a, t_mid * grad_x[a]);
    }
  }
}

struct SumArgs {
  KeptSamples kept;
  const float* values;  // [capacity, columns]
  float* out;           // [n_rays, columns]
  int columns, n_rays;
};

// What samples have, summed along their rays from the last to the first: one thread per ray and column.
KERNEL(sum_samples, SumArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i >= args.n_rays * args.columns) return;
  float sum = 0.0f;
  for (int k = args.kept.last_samples[i / args.columns]; k >= 0; k = args.kept.links[k].y)
    sum += args.values[(size_t)k * args.columns + i % args.columns];
  args.out[i] = sum;
}

KERNEL(direction_gradients, RayGradientArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i >= args.n_rays) return;
  const float* d = args.viewdirs + 3 * i;
  sh4_backward(d[0], d[1], d[2], args.grad_sh + (size_t)16 * i, args.grad_viewdirs + 3 * i);
}
