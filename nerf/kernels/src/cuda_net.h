// The field's networks, fully fused: a warp carries 16 samples through all layers in registers. The float sums of one layer
// are laid out (see mma_all) so that, rounded to pairs, they are the next layer's operand: nothing moves between lanes.
// Sizes are constants of the compilation (nerf/kernels/cuda.py gives them): the compiler unrolls everything.
#pragma once
#include "cuda_grid.h"
#include "cuda_pairs.h"
#include "field.h"
#include "sh.h"

#if !defined(NERF_LEVELS)
#define NERF_LEVELS 8
#endif
#if !defined(NERF_FEATURES)
#define NERF_FEATURES 4
#endif
#if !defined(NERF_WIDTH)
#define NERF_WIDTH 64
#endif
#if !defined(NERF_DENSITY_LAYERS)
#define NERF_DENSITY_LAYERS 2
#endif
#if !defined(NERF_COLOR_LAYERS)
#define NERF_COLOR_LAYERS 3
#endif
#if !defined(NERF_SINGLE)
#define NERF_SINGLE 0
#endif

#if NERF_SINGLE
typedef FloatPair Pair;
typedef float TableNumber;
static const int WARPS = 4;  // of a block that works on samples
#else
typedef u32 Pair;
typedef unsigned short TableNumber;
static const int WARPS = 8;
#endif
typedef ElementOf<Pair>::type Element;

static const int ENCODED = NERF_LEVELS * NERF_FEATURES, WIDTH = NERF_WIDTH;
static const int LEVELS_PER_STEP = 16 / NERF_FEATURES;       // levels that one step of 16 columns holds
static const int LEVELS_PER_LANE = LEVELS_PER_STEP / 4;      // of them, those that one lane looks up (1 or 2)
static const int ENCODED_STEPS = ENCODED / 16;
static_assert(ENCODED % 16 == 0 && WIDTH % 16 == 0 && (NERF_FEATURES == 4 || NERF_FEATURES == 2), "not made for this size");

// ---- which weights are where ----------------------------------------------------------------------------------------

// Layers are numbered through both networks: density 0 .. D-1, colour D .. D+C-1. Inputs and outputs padded to 16.
static const int N_DENSITY = NERF_DENSITY_LAYERS, N_COLOR = NERF_COLOR_LAYERS, N_LAYERS = N_DENSITY + N_COLOR;

NERF_CONSTEXPR int layer_inputs(int l) {
  return l == 0 ? ENCODED : (l == N_DENSITY ? SH_FEATURES + GEO_FEATURES : WIDTH);
}
NERF_CONSTEXPR int layer_outputs(int l) { return l == N_DENSITY - 1 || l == N_LAYERS - 1 ? 16 : WIDTH; }
NERF_CONSTEXPR int real_outputs(int l) { return l == N_LAYERS - 1 ? 3 : layer_outputs(l); }
NERF_CONSTEXPR int output_tiles(int l) { return (real_outputs(l) + 7) / 8; }  // of 8 columns, on the way forward
NERF_CONSTEXPR int weights_before(int l) {  // padded weights of the layers before l; also where l's operands begin, in pairs * 2
  int n = 0;
  for (int k = 0; k < l; ++k) n += layer_inputs(k) * layer_outputs(k);
  return n;
}
NERF_CONSTEXPR int gradients_before(int l) {  // real weights of the layers before l
  int n = 0;
  for (int k = 0; k < l; ++k) n += layer_inputs(k) * real_outputs(k);
  return n;
}

// One lane's share of an operand b: 16 rows (inputs) by 8 columns (outputs).
struct alignas(2 * sizeof(Pair)) Operand {
  Pair b[2];
};
static const int N_OPERANDS = weights_before(N_LAYERS) / 4;  // of all layers in one direction (4 weights each)

// The first layer's columns are permuted, so that the lane which looks a level up holds its features at once: column
// 16 s + 8 q + 2 t + e of the operand is feature 16 s + 4 t + 2 q + e of the encoding.
NERF_FN int feature_of_column(int column) {
  const int s = column >> 4, q = (column >> 3) & 1, t = (column >> 1) & 3, e = column & 1;
  return 16 * s + 4 * t + 2 * q + e;
}

// ---- layers -----------------------------------------------------------------------------------------------------------

// c [16, 8 N] = a [16, 16 K] times a layer; `weights` are its operands in order of (step, column tile, lane).
template <int K, int N>
NERF_FN void multiply_all(const Pair (*a)[4], const Operand* weights, float (*c)[4]) {
  const int lane = lane_index();
  sync_warp_all();  // mma wants all lanes at once, and some may come from a branch of their own
#pragma unroll
  for (int n = 0; n < N; ++n) {
    c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Operand w = weights[(k * N + n) * 32 + lane];
      mma_all(c[n], a[k], w.b);
    }
  }
}

// Sums [16, 16 K] as the next operand a, through ReLU where asked.
template <int K, bool RELU>
NERF_FN void to_operand(const float (*c)[4], Pair (*a)[4]) {
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* s = c[2 * k + half];
      float v[4];
      for (int i = 0; i < 4; ++i) v[i] = RELU ? f_max(0.0f, s[i]) : s[i];  // a NaN stays one
      set_pair(a[k][2 * half], v[0], v[1]);
      set_pair(a[k][2 * half + 1], v[2], v[3]);
    }
}

static const int WIDTH_STEPS = WIDTH / 16;

// Hidden activations of one network: h[i] after layer i's ReLU. Registers, as all indices are constants once unrolled.
template <int N>
struct Hidden {
  Pair h[N > 1 ? N - 1 : 1][WIDTH_STEPS][4];
};

// All layers but the last, from layer L on: x [16, 16 K] to hidden activations. FIRST: the network's first layer. Layers are
// template arguments, not a loop: an unrolled loop leaves the sums of weights_before to the GPU.
template <int K, int N, int FIRST, int L = 0>
NERF_FN void hidden_layers_all(const Pair (*x)[4], const Operand* weights, Hidden<N>& hidden) {
  if constexpr (L + 1 < N) {
    constexpr int at = weights_before(FIRST + L) / 4;
    float c[2 * WIDTH_STEPS][4];
    if constexpr (L == 0) multiply_all<K, 2 * WIDTH_STEPS>(x, weights + at, c);
    else multiply_all<WIDTH_STEPS, 2 * WIDTH_STEPS>(hidden.h[L - 1], weights + at, c);
    to_operand<WIDTH_STEPS, true>(c, hidden.h[L]);
    hidden_layers_all<K, N, FIRST, L + 1>(x, weights, hidden);
  }
}
// The last layer, without ReLU: 8 T outputs.
template <int K, int N, int FIRST, int T>
NERF_FN void last_layer_all(const Pair (*x)[4], const Operand* weights, const Hidden<N>& hidden, float (*c)[4]) {
  constexpr int at = weights_before(FIRST + N - 1) / 4;
  if constexpr (N == 1) multiply_all<K, T>(x, weights + at, c);
  else multiply_all<WIDTH_STEPS, T>(hidden.h[N - 2], weights + at, c);
}

// What a warp knows of 16 samples' density network: h [16, 16], of which column 0 is the logit of the density.
NERF_FN void density_network_all(const Pair (*x)[4], const Operand* weights, float (*geo)[4]) {
  Hidden<N_DENSITY> hidden;
  hidden_layers_all<ENCODED_STEPS, N_DENSITY, 0>(x, weights, hidden);
  last_layer_all<ENCODED_STEPS, N_DENSITY, 0, 2>(x, weights, hidden, geo);
}
// logits [16, 8] of which three columns count, from x [16, 32]: spherical harmonics, then geometry features.
NERF_FN void color_network_all(const Pair (*x)[4], const Operand* weights, float (*logits)[4]) {
  Hidden<N_COLOR> hidden;
  hidden_layers_all<2, N_COLOR, N_DENSITY>(x, weights, hidden);
  last_layer_all<2, N_COLOR, N_DENSITY, 1>(x, weights, hidden, logits);
}

// ---- inputs -----------------------------------------------------------------------------------------------------------

// The levels that this lane looks up: features 16 s + 4 t .. 4 t + 3 of each step s.
struct LaneLevels {
  GridLevel level[ENCODED_STEPS * LEVELS_PER_LANE];
};
NERF_FN void lane_levels(const FieldDesc& field, LaneLevels& out) {
  const int t = lane_index() & 3;
#pragma unroll
  for (int s = 0; s < ENCODED_STEPS; ++s)
#pragma unroll
    for (int j = 0; j < LEVELS_PER_LANE; ++j)
      out.level[s * LEVELS_PER_LANE + j] = field.levels[s * LEVELS_PER_STEP + t * LEVELS_PER_LANE + j];
}

NERF_FN const TableNumber* field_table(const FieldDesc& field) {
#if NERF_SINGLE
  return field.table;
#else
  return field.table_half;
#endif
}

// Encodes two samples of the warp's 16 (rows g and g + 8) into the operand x [16, ENCODED].
NERF_FN void encode_rows(const LaneLevels& levels, const TableNumber* table, const float* upper, const float* lower,
                         Pair (*x)[4]) {
#pragma unroll
  for (int s = 0; s < ENCODED_STEPS; ++s)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float f[4];
#pragma unroll
      for (int j = 0; j < LEVELS_PER_LANE; ++j)
        look_up<3, NERF_FEATURES>(row ? lower : upper, levels.level[s * LEVELS_PER_LANE + j], table, f + j * NERF_FEATURES);
      set_pair(x[s][row], f[0], f[1]);
      set_pair(x[s][2 + row], f[2], f[3]);
    }
}

// Inputs of the colour network: the directions' spherical harmonics `sh` [n, 8] pairs (rows of which are given, -1: none),
// and the density network's outputs.
NERF_FN void color_inputs(const Pair* sh, int upper, int lower, const float (*geo)[4], Pair (*x)[4]) {
  const int t = lane_index() & 3;
  for (int i = 0; i < 4; ++i) zero_pair(x[0][i]);
  if (upper >= 0) {
    x[0][0] = sh[(size_t)upper * 8 + t];
    x[0][2] = sh[(size_t)upper * 8 + 4 + t];
  }
  if (lower >= 0) {
    x[0][1] = sh[(size_t)lower * 8 + t];
    x[0][3] = sh[(size_t)lower * 8 + 4 + t];
  }
  to_operand<1, false>(geo, x + 1);
}

// Column `column` (0..7) of sums c (first tile) for the row that this lane owns: row lane % 16.
NERF_FN float own_row_all(const float* c, int column) {
  const int lane = lane_index(), from = (lane & 7) * 4 + (column >> 1);
  const float upper = shuffle_all(c[column & 1], from), lower = shuffle_all(c[2 + (column & 1)], from);
  return lane & 8 ? lower : upper;
}

// The networks' operands from global to shared memory, where there is room for them; returns where to read them.
NERF_FN const Operand* stage_operands(const Operand* weights, int n, unsigned char* shared) {
#if NERF_STAGE_WEIGHTS
  Operand* to = (Operand*)shared;
  for (int i = thread_index(); i < n; i += block_size()) to[i] = weights[i];
  sync_block();
  return to;
#else
  return weights;
#endif
}
