// What the kernels with 512-bit vectors share: reading a panel, decoding it, and the loop that only reads.
#pragma once

#include <immintrin.h>

#include "kernels/portable.h"
#include "kernels/x86_prefetch.h"

#ifndef BITDISTILL_REGISTER  // an emulation of these instructions has none
#define BITDISTILL_REGISTER "v"
#endif

namespace bitdistill {
namespace {

constexpr int kTokens = 10;    // times two panels: 20 sums, and 12 registers for weights and codes
constexpr int kFewTokens = 9;  // a token and eight candidates for those after it

// Sums that a token has where they are few, so that additions do not wait for each other.
constexpr int sums_of(int tokens) { return tokens <= 5 ? 4 : 2; }

inline __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }

// 4 activations for every row.
inline __m512i broadcast(const int8_t* x) {
  int32_t bits;
  memcpy(&bits, x, sizeof bits);
  return _mm512_set1_epi32(bits);
}

// The sum in its register before anything else: GCC 12 copies and spills sums that it may move.
inline __m512i add(__m512i sum, __m512i codes, __m512i x) {
  sum = _mm512_dpbusd_epi32(sum, codes, x);
  asm("" : "+" BITDISTILL_REGISTER(sum));
  return sum;
}

// ---- Decoding: get(step) of a chunk ----------------------------------------------------------------------------------

struct TernaryCodes {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  __m512i v;
  explicit TernaryCodes(const uint8_t* chunk) : v(load(chunk)) {}
  __m512i get(int step) const {
    return _mm512_and_si512(_mm512_srli_epi16(v, static_cast<unsigned>(2 * step)), _mm512_set1_epi8(3));
  }
};

struct Int4Codes {
  static constexpr int64_t kChunkBytes = 2 * kVectorBytes;
  const uint8_t* w;
  explicit Int4Codes(const uint8_t* chunk) : w(chunk) {}
  __m512i get(int step) const {
    const __m512i v = load(w + step / 2 * kVectorBytes);
    return _mm512_and_si512(_mm512_srli_epi16(v, static_cast<unsigned>(4 * (step % 2))), _mm512_set1_epi8(15));
  }
};

struct Int8Codes {
  static constexpr int64_t kChunkBytes = 4 * kVectorBytes;
  const uint8_t* w;
  explicit Int8Codes(const uint8_t* chunk) : w(chunk) {}
  __m512i get(int step) const {
    return _mm512_xor_si512(load(w + step * kVectorBytes), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
};

// ---- Few tokens ------------------------------------------------------------------------------------------------------

// Adds a chunk of two bits a weight. Codes stay where they are in the byte, so that a mask alone decodes them: sum k is 4^k times what it
// should be, at most 192 * 128 * (2^17 / 4) columns < 2^31, and an exact shift takes the factor off. The start is put in last. Where a token
// has two sums, the upper half of the byte is brought down to the lower one.
template <int T, int N>
inline void add_ternary_chunk(const uint8_t* w, const int8_t* x, __m512i (&acc)[T][N]) {
  prefetch(w);
  __m512i v = load(w);
#pragma GCC unroll 4
  for (int step = 0; step < kChunkSteps; ++step) {
    if (N == 2 && step == 2) v = _mm512_srli_epi16(v, 4);
    const __m512i codes = _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(3 << (2 * (step % N)))));
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t) {
      __m512i& sum = acc[t][step % N];
      sum = add(sum, codes, broadcast(x + t * kChunkCols + step * kStepCols));
    }
  }
}

// ---- From integer sums to outputs ------------------------------------------------------------------------------------

inline Ints as_ints(__m512i v) { return load_vector<Ints>(&v); }

// finish_group and finish_output of rows that are one group, operation by operation, but in registers where panels are whole: totals on
// the stack cost much of a product of few columns.
template <int P, int T>
inline void finish_only_group(const Tile& tile, int panel, const __m512i (&sums)[P][T]) {
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p) {
    const Floats scale = load_scales(tile, panel + p, 0);
    const int first = (panel + p) * kPanelRows;
    if (tile.acc != nullptr || tile.rows - first < kPanelRows) {
      for (int t = 0; t < T; ++t) {
        Floats y = {};
        finish_group(tile, panel + p, t, 0, as_ints(sums[p][t]), scale, &y);
        finish_output(tile, panel + p, t, y);
      }
      continue;
    }
    Floats bias = -Floats{};  // adding -0 changes nothing
    if (tile.bias != nullptr) bias = load_vector<Floats>(tile.bias + first);
    float* out = tile.out + first;
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const Floats y = Floats{} + __builtin_convertvector(as_ints(sums[p][t]), Floats) * scale;
      store_vector(out, y * tile.act_scale[t] + bias);
      out += tile.out_stride;
    }
  }
}

// ---- Limits ----------------------------------------------------------------------------------------------------------

inline uint64_t read_loop(const uint8_t* data, int64_t bytes) {
  __m512i acc[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      prefetch(data + i + j * kVectorBytes);
      acc[j] = _mm512_add_epi64(acc[j], load(data + i + j * kVectorBytes));
    }
  }
  const __m512i sum = _mm512_add_epi64(_mm512_add_epi64(acc[0], acc[1]), _mm512_add_epi64(acc[2], acc[3]));
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
}

}  // namespace
}  // namespace bitdistill
