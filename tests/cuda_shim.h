// A GPU for tests: every thread of a block is a fiber, and what a warp or a block does together waits until all have come.
// It follows PTX's documentation, not the kernels: fragments of mma and ldmatrix are written here from the instruction's
// tables. What cannot happen on a chip (lanes that never meet, a struct of another size) ends the process with a sentence.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { u32 x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }

namespace emulated {
static const size_t STACK = 256 << 10;

struct Meeting {  // of a warp's lanes, or a block's threads; two sets, as a fast one may already be at the next
  int arrived = 0, turn = 0, what = 0;
  u32 in[2][32][16], out[2][32][8];
  const void* pointers[2][32];
};
struct Block {
  int threads, block_x, block_y, grid_x, current, done;
  bool moved;
  std::vector<Meeting> warps;
  Meeting whole;
  std::vector<ucontext_t> contexts;
  std::vector<char> stacks, finished;
  std::vector<unsigned char> shared;
  ucontext_t scheduler;
  const std::function<void()>* body;
};
static Block block;
// Another order of everything: blocks and warps from the last to the first, each warp as far as it gets. Else warps take
// turns, which is the same order whichever of them begins.
static bool backwards = false;

static void fail(const char* words) {
  std::fprintf(stderr, "emulated GPU: %s (block %d, thread %d)\n", words, block.block_x, block.current);
  std::abort();
}
static void yield_thread() { swapcontext(&block.contexts[block.current], &block.scheduler); }

static void thread_main() {
  (*block.body)();
  block.finished[block.current] = 1;
  block.moved = true;
  ++block.done;
}

static void run_threads(int first, int end) {
  for (int i = first; i < end; ++i)
    if (!block.finished[i]) {
      block.current = i;
      swapcontext(&block.scheduler, &block.contexts[i]);
    }
}

static void run(int grid_x, int grid_y, int threads, int shared_bytes, const std::function<void()>& body) {
  if (threads % 32 || threads > 1024) fail("a block must be whole warps, of 1024 threads at most");
  block.threads = threads, block.grid_x = grid_x, block.body = &body;
  block.contexts.resize(threads);
  block.stacks.resize(STACK * threads);
  for (int y = 0; y < grid_y; ++y)
    for (int x = 0; x < grid_x; ++x) {
      block.block_x = backwards ? grid_x - 1 - x : x, block.block_y = y, block.done = 0;
      block.warps.assign(threads / 32, Meeting());
      block.whole = Meeting();
      block.finished.assign(threads, 0);
      block.shared = std::vector<unsigned char>(shared_bytes, 0xff);  // NaN, for those who read before they write
      block.shared.shrink_to_fit();
      for (int i = 0; i < threads; ++i) {
        getcontext(&block.contexts[i]);
        block.contexts[i].uc_stack.ss_sp = &block.stacks[STACK * i];
        block.contexts[i].uc_stack.ss_size = STACK;
        block.contexts[i].uc_link = &block.scheduler;
        makecontext(&block.contexts[i], thread_main, 0);
      }
      while (block.done < threads) {
        block.moved = false;
        if (!backwards) run_threads(0, threads);
        else
          for (int first = threads - 32; first >= 0; first -= 32) {
            bool any = block.moved;
            do {
              block.moved = false;
              run_threads(first, first + 32);
              any |= block.moved;
            } while (block.moved);
            block.moved = any;
          }
        if (!block.moved) fail("threads wait for others that have ended or gone another way");
      }
    }
}

// The last one to come computes for all.
template <class COMPUTE>
static int meet(Meeting& m, int size, int what, COMPUTE compute) {
  const int turn = m.turn, set = turn & 1;
  if (m.arrived == 0) m.what = what;
  if (m.what != what) fail("lanes of one warp meet in different instructions");
  block.moved = true;
  if (++m.arrived == size) {
    compute(set);
    m.arrived = 0;
    ++m.turn;
  } else {
    while (m.turn == turn) yield_thread();
  }
  return set;
}
static Meeting& warp() { return block.warps[block.current >> 5]; }

static float half_value(unsigned short bits) { _Float16 h; std::memcpy(&h, &bits, 2); return (float)h; }
static unsigned short half_bits_of(float x) { const _Float16 h = (_Float16)x; unsigned short b; std::memcpy(&b, &h, 2); return b; }
}  // namespace emulated

extern "C" __attribute__((visibility("default"))) void emulated_backwards(int yes) { emulated::backwards = yes != 0; }

#define KERNEL(NAME, ARGS, THREADS)                                                                                     \
  static void NAME##_body(const ARGS& args);                                                                            \
  extern "C" __attribute__((visibility("default"))) void NAME(int grid_x, int grid_y, int threads, int shared,          \
                                                              const void* args, long long bytes) {                      \
    if (bytes != (long long)sizeof(ARGS)) emulated::fail(#NAME ": Python's struct has another size than " #ARGS);       \
    if (threads > THREADS) emulated::fail(#NAME ": more threads than its launch bounds allow");                         \
    emulated::run(grid_x, grid_y, threads, shared, [args] { NAME##_body(*(const ARGS*)args); });                        \
  }                                                                                                                     \
  static void NAME##_body(const ARGS& args)

static inline int thread_index() { return emulated::block.current; }
static inline int block_index() { return emulated::block.block_x; }
static inline int block_row() { return emulated::block.block_y; }
static inline int block_count() { return emulated::block.grid_x; }
static inline int block_size() { return emulated::block.threads; }
static inline unsigned char* shared_memory() { return emulated::block.shared.data(); }
static inline void sync_block() { emulated::meet(emulated::block.whole, emulated::block.threads, 1, [](int) {}); }

static inline void sync_warp_all() { emulated::meet(emulated::warp(), 32, 7, [](int) {}); }

static inline u32 float_bits(float x) { u32 u; std::memcpy(&u, &x, 4); return u; }
static inline float bits_float(u32 u) { float x; std::memcpy(&x, &u, 4); return x; }
static inline int count_bits(u32 x) { return __builtin_popcount(x); }

static inline u32 shuffle_bits(u32 x, int from) {
  emulated::Meeting& m = emulated::warp();
  const int lane = thread_index() & 31;
  m.in[m.turn & 1][lane][0] = x, m.in[m.turn & 1][lane][1] = (u32)from & 31;
  const int set = emulated::meet(m, 32, 2, [&](int s) {
    for (int i = 0; i < 32; ++i) m.out[s][i][0] = m.in[s][m.in[s][i][1]][0];
  });
  return m.out[set][lane][0];
}
static inline float shuffle_all(float x, int from) { return bits_float(shuffle_bits(float_bits(x), from)); }
static inline int shuffle_all(int x, int from) { return (int)shuffle_bits((u32)x, from); }
static inline u32 ballot_all(bool x) {
  emulated::Meeting& m = emulated::warp();
  const int lane = thread_index() & 31;
  m.in[m.turn & 1][lane][0] = x;
  const int set = emulated::meet(m, 32, 3, [&](int s) {
    u32 bits = 0;
    for (int i = 0; i < 32; ++i) bits |= m.in[s][i][0] << i;
    for (int i = 0; i < 32; ++i) m.out[s][i][0] = bits;
  });
  return m.out[set][lane][0];
}

static inline int atomic_add(int* p, int x) { const int old = *p; *p += x; return old; }
static inline void atomic_add(float* p, float x) { *p += x; }
static inline void atomic_add_long(u64* p, u64 x) { *p += x; }
static inline void atomic_max(u32* p, u32 x) { if (x > *p) *p = x; }
template <int F>
static inline void atomic_add_row(float* p, const float* x) {
  if ((size_t)p % (F % 4 == 0 ? 16 : (F % 2 == 0 ? 8 : 4))) emulated::fail("a vector atomic is misaligned");
  for (int f = 0; f < F; ++f) p[f] += x[f];
}

static inline u32 halves_of(float a, float b) {
  a = f_max(-65504.0f, f_min(65504.0f, a));
  b = f_max(-65504.0f, f_min(65504.0f, b));
  return (u32)emulated::half_bits_of(a) | (u32)emulated::half_bits_of(b) << 16;
}
static inline void halves_to(u32 pair, float* a, float* b) {
  *a = emulated::half_value((unsigned short)(pair & 0xffff));
  *b = emulated::half_value((unsigned short)(pair >> 16));
}

// mma.m16n8k16 of PTX's tables: element i of lane's fragment a lies in row g (i in 0,1,4,5) or g + 8 and column
// 2t + (i & 1) + (i >= 4 ? 8 : 0); of b in row 2t + (i & 1) + (i >= 2 ? 8 : 0), column g; of c in row g (+ 8), column 2t + (i & 1).
static inline void emulated_mma(float* c, const float* a8, const float* b4, int what) {
  emulated::Meeting& m = emulated::warp();
  const int lane = thread_index() & 31;
  u32* in = m.in[m.turn & 1][lane];
  for (int i = 0; i < 8; ++i) in[i] = float_bits(a8[i]);
  for (int i = 0; i < 4; ++i) in[8 + i] = float_bits(b4[i]);
  for (int i = 0; i < 4; ++i) in[12 + i] = float_bits(c[i]);
  const int set = emulated::meet(m, 32, what, [&](int s) {
    float A[16][16], B[16][8], C[16][8];
    for (int l = 0; l < 32; ++l) {
      const int g = l >> 2, t = l & 3;
      for (int i = 0; i < 8; ++i) {
        const int row = (i < 2 || (i >= 4 && i < 6)) ? g : g + 8;
        A[row][2 * t + (i & 1) + (i >= 4 ? 8 : 0)] = bits_float(m.in[s][l][i]);
      }
      for (int i = 0; i < 4; ++i) B[2 * t + (i & 1) + (i >= 2 ? 8 : 0)][g] = bits_float(m.in[s][l][8 + i]);
      for (int i = 0; i < 4; ++i) C[i < 2 ? g : g + 8][2 * t + (i & 1)] = bits_float(m.in[s][l][12 + i]);
    }
    for (int r = 0; r < 16; ++r)
      for (int n = 0; n < 8; ++n)
        for (int k = 0; k < 16; ++k) C[r][n] += A[r][k] * B[k][n];
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) m.out[s][l][i] = float_bits(C[i < 2 ? (l >> 2) : (l >> 2) + 8][2 * (l & 3) + (i & 1)]);
  });
  for (int i = 0; i < 4; ++i) c[i] = bits_float(m.out[set][lane][i]);
}
static inline void mma_all(float* c, const u32* a, const u32* b) {
  float a8[8], b4[4];
  for (int i = 0; i < 4; ++i) halves_to(a[i], a8 + 2 * i, a8 + 2 * i + 1);
  for (int i = 0; i < 2; ++i) halves_to(b[i], b4 + 2 * i, b4 + 2 * i + 1);
  emulated_mma(c, a8, b4, 4);
}
static inline void emulated_mma_single(float* c, const float* a8, const float* b4) { emulated_mma(c, a8, b4, 5); }

// ldmatrix.x4.trans: matrix j's row r begins at the address of lane 8j + r; the lane gets rows 2t, 2t + 1 of column g.
static inline void load_transposed_all(const unsigned short* row, u32* out) {
  emulated::Meeting& m = emulated::warp();
  const int lane = thread_index() & 31;
  if ((size_t)row % 16) emulated::fail("an address of ldmatrix is not a multiple of 16");
  m.pointers[m.turn & 1][lane] = row;
  const int set = emulated::meet(m, 32, 6, [&](int s) {
    for (int l = 0; l < 32; ++l)
      for (int j = 0; j < 4; ++j) {
        const unsigned short* first = (const unsigned short*)m.pointers[s][8 * j + 2 * (l & 3)];
        const unsigned short* second = (const unsigned short*)m.pointers[s][8 * j + 2 * (l & 3) + 1];
        m.out[s][l][j] = (u32)first[l >> 2] | (u32)second[l >> 2] << 16;
      }
  });
  for (int j = 0; j < 4; ++j) out[j] = m.out[set][lane][j];
}
