// The field at given points, and what every pass of the networks needs first: weights as operands, directions as spherical
// harmonics.
#include "cuda_net.h"
#include "space.h"

// ---- weights [out, in] in floats -> operands of both directions -------------------------------------------------------

struct PackArgs {
  FieldDesc field;
  Operand* forward;   // [N_OPERANDS]: c = x W^T
  Operand* backward;  // [N_OPERANDS]: dx = dc W
};

NERF_FN float weight_at(const FieldDesc& field, int layer, int output, int column) {
  if (output >= real_outputs(layer)) return 0.0f;
  const float* w = layer < N_DENSITY ? field.density_weights[layer] : field.color_weights[layer - N_DENSITY];
  return w[output * layer_inputs(layer) + (layer == 0 ? feature_of_column(column) : column)];
}

KERNEL(pack_weights, PackArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i >= N_OPERANDS) return;
  int layer = 0;
  while (layer + 1 < N_LAYERS && i >= weights_before(layer + 1) / 4) ++layer;
  const int at = i - weights_before(layer) / 4, lane = at & 31, tile = at >> 5, g = lane >> 2, t = lane & 3;
  {
    const int tiles = output_tiles(layer), k = tile / tiles, output = tile % tiles * 8 + g;
    const bool used = k < layer_inputs(layer) / 16;  // the last layer has fewer tiles this way than the other
    Operand o;
    for (int half = 0; half < 2; ++half) {
      const int column = 16 * k + 8 * half + 2 * t;
      zero_pair(o.b[half]);
      if (used)
        set_pair(o.b[half], weight_at(args.field, layer, output, column), weight_at(args.field, layer, output, column + 1));
    }
    args.forward[i] = o;
  }
  {
    const int tiles = layer_inputs(layer) / 8, k = tile / tiles, column = tile % tiles * 8 + g;
    Operand o;
    for (int half = 0; half < 2; ++half) {
      const int output = 16 * k + 8 * half + 2 * t;
      set_pair(o.b[half], weight_at(args.field, layer, output, column), weight_at(args.field, layer, output + 1, column));
    }
    args.backward[i] = o;
  }
}

// ---- directions [n, 3] -> spherical harmonics [n, 8] pairs ---------------------------------------------------------------

struct DirectionArgs {
  const float* directions;
  Pair* sh;
  int n;
};

KERNEL(encode_directions, DirectionArgs, 256) {
  const int i = block_index() * block_size() + thread_index();
  if (i >= args.n) return;
  float out[SH_FEATURES];
  sh4(args.directions[3 * i], args.directions[3 * i + 1], args.directions[3 * i + 2], out);
#pragma unroll
  for (int j = 0; j < SH_FEATURES / 2; ++j) set_pair(args.sh[(size_t)i * 8 + j], out[2 * j], out[2 * j + 1]);
}

// ---- densities, and colours where directions are given -------------------------------------------------------------------

struct FieldArgs {
  FieldDesc field;
  const Operand* weights;
  const float* positions;  // [n, 3] scene
  const Pair* sh;          // [n, 8]; null: densities only
  float* sigmas;           // [n]
  float* rgbs;             // [n, 3]
  int n;
};

KERNEL(field_forward, FieldArgs, 256) {
  const Operand* weights = stage_operands(args.weights, N_OPERANDS, shared_memory());
  LaneLevels levels;
  lane_levels(args.field, levels);
  const TableNumber* table = field_table(args.field);
  const int lane = lane_index(), n_warps = block_count() * (block_size() / 32);
  const int n_tiles = (args.n + 15) / 16;
  for (int tile = block_index() * (block_size() / 32) + warp_index(); tile < n_tiles; tile += n_warps) {
    float unit[2][3];
    int rows[2];
    for (int half = 0; half < 2; ++half) {
      rows[half] = tile * 16 + (lane >> 2) + 8 * half;
      if (rows[half] >= args.n) rows[half] = -1;
      float x[3] = {0.0f, 0.0f, 0.0f};
      if (rows[half] >= 0)
        for (int a = 0; a < 3; ++a) x[a] = args.positions[(size_t)rows[half] * 3 + a];
      scene_to_unit(x, args.field.contracted, unit[half]);
    }
    Pair x[ENCODED_STEPS][4];
    float geo[2][4];
    encode_rows(levels, table, unit[0], unit[1], x);
    density_network_all(x, weights, geo);
    if ((lane & 3) == 0)
      for (int half = 0; half < 2; ++half)
        if (rows[half] >= 0)
          args.sigmas[rows[half]] = f_exp(f_min(DENSITY_LOGIT_MAX, geo[0][2 * half] + args.field.density_bias));
    if (!args.sh) continue;
    Pair c[2][4];
    float logits[1][4];
    color_inputs(args.sh, rows[0], rows[1], geo, c);
    color_network_all(c, weights, logits);
    const int column = 2 * (lane & 3);  // columns 0 and 1 are with t = 0, column 2 with t = 1
    for (int half = 0; half < 2; ++half)
      for (int e = 0; e < 2; ++e)
        if (rows[half] >= 0 && column + e < 3)
          args.rgbs[(size_t)rows[half] * 3 + column + e] = 1.0f / (1.0f + f_exp(-logits[0][2 * half + e]));
  }
}
