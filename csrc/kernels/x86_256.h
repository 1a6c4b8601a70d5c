// Kernels on 256-bit vectors, shared by AVX2 and AVX-VNNI. A panel is two vectors: rows 0-7 and rows 8-15.
//
// An Arithmetic says how 32 codes are multiplied by 32 activations:
//   add(acc, codes, x)       acc plus the products, in the lanes of the accumulator
//   widen(acc)               the accumulator as 8 int32 sums, one a row
//   kMaxSteps                how many add() the accumulator takes before it can overflow
// and a Codes how codes come out of a packed weight.
#pragma once

#include <immintrin.h>

#include "kernels/portable.h"
#include "kernels/x86_prefetch.h"

namespace bitdistill {
namespace {

inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline __m256i broadcast(const int8_t* x) {
  int32_t bits;
  memcpy(&bits, x, sizeof bits);
  return _mm256_set1_epi32(bits);
}

// ---- Decoding: get(step, half) of a chunk ------------------------------------------------------

struct TernaryCodes {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  __m256i v[2];
  explicit TernaryCodes(const uint8_t* chunk) : v{load(chunk), load(chunk + 32)} { prefetch(chunk); }
  __m256i get(int step, int half) const {
    return _mm256_and_si256(_mm256_srli_epi16(v[half], 2 * step), _mm256_set1_epi8(3));
  }
};

struct Int4Codes {
  static constexpr int64_t kChunkBytes = 2 * kVectorBytes;
  __m256i v[2][2];
  explicit Int4Codes(const uint8_t* chunk)
      : v{{load(chunk), load(chunk + 32)}, {load(chunk + 64), load(chunk + 96)}} {
    prefetch(chunk);
    prefetch(chunk + kVectorBytes);
  }
  __m256i get(int step, int half) const {
    return _mm256_and_si256(_mm256_srli_epi16(v[step / 2][half], 4 * (step % 2)), _mm256_set1_epi8(15));
  }
};

template <uint8_t flip>
struct Int8Codes {
  static constexpr int64_t kChunkBytes = 4 * kVectorBytes;
  const uint8_t* w;
  explicit Int8Codes(const uint8_t* chunk) : w(chunk) {
    for (int i = 0; i < 4; ++i) prefetch(w + i * kVectorBytes);
  }
  __m256i get(int step, int half) const {
    const __m256i v = load(w + step * kVectorBytes + half * 32);
    return flip == 0 ? v : _mm256_xor_si256(v, _mm256_set1_epi8(static_cast<char>(flip)));
  }
};

// ---- One panel times T tokens ----------------------------------------------------------------------------------------

template <class Arithmetic, class Codes, int T>
void multiply_panel(const Tile& tile, int panel, const uint8_t* w) {
  Floats total[T] = {};
  const int8_t* x = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    alignas(32) int32_t sums[T][kPanelRows];
    for (int t = 0; t < T; ++t) {
      const int32_t start = start_sum(tile, t, g);
      for (int32_t& sum : sums[t]) sum = start;
    }
    for (int64_t left = chunks_of_group(tile, g); left > 0;) {
      const int64_t most = Arithmetic::kMaxSteps / kChunkSteps;
      const int64_t stretch = left < most ? left : most;
      left -= stretch;
      __m256i acc[T][2];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
      for (int64_t chunk = 0; chunk < stretch; ++chunk) {
        const Codes source(w);
#pragma GCC unroll 4
        for (int step = 0; step < kChunkSteps; ++step) {
          const __m256i codes[2] = {source.get(step, 0), source.get(step, 1)};
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            const __m256i values = broadcast(x + t * kChunkCols + step * kStepCols);
            acc[t][0] = Arithmetic::add(acc[t][0], codes[0], values);
            acc[t][1] = Arithmetic::add(acc[t][1], codes[1], values);
          }
        }
        w += Codes::kChunkBytes;
        x += T * kChunkCols;
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        for (int half = 0; half < 2; ++half) {
          __m256i* const to = reinterpret_cast<__m256i*>(&sums[t][8 * half]);
          _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), Arithmetic::widen(acc[t][half])));
        }
      }
    }
    const Floats scale = load_scales(tile, panel, g);
    for (int t = 0; t < T; ++t) finish_group(tile, panel, t, g, load_vector<Ints>(sums[t]), scale, &total[t]);
  }
  for (int t = 0; t < T; ++t) finish_output(tile, panel, t, total[t]);
}

using PanelFunction = void (*)(const Tile&, int, const uint8_t*);

constexpr int kTokens = 5;

template <class Arithmetic, class Codes>
constexpr PanelFunction kMultiply[kTokens] = {multiply_panel<Arithmetic, Codes, 1>, multiply_panel<Arithmetic, Codes, 2>,
                                              multiply_panel<Arithmetic, Codes, 3>, multiply_panel<Arithmetic, Codes, 4>,
                                              multiply_panel<Arithmetic, Codes, 5>};

// One Arithmetic a format.
template <class Ternary, class Int4, class Int8, uint8_t flip>
struct Kernels256 {
  static void multiply(const Tile& tile) {
    const int t = tile.tokens - 1;
    const PanelFunction function = tile.format == BD_INT8   ? kMultiply<Int8, Int8Codes<flip>>[t]
                                   : tile.format == BD_INT4 ? kMultiply<Int4, Int4Codes>[t]
                                                            : kMultiply<Ternary, TernaryCodes>[t];
    for (int p = 0; p < tile.panels; ++p) function(tile, p, tile.weights + p * tile.panel_bytes);
  }

  // What the ternary product does per step, without loads and decoding.
  static double multiply_add_loop(int64_t iterations) {
    __m256i acc[12];
    for (__m256i& a : acc) a = _mm256_setzero_si256();
    __m256i codes = _mm256_set1_epi8(2), values = _mm256_set1_epi8(0);
    for (int64_t i = 0; i < iterations; ++i) {
      asm volatile("" : "+x"(codes), "+x"(values));
#pragma GCC unroll 12
      for (__m256i& a : acc) a = Ternary::add(a, codes, values);
    }
    for (__m256i& a : acc) asm volatile("" : : "x"(a));
    return static_cast<double>(iterations) * 12 * 32;
  }

  static uint64_t read_loop(const uint8_t* data, int64_t bytes) {
    __m256i acc[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t i = 0; i + 128 <= bytes; i += 128) {
      prefetch(data + i);
      prefetch(data + i + 64);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[j] = _mm256_add_epi64(acc[j], load(data + i + j * 32));
    }
    alignas(32) uint64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes),
                       _mm256_add_epi64(_mm256_add_epi64(acc[0], acc[1]), _mm256_add_epi64(acc[2], acc[3])));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }
};

}  // namespace
}  // namespace bitdistill
