// What translated PTX (ptx.py) runs on: registers as bits, memory that is checked as the chip checks it, and warps that meet
// in the emulated GPU of cuda_shim.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common.h"
#include "cuda_shim.h"

using emulated::half_bits_of;
using emulated::half_value;

// A register's bits read as T: cut off where T is narrower.
template <class T, class R>
static inline T as(R bits) {
  if constexpr (std::is_same<T, bool>::value || std::is_same<R, bool>::value) return (T)bits;
  else if constexpr (sizeof(T) == sizeof(R)) {
    T x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  } else return (T)bits;
}
// A value of type T into a register: what is narrower is filled up by its sign, if it has one.
template <class T, class R>
static inline void put(R& bits, T x) {
  if constexpr (sizeof(T) == sizeof(R)) std::memcpy(&bits, &x, sizeof x);
  else bits = (R)x;
}

static inline unsigned char* aligned(uint64_t at, int bytes, const char* words) {
  if (at % bytes) emulated::fail(words);
  return (unsigned char*)at;
}
static inline unsigned char* global_memory(uint64_t at, int bytes) {
  if (at < 4096) emulated::fail("access to address zero");
  return aligned(at, bytes, "a global access is misaligned");
}
static inline unsigned char* local_memory(uint64_t at, int bytes) { return aligned(at, std::min(bytes, 16), "a local access is misaligned"); }
static inline unsigned char* param_memory(uint64_t at, int bytes) { return aligned(at, std::min(bytes, 16), "an access to arguments is misaligned"); }
static inline unsigned char* shared_memory(uint64_t at, int bytes) {
  at &= 0xffffffffu;
  if (at % bytes) emulated::fail("an access to shared memory is misaligned");
  if (at + bytes > emulated::block.shared.size()) emulated::fail("an access beyond the block's shared memory");
  return emulated::block.shared.data() + at;
}

template <class T>
static inline T shifted_left(T a, uint32_t n) { return n >= 8 * sizeof(T) ? 0 : (T)(a << n); }
template <class T>
static inline T shifted_right(T a, uint32_t n) { return n >= 8 * sizeof(T) ? (T)(a < 0 ? -1 : 0) : (T)(a >> n); }
template <class T>
static inline T high_half(T a, T b) {
  typedef typename std::conditional<std::is_signed<T>::value, __int128, unsigned __int128>::type Wide;
  return (T)((Wide)a * (Wide)b >> 8 * sizeof(T));
}
static inline uint32_t inserted(uint32_t a, uint32_t into, uint32_t at, uint32_t n) {
  const uint32_t mask = (n >= 32 ? ~0u : (1u << n) - 1) << at;
  return (into & ~mask) | ((a << at) & mask);
}
// Rounded down. The product is exact in double precision; the sum is as good as, where it is used (the exponent of exp).
static inline float fma_downwards(float a, float b, float c) {
  const double exact = (double)a * b + c;
  const float nearest = (float)exact;
  return (double)nearest > exact ? std::nextafter(nearest, -INFINITY) : nearest;
}
// The chip's has an error of two units in the last place; this one, of less.
static inline float exp2_flushed(float x) {
  const float y = std::exp2(x);
  return std::fabs(y) < 1.17549435e-38f ? 0.0f : y;
}
static inline float saturated(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }
template <class T>
static inline T towards_zero(float x) {
  typedef std::numeric_limits<T> Limits;
  if (x != x) return 0;
  if ((double)x <= (double)Limits::min()) return Limits::min();
  return (double)x >= (double)Limits::max() ? Limits::max() : (T)x;
}

static inline uint32_t shuffled(uint32_t x, uint32_t from, uint32_t clamp, uint32_t mask) {
  if (clamp != 31 || mask != 0xffffffffu) emulated::fail("a shuffle of a part of the warp");
  return shuffle_bits(x, (int)from);
}
static inline uint32_t voted(bool x, uint32_t mask) {
  if (mask != 0xffffffffu) emulated::fail("a vote of a part of the warp");
  return ballot_all(x);
}
static inline void load_matrices(uint64_t at, uint32_t* out) { load_transposed_all((const unsigned short*)shared_memory(at, 16), out); }

#define PTX_KERNEL(NAME, BYTES, THREADS)                                                                                 \
  extern "C" __attribute__((visibility("default"))) void NAME(int grid_x, int grid_y, int threads, int shared,           \
                                                              const void* args, long long bytes) {                       \
    if (bytes != BYTES) emulated::fail(#NAME ": Python's struct has another size than the compiled one");                \
    if (threads > THREADS) emulated::fail(#NAME ": more threads than its launch bounds allow");                          \
    alignas(16) static unsigned char copy[BYTES];                                                                        \
    std::memcpy(copy, args, BYTES);                                                                                      \
    emulated::run(grid_x, grid_y, threads, shared, [] { run_##NAME(copy); });                                            \
  }
