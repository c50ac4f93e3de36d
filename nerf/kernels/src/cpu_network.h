// Networks of any width, with biases and sine or ReLU layers, and their gradients: blocks of samples go through all layers
// and back while their activations are near, so nothing but the block is ever kept. Beside the values may run tangents,
// derivatives along the axes of the input, which the same products carry from layer to layer as further rows:
//   h = act(z), h_k = act'(z) z_k with z = omega (W h_in + b), z_k = omega W h_in,k.
#pragma once
#include <cstring>
#include <vector>

#include "cpu_gemm.h"
#include "cpu_threads.h"

static const int NET_BLOCK = 96;     // samples: divides by the rows of every product's tile
static const int NET_LAYERS = 12;
static const int DIRECT_INPUTS = 4;  // so few inputs are multiplied one by one, in float32: coordinates need all digits
#if LANES == 16
static const int PANEL = 64;
#else
static const int PANEL = 2 * LANES;
#endif

enum Activation { ACT_LINEAR = 0, ACT_RELU = 1, ACT_SINE = 2, ACT_SIGMOID = 3 };

// h_l = act_l(omega_l (W_l h_{l-1} + b_l)); a layer whose grad_weights are null is fixed.
struct NetDesc {
  int n_layers;
  int bf16;    // products read bfloat16, where the processor has it
  int n_threads;
  int dims[NET_LAYERS + 1];
  int activation[NET_LAYERS];
  float omega[NET_LAYERS];
  const float* weights[NET_LAYERS];  // [out, in]
  const float* biases[NET_LAYERS];   // [out], or null
  float* grad_weights[NET_LAYERS];
  float* grad_biases[NET_LAYERS];
  const float* x;        // [n, dims[0]]
  const float* targets;  // [n, out]: the gradients are those of the mean squared error
  const float* grad_out;       // [n, out]: or these are given; null both: only forward
  const float* grad_tangents;  // [n, n_tangents, out] or null
  float* out;            // [n, out] or null
  float* out_tangents;   // [n, n_tangents, out] or null
  float* grad_x;         // [n, dims[0]] or null
  int n_tangents;        // along the first so many inputs (of at most DIRECT_INPUTS)
  float tangent_scale[3];
  long long n;
  double loss;           // the sum of squared errors

  bool backward() const { return targets || grad_out; }
  int samples() const { return NET_BLOCK / (1 + n_tangents); }  // of a block: values first, then each axis's tangents
};

// sin and cos at once: x = k pi + r with |r| <= pi/2 in three parts of pi (Cody and Waite), then odd and even polynomials
// (Taylor to r^11 and r^12, error below 1e-7) with the sign of k. Good for |x| below 1e5.
NERF_FN void vsincos(vfloat x, vfloat& s, vfloat& c) {
  const vfloat magic = vset(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, whose last bit is k's parity
  const vfloat shifted = vfma(x, vset(0.318309886183790672f), magic);
  const vfloat k = shifted - magic;
  vfloat r = vfma(k, vset(-3.140625f), x);
  r = vfma(k, vset(-9.67502593994140625e-4f), r);
  r = vfma(k, vset(-1.509957990978376e-7f), r);
  const vint sign = (vint)shifted << 31;
  const vfloat r2 = r * r;
  vfloat p = vfma(r2, vset(-2.50521083854e-8f), vset(2.75573192240e-6f));
  p = vfma(p, r2, vset(-1.98412698413e-4f));
  p = vfma(p, r2, vset(8.33333333333e-3f));
  p = vfma(p, r2, vset(-1.66666666667e-1f));
  p = vfma(p * r2, r, r);
  vfloat q = vfma(r2, vset(2.08767569879e-9f), vset(-2.75573192240e-7f));
  q = vfma(q, r2, vset(2.48015873016e-5f));
  q = vfma(q, r2, vset(-1.38888888889e-3f));
  q = vfma(q, r2, vset(4.16666666667e-2f));
  q = vfma(q, r2, vset(-0.5f));
  q = vfma(q, r2, vset(1.0f));
  s = (vfloat)((vint)p ^ sign);
  c = (vfloat)((vint)q ^ sign);
}

// B [K, N] (element (k, n) at b[k * row + n * column]) by panels of PANEL columns, each one contiguous [K, panel].
template <class E>
struct Panels;
template <>
struct Panels<Single> {
  static void pack(const float* b, int K, int N, int row, int column, float scale, int real_k, int real_n, float* to) {
    for (int n = 0; n < N; n += PANEL) {
      const int w = N - n < PANEL ? N - n : PANEL;
      for (int k = 0; k < K; ++k)
        for (int i = 0; i < w; ++i, ++to)
          *to = k < real_k && n + i < real_n ? scale * b[(size_t)k * row + (size_t)(n + i) * column] : 0.0f;
    }
  }
  // The same of activations [K, N], whose columns are neighbours.
  static void columns(const float* b, int K, int N, float* to) {
    for (int n = 0; n < N; n += PANEL) {
      const int w = N - n < PANEL ? N - n : PANEL;
      for (int k = 0; k < K; ++k, to += w) std::memcpy(to, b + (size_t)k * N + n, sizeof(float) * w);
    }
  }
};
#if defined(__AVX512F__)
NERF_FN __m512i pair_of(vfloat low, vfloat high) {  // lane i: bfloat16 of low[i], then of high[i]
  const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                       18, 2, 17, 1, 16, 0);
  vfloat both;
  __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
  return _mm512_permutexvar_epi16(zip, (__m512i)both);
}
template <>
struct Panels<Pair> {
  static void columns(const float* b, int K, int N, u32* to) {
    for (int n = 0; n < N; n += PANEL) {
      const int w = N - n < PANEL ? N - n : PANEL;
      for (int k = 0; k < K; k += 2, to += w)
        for (int i = 0; i < w; i += 16)
          _mm512_storeu_si512(to + i, pair_of(vload(b + (size_t)k * N + n + i), vload(b + (size_t)(k + 1) * N + n + i)));
    }
  }
  static void pack(const float* b, int K, int N, int row, int column, float scale, int real_k, int real_n, u32* to) {
    std::vector<float> whole((size_t)K * N, 0.0f);
    for (int k = 0; k < real_k; ++k)
      for (int n = 0; n < real_n; ++n) whole[(size_t)k * N + n] = scale * b[(size_t)k * row + (size_t)n * column];
    columns(whole.data(), K, N, to);
  }
};
#endif

// C [M, N] (+)= A B with B in panels; A's element (m, k) is at A[m * a_row + k * a_k].
template <class E, int MR>
static inline void panel_rows(int M, int N, int K, const typename E::type* A, int a_row, int a_k,
                              const typename E::type* B, float* C, bool accumulate) {
  for (int n = 0; n < N; n += PANEL) {
    const int w = N - n < PANEL ? N - n : PANEL;
    for (int m = 0; m < M; m += MR) {
      const auto* a = A + (size_t)m * a_row;
      float* c = C + (size_t)m * N + n;
#if LANES == 16
      if (w == 64) gemm_tile<E, MR, 4>(K, a, a_row, a_k, B, w, c, N, accumulate);
      else if (w == 48) gemm_tile<E, MR, 3>(K, a, a_row, a_k, B, w, c, N, accumulate);
      else if (w == 32) gemm_tile<E, MR, 2>(K, a, a_row, a_k, B, w, c, N, accumulate);
      else gemm_tile<E, MR, 1>(K, a, a_row, a_k, B, w, c, N, accumulate);
#else
      gemm_tile<E, MR, 2>(K, a, a_row, a_k, B, w, c, N, accumulate);
#endif
    }
    B += (size_t)K * w;
  }
}
template <class E>
static void panel_gemm(int M, int N, int K, const typename E::type* A, int a_row, int a_k, const typename E::type* B,
                       float* C, bool accumulate) {
#if LANES == 16
  if (M % 6 == 0) return panel_rows<E, 6>(M, N, K, A, a_row, a_k, B, C, accumulate);
#endif
  panel_rows<E, 4>(M, N, K, A, a_row, a_k, B, C, accumulate);
}

template <class E>
struct Network {
  typedef typename E::type element;
  const NetDesc& d;
  int in[NET_LAYERS], out[NET_LAYERS];  // padded
  bool direct[NET_LAYERS];
  std::vector<element> forward[NET_LAYERS], backward[NET_LAYERS];
  std::vector<float> bias[NET_LAYERS], first;
  int widest = 16, last_learned = NET_LAYERS;  // the lowest layer whose inputs or weights have a gradient
  size_t grad_at[NET_LAYERS + 1];              // where a layer's weights and biases start in a flat gradient

  explicit Network(const NetDesc& desc) : d(desc) {
    const int per_k = Packed<E>::PER_K;
    size_t at = 0;
    for (int l = d.n_layers - 1; l >= 0; --l)
      if (d.grad_weights[l]) last_learned = l;
    if (d.grad_x) last_learned = -1;
    for (int l = 0; l < d.n_layers; ++l) {
      const int real_in = d.dims[l], real_out = d.dims[l + 1];
      direct[l] = l == 0 && real_in <= DIRECT_INPUTS;
      in[l] = l == 0 ? (direct[l] ? real_in : (real_in + 15) / 16 * 16) : out[l - 1];
      out[l] = (real_out + 15) / 16 * 16;
      widest = std::max(widest, std::max(in[l], out[l]));
      bias[l].assign(out[l], 0.0f);
      if (d.biases[l])
        for (int o = 0; o < real_out; ++o) bias[l][o] = d.omega[l] * d.biases[l][o];
      if (direct[l]) {  // [in, out]
        first.assign((size_t)in[l] * out[l], 0.0f);
        for (int o = 0; o < real_out; ++o)
          for (int i = 0; i < real_in; ++i) first[(size_t)i * out[l] + o] = d.omega[l] * d.weights[l][o * real_in + i];
      } else {
        forward[l].resize((size_t)in[l] * out[l] / per_k);
        Panels<E>::pack(d.weights[l], in[l], out[l], 1, real_in, d.omega[l], real_in, real_out, forward[l].data());
        if (d.backward() && l > last_learned) {
          backward[l].resize((size_t)in[l] * out[l] / per_k);
          Panels<E>::pack(d.weights[l], out[l], in[l], real_in, 1, d.omega[l], real_out, real_in, backward[l].data());
        }
      }
      grad_at[l] = at;
      at += (size_t)out[l] * in[l] + out[l];
    }
    grad_at[d.n_layers] = at;
  }
};

// Room of one thread: activations h_l, the slopes of sine layers, gradients, and packed operands.
template <class E>
struct NetRoom {
  std::vector<float> h[NET_LAYERS + 1], slope[NET_LAYERS], grad, next;
  std::vector<u32> rows, columns[2];
  explicit NetRoom(const Network<E>& net) {
    const NetDesc& d = net.d;
    h[0].assign((size_t)NET_BLOCK * net.in[0], 0.0f);
    for (int l = 0; l < d.n_layers; ++l) {
      h[l + 1].assign((size_t)NET_BLOCK * net.out[l], 0.0f);
      if (d.activation[l] == ACT_SINE) slope[l].assign((size_t)NET_BLOCK * net.out[l], 0.0f);
    }
    const size_t size = (size_t)NET_BLOCK * net.widest;
    grad.assign(size, 0.0f);
    next.assign(size, 0.0f);
    rows.assign(size, 0);
    columns[0].assign(size, 0);
    columns[1].assign(size, 0);
  }
};

// z to h in place, the rows of tangents too; slope keeps act'(z) of a sine in the values' rows, and z_k in the tangents'.
static inline void activate(int kind, float* z, float* slope, size_t n, int n_tangents) {
  if (kind == ACT_RELU) {
    for (size_t i = 0; i < n; i += LANES) {
      const vint on = vload(z + i) > vset(0.0f);
      for (int k = 1; k <= n_tangents; ++k) vstore(z + k * n + i, (vfloat)((vint)vload(z + k * n + i) & on));
      vstore(z + i, vmax(vset(0.0f), vload(z + i)));
    }
  } else if (kind == ACT_SINE) {
    for (size_t i = 0; i < n; i += LANES) {
      vfloat s, c;
      vsincos(vload(z + i), s, c);
      vstore(z + i, s);
      vstore(slope + i, c);
      for (int k = 1; k <= n_tangents; ++k) {
        const vfloat zk = vload(z + k * n + i);
        vstore(slope + k * n + i, zk);
        vstore(z + k * n + i, c * zk);
      }
    }
  } else if (kind == ACT_SIGMOID) {
    for (size_t i = 0; i < n; i += LANES) {
      const vfloat v = vset(1.0f) / (vset(1.0f) + vexp(-vload(z + i)));
      for (int k = 1; k <= n_tangents; ++k) vstore(z + k * n + i, v * (vset(1.0f) - v) * vload(z + k * n + i));
      vstore(z + i, v);
    }
  }
}

// dL/dh to dL/dz in place: dz_k = act' dh_k;  dz = act' dh + act'' sum_k z_k dh_k, and sin'' = -sin.
static inline void activate_backward(int kind, float* dz, const float* h, const float* slope, size_t n, int n_tangents) {
  if (kind == ACT_RELU) {
    for (int k = 0; k <= n_tangents; ++k)
      for (size_t i = 0; i < n; i += LANES) {
        float* at = dz + k * n + i;
        vstore(at, (vfloat)((vint)vload(at) & (vload(h + i) > vset(0.0f))));
      }
  } else if (kind == ACT_SINE) {
    for (size_t i = 0; i < n; i += LANES) {
      const vfloat c = vload(slope + i);
      vfloat bent = vset(0.0f);
      for (int k = 1; k <= n_tangents; ++k) {
        float* at = dz + k * n + i;
        bent = vfma(vload(slope + k * n + i), vload(at), bent);
        vstore(at, c * vload(at));
      }
      vstore(dz + i, c * vload(dz + i) - vload(h + i) * bent);
    }
  } else if (kind == ACT_SIGMOID) {  // without tangents
    for (size_t i = 0; i < n; i += LANES) vstore(dz + i, vload(dz + i) * vload(h + i) * (vset(1.0f) - vload(h + i)));
  }
}

template <class E>
static void net_forward(const Network<E>& net, NetRoom<E>& room, const float* x, int count) {
  const NetDesc& d = net.d;
  const int per_k = Packed<E>::PER_K, n_in = d.dims[0];
  float* h0 = room.h[0].data();
  const int samples = d.samples();
  for (int s = 0; s < samples; ++s)
    for (int i = 0; i < net.in[0]; ++i) h0[(size_t)s * net.in[0] + i] = s < count && i < n_in ? x[(size_t)s * n_in + i] : 0.0f;
  for (int s = samples; s < NET_BLOCK; ++s)
    for (int i = 0; i < net.in[0]; ++i) h0[(size_t)s * net.in[0] + i] = i == s / samples - 1 ? d.tangent_scale[i] : 0.0f;
  for (int l = 0; l < d.n_layers; ++l) {
    const int in = net.in[l], out = net.out[l];
    float* z = room.h[l + 1].data();
    const float* bias = net.bias[l].data();
    if (net.direct[l]) {
      for (int s = 0; s < NET_BLOCK; ++s)
        for (int o = 0; o < out; o += LANES) {
          vfloat sum = s < samples ? vload(bias + o) : vset(0.0f);
          for (int i = 0; i < in; ++i) sum = vfma(vset(h0[s * in + i]), vload(net.first.data() + (size_t)i * out + o), sum);
          vstore(z + (size_t)s * out + o, sum);
        }
    } else {
      for (int s = 0; s < samples; ++s) std::memcpy(z + (size_t)s * out, bias, sizeof(float) * out);
      std::memset(z + (size_t)samples * out, 0, sizeof(float) * (NET_BLOCK - samples) * out);
      const auto a = Packed<E>::along_rows(room.h[l].data(), NET_BLOCK * in, room.rows.data());
      panel_gemm<E>(NET_BLOCK, out, in / per_k, a, in / per_k, 1, net.forward[l].data(), z, true);
    }
    activate(d.activation[l], z, room.slope[l].data(), (size_t)samples * out, d.n_tangents);
  }
}

// room.grad holds dL/dh of the last layer. Adds to `grads`; leaves dL/dx in room.grad where it is asked for.
// dz = act'(z) dh;  dW = omega dz^T h_in;  db = omega sum dz;  dh_in = dz (omega W).
template <class E>
static void net_backward(const Network<E>& net, NetRoom<E>& room, float* grads) {
  const NetDesc& d = net.d;
  const int per_k = Packed<E>::PER_K;
  for (int l = d.n_layers - 1; l >= 0 && l >= net.last_learned; --l) {
    const int in = net.in[l], out = net.out[l];
    float* dz = room.grad.data();
    const int samples = d.samples();
    activate_backward(d.activation[l], dz, room.h[l + 1].data(), room.slope[l].data(), (size_t)samples * out, d.n_tangents);
    float *dw = grads + net.grad_at[l], *db = dw + (size_t)out * in;
    if (d.grad_weights[l]) {
      for (int o = 0; o < out; o += LANES) {
        vfloat sum = vload(db + o);
        for (int s = 0; s < samples; ++s) sum += vload(dz + (size_t)s * out + o);  // tangents know no bias
        vstore(db + o, sum);
      }
      if (net.direct[l]) {  // [in, out]
        for (int i = 0; i < in; ++i)
          for (int o = 0; o < out; o += LANES) {
            vfloat sum = vload(dw + (size_t)i * out + o);
            for (int s = 0; s < NET_BLOCK; ++s)
              sum = vfma(vset(room.h[0][s * in + i]), vload(dz + (size_t)s * out + o), sum);
            vstore(dw + (size_t)i * out + o, sum);
          }
      } else {  // A = dz read along its columns, panel by panel
        auto* down = (typename E::type*)room.columns[0].data();
        auto* x_down = (typename E::type*)room.columns[1].data();
        Panels<E>::columns(dz, NET_BLOCK, out, down);
        Panels<E>::columns(room.h[l].data(), NET_BLOCK, in, x_down);
        for (int o = 0; o < out; o += PANEL) {
          const int w = out - o < PANEL ? out - o : PANEL;
          panel_gemm<E>(w, in, NET_BLOCK / per_k, down + (size_t)o * NET_BLOCK / per_k, 1, w, x_down, dw + (size_t)o * in, true);
        }
      }
    }
    if (l == 0 && !d.grad_x) return;
    if (l == net.last_learned) return;
    if (net.direct[l]) {
      float* dx = room.next.data();
      for (int s = 0; s < NET_BLOCK; ++s)
        for (int i = 0; i < in; ++i) {
          vfloat sum = vset(0.0f);
          for (int o = 0; o < out; o += LANES)
            sum = vfma(vload(dz + (size_t)s * out + o), vload(net.first.data() + (size_t)i * out + o), sum);
          float total = 0.0f;
          for (int j = 0; j < LANES; ++j) total += sum[j];
          dx[s * in + i] = total;
        }
    } else {
      const auto a = Packed<E>::along_rows(dz, NET_BLOCK * out, room.rows.data());
      panel_gemm<E>(NET_BLOCK, in, out / per_k, a, out / per_k, 1, net.backward[l].data(), room.next.data(), false);
    }
    room.grad.swap(room.next);
  }
}

// Slices of blocks have gradients of their own, added in their order: their number depends on n alone (law of sameness).
template <class E>
static void network_run(NetDesc& d) {
  const Network<E> net(d);
  const int n_out = d.dims[d.n_layers], last = net.out[d.n_layers - 1];
  const int samples = d.samples();
  const long long n_blocks = (d.n + samples - 1) / samples;
  int n_slices = 1;
  while (n_slices < 16 && n_slices * 16 <= n_blocks) n_slices *= 2;
  if (!d.backward()) n_slices = (int)(n_blocks < 64 ? n_blocks : 64);
  const size_t grad_size = net.grad_at[d.n_layers];
  std::vector<std::vector<float>> grads(n_slices);
  std::vector<double> losses(n_slices, 0.0);
  parallel_for(n_slices, d.n_threads, [&](int slice) {
    NetRoom<E> room(net);
    if (d.backward()) grads[slice].assign(grad_size, 0.0f);
    for (long long b = n_blocks * slice / n_slices; b < n_blocks * (slice + 1) / n_slices; ++b) {
      const long long begin = b * samples;
      const int count = (int)(d.n - begin < samples ? d.n - begin : samples), T = d.n_tangents;
      net_forward(net, room, d.x + begin * d.dims[0], count);
      const float* y = room.h[d.n_layers].data();
      const size_t row = sizeof(float) * n_out;
      for (int s = 0; s < count; ++s) {
        if (d.out) std::memcpy(d.out + (begin + s) * n_out, y + (size_t)s * last, row);
        for (int k = 0; d.out_tangents && k < T; ++k)
          std::memcpy(d.out_tangents + ((begin + s) * T + k) * n_out, y + (size_t)((k + 1) * samples + s) * last, row);
      }
      if (!d.backward()) continue;
      float* dy = room.grad.data();
      std::memset(dy, 0, sizeof(float) * NET_BLOCK * last);
      double sum = 0.0;
      const float scale = 2.0f / ((float)d.n * n_out);
      for (int s = 0; s < count; ++s) {
        for (int c = 0; d.targets && c < n_out; ++c) {
          const float e = y[(size_t)s * last + c] - d.targets[(begin + s) * n_out + c];
          sum += (double)e * e;
          dy[(size_t)s * last + c] = scale * e;
        }
        if (d.grad_out) std::memcpy(dy + (size_t)s * last, d.grad_out + (begin + s) * n_out, row);
        for (int k = 0; d.grad_tangents && k < T; ++k)
          std::memcpy(dy + (size_t)((k + 1) * samples + s) * last, d.grad_tangents + ((begin + s) * T + k) * n_out, row);
      }
      losses[slice] += sum;
      net_backward(net, room, grads[slice].data());
      if (d.grad_x)
        for (int s = 0; s < count; ++s)
          std::memcpy(d.grad_x + (begin + s) * d.dims[0], room.grad.data() + (size_t)s * net.in[0], sizeof(float) * d.dims[0]);
    }
  });
  d.loss = 0.0;
  for (int s = 0; s < n_slices; ++s) d.loss += losses[s];
  if (!d.backward()) return;
  const int n_pieces = 32;
  parallel_for(n_pieces, d.n_threads, [&](int piece) {
    for (size_t i = grad_size * piece / n_pieces; i < grad_size * (piece + 1) / n_pieces; ++i) {
      float sum = grads[0][i];
      for (int s = 1; s < n_slices; ++s) sum += grads[s][i];
      grads[0][i] = sum;
    }
  });
  for (int l = 0; l < d.n_layers; ++l) {
    if (!d.grad_weights[l]) continue;
    const float *dw = grads[0].data() + net.grad_at[l], *db = dw + (size_t)net.out[l] * net.in[l];
    const int real_in = d.dims[l], real_out = d.dims[l + 1];
    for (int o = 0; o < real_out; ++o)
      for (int i = 0; i < real_in; ++i)
        d.grad_weights[l][(size_t)o * real_in + i] =
            d.omega[l] * (net.direct[l] ? dw[(size_t)i * net.out[l] + o] : dw[(size_t)o * net.in[l] + i]);
    if (d.grad_biases[l])
      for (int o = 0; o < real_out; ++o) d.grad_biases[l][o] = d.omega[l] * db[o];
  }
}
