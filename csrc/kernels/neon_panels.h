// What the kernels for ARM share: decoding a panel, and the loop that only reads.
#pragma once

#include <arm_neon.h>

#include "kernels/portable.h"

namespace bitdistill {
namespace {

constexpr int kVectors = 4;  // of a step of a panel, with 4 rows each

// Far enough ahead for the memory; may point beyond the weights, which a prefetch forgives.
inline void prefetch(const uint8_t* w) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(w) + 1024));
}

// `value`, which the compiler believes to depend on the sums `before`. Compilers load and decode all that they can at the
// start of a loop, into more registers than there are, and then keep sums on the stack.
template <class Vector, int N>
inline Vector after(const int32x4_t (&before)[N], Vector value) {
  static_assert(N <= 4, "all of them are named");
  asm("" : "+w"(value) : "w"(before[0]), "w"(before[N > 1 ? 1 : 0]), "w"(before[N > 2 ? 2 : 0]), "w"(before[N > 3 ? 3 : 0]));
  return value;
}

// ---- Decoding: what is loaded for vector i of a chunk, and the codes of its four steps --------------------------------
// Shifts by constants: those by a vector would take registers that the sums need.

struct TernaryCodes {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  static constexpr int kLoads = 1;
  static inline void get(const uint8x16_t (&v)[kLoads], int8x16_t (&codes)[kChunkSteps]) {
    const uint8x16_t mask = vdupq_n_u8(3);
    codes[0] = vreinterpretq_s8_u8(vandq_u8(v[0], mask));
    codes[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v[0], 2), mask));
    codes[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v[0], 4), mask));
    codes[3] = vreinterpretq_s8_u8(vshrq_n_u8(v[0], 6));
  }
};

struct Int4Codes {
  static constexpr int64_t kChunkBytes = 2 * kVectorBytes;
  static constexpr int kLoads = 2;
  static inline void get(const uint8x16_t (&v)[kLoads], int8x16_t (&codes)[kChunkSteps]) {
    const uint8x16_t mask = vdupq_n_u8(15);
    codes[0] = vreinterpretq_s8_u8(vandq_u8(v[0], mask));
    codes[1] = vreinterpretq_s8_u8(vshrq_n_u8(v[0], 4));
    codes[2] = vreinterpretq_s8_u8(vandq_u8(v[1], mask));
    codes[3] = vreinterpretq_s8_u8(vshrq_n_u8(v[1], 4));
  }
};

struct Int8Codes {
  static constexpr int64_t kChunkBytes = 4 * kVectorBytes;
  static constexpr int kLoads = 4;
  static inline void get(const uint8x16_t (&v)[kLoads], int8x16_t (&codes)[kChunkSteps]) {
#pragma GCC unroll 4
    for (int step = 0; step < kChunkSteps; ++step) codes[step] = vreinterpretq_s8_u8(v[step]);
  }
};

template <class Codes>
inline void load_codes(const uint8_t* chunk, int i, uint8x16_t (&v)[Codes::kLoads]) {
#pragma GCC unroll 4
  for (int j = 0; j < Codes::kLoads; ++j) v[j] = vld1q_u8(chunk + j * kVectorBytes + i * 16);
}

// ---- Limits ----------------------------------------------------------------------------------------------------------

// 16 sums of add(sum, codes, x), again and again.
template <class Add>
inline void add_again(int64_t iterations, Add add) {
  int32x4_t acc[16];
  for (int32x4_t& a : acc) a = vdupq_n_s32(0);
  int8x16_t codes = vdupq_n_s8(2), x = vdupq_n_s8(3);
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile("" : "+w"(codes), "+w"(x));
#pragma GCC unroll 16
    for (int32x4_t& a : acc) a = add(a, codes, x);
  }
  for (int32x4_t& a : acc) asm volatile("" : : "w"(a));
}

uint64_t read_loop(const uint8_t* data, int64_t bytes) {
  uint64x2_t acc[4] = {vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0)};
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    for (int j = 0; j < 4; ++j) acc[j] = vaddq_u64(acc[j], vreinterpretq_u64_u8(vld1q_u8(data + i + 16 * j)));
  }
  return vaddvq_u64(vaddq_u64(vaddq_u64(acc[0], acc[1]), vaddq_u64(acc[2], acc[3])));
}

}  // namespace
}  // namespace bitdistill
