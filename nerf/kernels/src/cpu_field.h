// The field's networks on the CPU: chunks of 64 samples stay in the nearest caches through all layers.
#pragma once
#include <vector>

#include "cpu_gemm.h"
#include "cpu_hashgrid.h"
#include "field.h"
#include "sh.h"

static const int CHUNK = 64;
static const int MAX_WIDTH = 128;

// One bias-free network with ReLU between layers; the last layer's outputs are padded to 16 columns.
// `bf16`: its products read bfloat16 (8 bits of mantissa), which is faster and precise enough to learn with.
struct Mlp {
  int n_layers = 0;
  int dims[MAX_LAYERS + 1] = {};              // padded to 16 (inputs and widths already are)
  int outputs = 0;                            // true number of outputs
  bool bf16 = false;
  const float* forward_weights[MAX_LAYERS];   // [in, out_padded]
  const float* backward_weights[MAX_LAYERS];  // [out_padded, in]
  const u32* forward_pairs[MAX_LAYERS];       // [in / 2, out_padded]
  const u32* backward_pairs[MAX_LAYERS];      // [out_padded / 2, in]
  std::vector<float> storage;
  std::vector<u32> pair_storage;

  void pack(int layers, int in, int width, int out, const float* const* weights, bool is_bf16) {
    n_layers = layers;
    outputs = out;
    bf16 = is_bf16;
    size_t total = 0;
    for (int l = 0; l <= layers; ++l) dims[l] = l == 0 ? in : (l == layers ? (out + 15) / 16 * 16 : width);
    for (int l = 0; l < layers; ++l) total += 2 * (size_t)dims[l] * dims[l + 1];
    storage.assign(total, 0.0f);
    pair_storage.resize(total / 2);
    float* p = storage.data();
    u32* q = pair_storage.data();
    for (int l = 0; l < layers; ++l) {
      const int n_in = dims[l], n_out = dims[l + 1], real_out = l + 1 == layers ? out : width;
      const size_t size = (size_t)n_in * n_out;
      float *fw = p, *bw = p + size;
      for (int o = 0; o < real_out; ++o)
        for (int i = 0; i < n_in; ++i) fw[i * n_out + o] = bw[o * n_in + i] = weights[l][o * n_in + i];
      forward_weights[l] = fw;
      backward_weights[l] = bw;
#if defined(__AVX512F__)
      if (bf16) {
        forward_pairs[l] = Packed<Pair>::along_columns(fw, n_in, n_out, q);
        backward_pairs[l] = Packed<Pair>::along_columns(bw, n_out, n_in, q + size / 2);
      }
#endif
      p += 2 * size;
      q += size;
    }
  }

  // Number of weights, and where layer l's gradient [out_padded4, in] starts in a flat gradient buffer.
  int padded_out(int l) const { return l + 1 == n_layers ? (outputs + 3) / 4 * 4 : dims[l + 1]; }
  size_t grad_offset(int l) const {
    size_t at = 0;
    for (int k = 0; k < l; ++k) at += (size_t)padded_out(k) * dims[k];
    return at;
  }
  size_t grad_size() const { return grad_offset(n_layers); }
};

template <class E>
struct WeightsOf;
template <>
struct WeightsOf<Single> {
  static const float* forward(const Mlp& net, int l) { return net.forward_weights[l]; }
  static const float* backward(const Mlp& net, int l) { return net.backward_weights[l]; }
};
#if defined(__AVX512F__)
template <>
struct WeightsOf<Pair> {
  static const u32* forward(const Mlp& net, int l) { return net.forward_pairs[l]; }
  static const u32* backward(const Mlp& net, int l) { return net.backward_pairs[l]; }
};
#endif

// Activations of one chunk: layer[0] is the input, layer[n] the linear output. Row-major [CHUNK, dims[l]].
struct MlpChunk {
  alignas(64) float layer[MAX_LAYERS + 1][CHUNK * MAX_WIDTH];
};

// Runs the first `layers` of the network's layers, for whole sixteens of the chunk's rows.
template <class E>
static void mlp_forward_in(const Mlp& net, MlpChunk& a, int layers, int rows) {
  alignas(64) u32 room[CHUNK * MAX_WIDTH / 2];
  const int per_k = Packed<E>::PER_K;
  rows = (rows + 15) / 16 * 16;
  for (int l = 0; l < layers; ++l) {
    const int n_in = net.dims[l], n_out = net.dims[l + 1];
    const auto x = Packed<E>::along_rows(a.layer[l], rows * n_in, room);
    gemm<E>(rows, n_out, n_in / per_k, x, n_in / per_k, 1, WeightsOf<E>::forward(net, l), a.layer[l + 1], false,
            l + 1 < net.n_layers);
  }
}

// On entry grad holds dL/d(output) [CHUNK, dims[n]], rows past the last sample zero. On exit it holds dL/d(input) from its
// column `from` on, a multiple of 16: [CHUNK, dims[0] - from].
// dL/dW_l = dY^T X (added to grad_weights);  dX = dY W_l;  ReLU passes where its output was positive.
template <class E>
static void mlp_backward_in(const Mlp& net, const MlpChunk& a, float* grad, float* scratch, float* grad_weights, int from) {
  alignas(64) u32 rooms[3][CHUNK * MAX_WIDTH / 2];
  const int per_k = Packed<E>::PER_K;
  for (int l = net.n_layers - 1; l >= 0; --l) {
    const int n_in = net.dims[l], n_out = net.dims[l + 1];
    const auto dy_down = Packed<E>::along_columns(grad, CHUNK, n_out, rooms[0]);
    const auto x_down = Packed<E>::along_columns(a.layer[l], CHUNK, n_in, rooms[1]);
    const auto dy = Packed<E>::along_rows(grad, CHUNK * n_out, rooms[2]);
    gemm<E>(net.padded_out(l), n_in, CHUNK / per_k, dy_down, 1, n_out, x_down, grad_weights + net.grad_offset(l), true);
    const int skipped = l > 0 ? 0 : from, n_wanted = n_in - skipped;
    gemm<E>(CHUNK, n_wanted, net.padded_out(l) / per_k, dy, n_out / per_k, 1, WeightsOf<E>::backward(net, l) + skipped, scratch,
            false, false, n_in);
    if (l > 0)
      for (int i = 0; i < CHUNK * n_in; i += LANES) {
        const vint on = vload(a.layer[l] + i) > vset(0.0f);
        vstore(grad + i, (vfloat)((vint)vload(scratch + i) & on));
      }
    else
      std::memcpy(grad, scratch, sizeof(float) * CHUNK * n_wanted);
  }
}

static void mlp_forward(const Mlp& net, MlpChunk& a, int layers, int rows) {
  if (net.bf16) mlp_forward_in<Pair>(net, a, layers, rows);
  else mlp_forward_in<Single>(net, a, layers, rows);
}
static void mlp_forward(const Mlp& net, MlpChunk& a, int rows) { mlp_forward(net, a, net.n_layers, rows); }
static void mlp_backward(const Mlp& net, const MlpChunk& a, float* grad, float* scratch, float* grad_weights, int from) {
  if (net.bf16) mlp_backward_in<Pair>(net, a, grad, scratch, grad_weights, from);
  else mlp_backward_in<Single>(net, a, grad, scratch, grad_weights, from);
}

struct FieldNets {
  Mlp density, color;
  int n_in;
  explicit FieldNets(const FieldDesc& f) : n_in(f.n_levels * f.n_features) {
    const bool bf16 = f.table_half && has_bf16();
    density.pack(f.n_density_layers, n_in, f.width, GEO_FEATURES, f.density_weights, bf16);
    color.pack(f.n_color_layers, SH_FEATURES + GEO_FEATURES, f.width, 3, f.color_weights, bf16);
  }
};

// features [level][capacity][F] of n unit positions; coordinate arrays are padded to whole blocks.
template <class T>
static void encode_all_levels(const FieldDesc& f, const T* table, const float* const* unit, int n, float* features,
                              size_t capacity) {
  for (int l = 0; l < f.n_levels; ++l) {
    float* out = features + (size_t)l * capacity * f.n_features;
    if (f.n_features == 4) encode_level<3, 4, T>(unit, n, f.levels[l], table, out, 4);
    else encode_level<3, 2, T>(unit, n, f.levels[l], table, out, 2);
  }
}
static void encode_field(const FieldDesc& f, const float* const* unit, int n, float* features, size_t capacity) {
  if (f.table_half) encode_all_levels(f, f.table_half, unit, n, features, capacity);
  else encode_all_levels(f, f.table, unit, n, features, capacity);
}

// Copies a row of n numbers, a multiple of 16.
NERF_FN void copy_row(float* to, const float* from, int n) {
  for (int i = 0; i < n; i += LANES) vstore(to + i, vload(from + i));
}

// Rows [first, first + count) of level-major features into the network's input; missing rows of the chunk become zero.
static inline void gather_features(const FieldDesc& f, const float* features, size_t capacity, int first, int count,
                                   float* x) {
  const int F = f.n_features, n_in = f.n_levels * F;
  for (int l = 0; l < f.n_levels; ++l) {
    const float* from = features + ((size_t)l * capacity + first) * F;
    if (F == 4)
      for (int s = 0; s < count; ++s) *(row4_u*)(x + s * n_in + l * 4) = *(const row4_u*)(from + s * 4);
    else
      for (int s = 0; s < count; ++s) {
        x[s * n_in + l * 2] = from[s * 2];
        x[s * n_in + l * 2 + 1] = from[s * 2 + 1];
      }
  }
  if (count < CHUNK) std::memset(x + count * n_in, 0, sizeof(float) * (CHUNK - count) * n_in);
}

// sigma = exp(min(h[0] + bias, 15)) for the chunk's rows h [CHUNK, 16].
static inline void chunk_sigmas(const float* h, float bias, float* sigmas) {
  alignas(64) float logits[CHUNK];
  for (int s = 0; s < CHUNK; ++s) logits[s] = f_min(DENSITY_LOGIT_MAX, h[s * GEO_FEATURES] + bias);
  for (int s = 0; s < CHUNK; s += LANES) vstore(sigmas + s, vexp(vload(logits + s)));
}

// rgb = sigmoid(logits) for rows [CHUNK, 16] of which three columns count; packed [CHUNK, 3].
static inline void chunk_rgbs(const float* logits, float* rgbs) {
  alignas(64) float flat[CHUNK * 3];
  for (int s = 0; s < CHUNK; ++s)
    for (int c = 0; c < 3; ++c) flat[s * 3 + c] = logits[s * 16 + c];
  for (int i = 0; i < CHUNK * 3; i += LANES) vstore(rgbs + i, vset(1.0f) / (vset(1.0f) + vexp(-vload(flat + i))));
}
