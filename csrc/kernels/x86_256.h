// Kernels on 256-bit vectors, shared by AVX2 and AVX-VNNI. A panel is two vectors: rows 0-7 and rows 8-15.
//
// An Arithmetic says how 32 codes are multiplied by 32 activations:
//   add(acc, codes, x)       acc plus the products, in the lanes of the accumulator
//   widen(acc)               the accumulator as 8 int32 sums, one a row
//   kMaxSteps                how many add() the accumulator takes before it can overflow
//   kTokens                  how many tokens times the two vectors of a panel fit into the registers
//   sets(tokens)             of how many accumulators for a row and token, so that no add() waits for the one before
// and a Codes how codes come out of a packed weight: get(step, half) of a chunk.
//
// All sums stay in the 16 registers while columns are read: tests/native/test_inner_loops.py reads the machine code.
#pragma once

#include <immintrin.h>

#include "kernels/portable.h"
#include "kernels/x86_prefetch.h"

namespace bitdistill {
namespace {

#define BITDISTILL_INLINE __attribute__((always_inline))

template <int N>
struct Constant {
  constexpr operator int() const { return N; }
};

// body(Constant<0>()), ... body(Constant<N - 1>()).
template <int N, typename F>
BITDISTILL_INLINE inline void unroll(const F& body) {
  if constexpr (N > 0) {
    unroll<N - 1>(body);
    body(Constant<N - 1>());
  }
}

// The sum in a register before anything else is added. Compilers know that integer additions commute and would add the
// products of several steps to each other first, which keeps more of them than there are registers.
inline __m256i in_order(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

// A value that the compiler must have in a register, and must not remember.
inline void used(__m256i& v) { asm volatile("" : "+x"(v)); }

inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline __m256i bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }

// 4 activations for every row.
inline __m256i broadcast(const int8_t* x) {
  int32_t bits;
  memcpy(&bits, x, sizeof bits);
  return _mm256_set1_epi32(bits);
}

// ---- Decoding --------------------------------------------------------------------------------------------------------
// Codes of set k come out 2^(kSetShift * k) times too large.

struct TernaryCodes {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  static constexpr int kGroupChunks = 0;
  static constexpr int kSetShift = 0;
  const __m256i v[2];
  explicit TernaryCodes(const uint8_t* chunk) : v{load(chunk), load(chunk + 32)} {}
  __m256i get(int step, int half) const { return _mm256_and_si256(_mm256_srli_epi16(v[half], 2 * step), bytes(3)); }
};

// Only every kSets-th step is shifted; the codes of those between stay where they are in the byte.
template <int kSets>
struct TernaryCodesInPlace {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  static constexpr int kGroupChunks = 0;
  static constexpr int kSetShift = 2;
  const __m256i v[2];
  explicit TernaryCodesInPlace(const uint8_t* chunk) : v{load(chunk), load(chunk + 32)} {}
  __m256i get(int step, int half) const {
    return _mm256_and_si256(_mm256_srli_epi16(v[half], 2 * (step / kSets * kSets)), bytes(3 << (2 * (step % kSets))));
  }
};

struct Int4Codes {
  static constexpr int64_t kChunkBytes = 2 * kVectorBytes;
  static constexpr int kGroupChunks = kInt4Group / kChunkCols;
  static constexpr int kSetShift = 0;
  const uint8_t* const w;
  explicit Int4Codes(const uint8_t* chunk) : w(chunk) {}
  __m256i get(int step, int half) const {
    const __m256i v = load(w + step / 2 * kVectorBytes + half * 32);
    return _mm256_and_si256(_mm256_srli_epi16(v, 4 * (step % 2)), bytes(15));
  }
};

template <uint8_t flip>
struct Int8Codes {
  static constexpr int64_t kChunkBytes = 4 * kVectorBytes;
  static constexpr int kGroupChunks = 0;
  static constexpr int kSetShift = 0;
  const uint8_t* const w;
  explicit Int8Codes(const uint8_t* chunk) : w(chunk) {}
  __m256i get(int step, int half) const {
    const __m256i v = load(w + step * kVectorBytes + half * 32);
    return flip == 0 ? v : _mm256_xor_si256(v, bytes(flip));
  }
};

// ---- From integer sums to outputs ------------------------------------------------------------------------------------
// What portable.h defines, operation by operation, on two registers: its vectors of 16 lanes go through the stack here.

struct Row16 {
  __m256 half[2];
};

inline Row16 load_row(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }

inline Row16 load_scale_row(const Tile& tile, int panel, int64_t group) {
  const int64_t at = panel * tile.scale_panel_stride + group * tile.scale_group_stride;
  if (!tile.scale_is_f16) return load_row(static_cast<const float*>(tile.scales) + at);
  Row16 scales;
  for (int i = 0; i < 2; ++i) {
    const uint16_t* const halves = static_cast<const uint16_t*>(tile.scales) + at + 8 * i;
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    const __m256i shifted = _mm256_slli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fff)), 13);
    const __m256 magnitude = _mm256_mul_ps(_mm256_castsi256_ps(shifted), _mm256_set1_ps(0x1p112f));
    const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x8000)), 16);
    scales.half[i] = _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign));
  }
  return scales;
}

// finish_group where sums are asked for: tests only.
__attribute__((noinline, cold)) void store_sums(const Tile& tile, int panel, int token, int64_t group, __m256i low,
                                                __m256i high) {
  alignas(32) int32_t sums[kPanelRows];
  store(sums, low);
  store(sums + 8, high);
  finish_group(tile, panel, token, group, load_vector<Ints>(sums), Floats{}, nullptr);
}

// finish_group
inline void add_group(const Tile& tile, int panel, int token, int64_t group, __m256i low, __m256i high, const Row16& scale,
                      Row16* total) {
  if (tile.acc != nullptr) return store_sums(tile, panel, token, group, low, high);
  total->half[0] = _mm256_add_ps(total->half[0], _mm256_mul_ps(_mm256_cvtepi32_ps(low), scale.half[0]));
  total->half[1] = _mm256_add_ps(total->half[1], _mm256_mul_ps(_mm256_cvtepi32_ps(high), scale.half[1]));
}

// finish_output of all tokens
inline void write_outputs(const Tile& tile, int panel, const Row16* total) {
  if (tile.acc != nullptr) return;
  const int first = panel * kPanelRows;
  const int rows = tile.rows - first < kPanelRows ? tile.rows - first : kPanelRows;
  alignas(32) float last[kPanelRows] = {};
  if (tile.bias != nullptr) memcpy(last, tile.bias + first, static_cast<size_t>(rows) * sizeof(float));
  const Row16 bias = load_row(last);
  for (int t = 0; t < tile.tokens; ++t) {
    float* const out = tile.out + t * tile.out_stride + first;
    for (int half = 0; half < 2; ++half) {
      __m256 y = total[t].half[half];
      y = _mm256_mul_ps(y, _mm256_set1_ps(tile.act_scale[t]));
      if (tile.bias != nullptr) y = _mm256_add_ps(y, bias.half[half]);
      _mm256_storeu_ps((rows == kPanelRows ? out : last) + 8 * half, y);
    }
    if (rows != kPanelRows) memcpy(out, last, static_cast<size_t>(rows) * sizeof(float));
  }
}

// ---- One panel times T tokens ----------------------------------------------------------------------------------------
// Decoding in registers, again for every block of tokens, is measured against decoding a stretch of columns to memory for
// 48 tokens at once: as fast with AVX2, 10 % faster with AVX-VNNI. Step s adds to set s % kSets of the accumulators.
// Groups of as few chunks as those of int4 are written out: a loop over two chunks takes a fifth more time.

// With more tokens the arithmetic takes longer than the memory, and a prompt takes its weights from the cache.
constexpr int kMostTokensToPrefetch = 2;

// With more tokens the totals of a group have no registers beside the sums.
constexpr int kMostTokensToUnroll = 1;

template <class Arithmetic, class Codes, int T, int kSets>
void multiply_panel(const Tile& tile, int panel) {
  static_assert(kChunkSteps % kSets == 0, "a set has equally many steps of each chunk");
  constexpr int64_t kMost = Arithmetic::kMaxSteps * kSets / kChunkSteps >> (Codes::kSetShift * (kSets - 1));
  static_assert(kMost > 0, "the accumulators must take one chunk");
  Row16 total[T];
  unroll<T>([&](auto t) BITDISTILL_INLINE { total[t].half[0] = total[t].half[1] = _mm256_setzero_ps(); });
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    __m256i sums[T][2];
    unroll<T>([&](auto t) BITDISTILL_INLINE { sums[t][0] = sums[t][1] = _mm256_set1_epi32(start_sum(tile, t, g)); });
    for (int64_t left = chunks_of_group(tile, g); left > 0; left -= kMost) {
      __m256i acc[kSets][T][2];
      unroll<kSets>([&](auto set) BITDISTILL_INLINE {
        unroll<T>([&](auto t) BITDISTILL_INLINE { acc[set][t][0] = acc[set][t][1] = _mm256_setzero_si256(); });
      });
      const auto chunk = [&]() BITDISTILL_INLINE {
        if (T <= kMostTokensToPrefetch) prefetch_chunk<Codes::kChunkBytes>(w, tile.groups);
        const Codes source(w);
        unroll<kChunkSteps>([&](auto step) BITDISTILL_INLINE {
          constexpr int kSet = decltype(step)() % kSets;
          const __m256i low = source.get(step, 0), high = source.get(step, 1);
          unroll<T>([&](auto t) BITDISTILL_INLINE {
            const __m256i values = broadcast(x + t * kChunkCols + step * kStepCols);
            acc[kSet][t][0] = Arithmetic::add(acc[kSet][t][0], low, values);
            acc[kSet][t][1] = Arithmetic::add(acc[kSet][t][1], high, values);
          });
        });
        w += Codes::kChunkBytes;
        x += T * kChunkCols;
      };
      if (T <= kMostTokensToUnroll && Codes::kGroupChunks > 0 && left == Codes::kGroupChunks) {
        unroll<Codes::kGroupChunks>([&](auto) BITDISTILL_INLINE { chunk(); });
      } else {
        const uint8_t* const end = w + (left < kMost ? left : kMost) * Codes::kChunkBytes;
        do chunk();
        while (w != end);
      }
      unroll<kSets>([&](auto set) BITDISTILL_INLINE {
        unroll<2 * T>([&](auto i) BITDISTILL_INLINE {
          const __m256i wide = Arithmetic::widen(acc[set][i / 2][i % 2]);
          sums[i / 2][i % 2] = _mm256_add_epi32(sums[i / 2][i % 2], _mm256_srai_epi32(wide, Codes::kSetShift * set));
        });
      });
    }
    const Row16 scale = load_scale_row(tile, panel, g);
    unroll<T>([&](auto t) BITDISTILL_INLINE { add_group(tile, panel, t, g, sums[t][0], sums[t][1], scale, &total[t]); });
  }
  write_outputs(tile, panel, total);
}

// ---- All of them -----------------------------------------------------------------------------------------------------

using PanelFunction = void (*)(const Tile&, int);

template <class Codes, int kSets>
struct CodesInSets {
  using Type = Codes;
};
template <int kSets>
struct CodesInSets<TernaryCodes, kSets> {
  using Type = TernaryCodesInPlace<kSets>;
};
template <>
struct CodesInSets<TernaryCodes, 1> {
  using Type = TernaryCodes;
};

// The function for a number of tokens, 1 to T.
template <class Arithmetic, class Codes, int T>
PanelFunction panel_function(int tokens) {
  if constexpr (T > 1) {
    if (tokens < T) return panel_function<Arithmetic, Codes, T - 1>(tokens);
  }
  // The sums of short groups are independent chains already.
  constexpr int kSets = Codes::kGroupChunks > 0 ? 1 : Arithmetic::sets(T);
  return multiply_panel<Arithmetic, typename CodesInSets<Codes, kSets>::Type, T, kSets>;
}

template <class Arithmetic, class Codes>
void multiply_format(const Tile& tile) {
  const PanelFunction function = panel_function<Arithmetic, Codes, Arithmetic::kTokens>(tile.tokens);
  for (int p = 0; p < tile.panels; ++p) function(tile, p);
}

// One Arithmetic a format.
template <class Ternary, class Int4, class Int8, uint8_t flip>
struct Kernels256 {
  static void multiply(const Tile& tile) {
    switch (tile.format) {
      case BD_TERNARY: return multiply_format<Ternary, TernaryCodes>(tile);
      case BD_INT8: return multiply_format<Int8, Int8Codes<flip>>(tile);
      case BD_INT4: return multiply_format<Int4, Int4Codes>(tile);
      case BD_TERNARY_DENSE: return;  // (never: it is widened)
    }
  }

  // What the ternary product does per step, without loads and decoding.
  static double multiply_add_loop(int64_t iterations) {
    constexpr int kSums = 12;
    __m256i acc[kSums];
    unroll<kSums>([&](auto i) BITDISTILL_INLINE { acc[i] = _mm256_setzero_si256(); });
    __m256i codes = bytes(2), values = bytes(0);
    used(values);
    for (int64_t i = 0; i < iterations; ++i) {
      unroll<kSums>([&](auto i) BITDISTILL_INLINE {
        used(codes);  // else one product would do for all sums
        acc[i] = Ternary::add(acc[i], codes, values);
      });
    }
    unroll<kSums>([&](auto i) BITDISTILL_INLINE { used(acc[i]); });
    return static_cast<double>(iterations) * kSums * 32;
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
