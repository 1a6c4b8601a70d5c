// Kernels on 256-bit vectors, shared by AVX2 and AVX-VNNI. A panel is two vectors: rows 0-7 and rows 8-15.
//
// An Arithmetic says how 32 codes are multiplied by 32 activations:
//   add(acc, codes, x)       acc plus the products, in the lanes of the accumulator
//   widen(acc)               the accumulator as 8 int32 sums, one a row
//   kMaxSteps                how many add() the accumulator takes before it can overflow
//   kChains                  how many accumulators must be in use so that no add() waits for the one before
//   kTokens                  how many tokens times one panel fit into the registers
// and a Codes how codes come out of a packed weight: get(step, half) of a chunk.
//
// Accumulators are arrays that only constants index, in code that the front end unrolls. A loop unrolled by a pragma is
// unrolled after the compiler decided what lives in registers: GCC then keeps them on the stack, with a store after every
// addition. tests/native/test_inner_loops.py reads the machine code.
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
  static constexpr int kSetShift = 0;
  const __m256i v[2];
  explicit TernaryCodes(const uint8_t* chunk) : v{load(chunk), load(chunk + 32)} {}
  __m256i get(int step, int half) const { return _mm256_and_si256(_mm256_srli_epi16(v[half], 2 * step), bytes(3)); }
};

// Only every kSets-th step is shifted; the codes of those between stay where they are in the byte.
template <int kSets>
struct TernaryCodesInPlace {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  static constexpr int kSetShift = 2;
  const __m256i v[2];
  explicit TernaryCodesInPlace(const uint8_t* chunk) : v{load(chunk), load(chunk + 32)} {}
  __m256i get(int step, int half) const {
    return _mm256_and_si256(_mm256_srli_epi16(v[half], 2 * (step / kSets * kSets)), bytes(3 << (2 * (step % kSets))));
  }
};

struct Int4Codes {
  static constexpr int64_t kChunkBytes = 2 * kVectorBytes;
  static constexpr int kSetShift = 0;
  const __m256i v[2][2];
  explicit Int4Codes(const uint8_t* chunk)
      : v{{load(chunk), load(chunk + 32)}, {load(chunk + 64), load(chunk + 96)}} {}
  __m256i get(int step, int half) const {
    return _mm256_and_si256(_mm256_srli_epi16(v[step / 2][half], 4 * (step % 2)), bytes(15));
  }
};

template <uint8_t flip>
struct Int8Codes {
  static constexpr int64_t kChunkBytes = 4 * kVectorBytes;
  static constexpr int kSetShift = 0;
  const uint8_t* const w;
  explicit Int8Codes(const uint8_t* chunk) : w(chunk) {}
  __m256i get(int step, int half) const {
    const __m256i v = load(w + step * kVectorBytes + half * 32);
    return flip == 0 ? v : _mm256_xor_si256(v, bytes(flip));
  }
};

constexpr int64_t kDecodedChunkBytes = kChunkSteps * kVectorBytes;

// What get() returns for all steps of some chunks, in memory. Packed int8 weights are that already.
template <class Codes>
struct Decoder {
  static const uint8_t* run(const uint8_t* w, int64_t chunks, uint8_t* to) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const Codes source(w + chunk * Codes::kChunkBytes);
      unroll<kChunkSteps>([&](auto step) BITDISTILL_INLINE {
        for (int half = 0; half < 2; ++half) {
          store(to + chunk * kDecodedChunkBytes + step * kVectorBytes + half * 32, source.get(step, half));
        }
      });
    }
    return to;
  }
};

template <>
struct Decoder<Int8Codes<0>> {
  static const uint8_t* run(const uint8_t* w, int64_t, uint8_t*) { return w; }
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

// finish_group and finish_output. `total`: 16 floats of the token.
inline void add_group(const Tile& tile, int panel, int token, int64_t group, __m256i low, __m256i high, const Row16& scale,
                      float* total) {
  if (tile.acc != nullptr) {
    alignas(32) int32_t sums[kPanelRows];
    store(sums, low);
    store(sums + 8, high);
    finish_group(tile, panel, token, group, load_vector<Ints>(sums), Floats{}, nullptr);
    return;
  }
  const __m256 products[2] = {_mm256_mul_ps(_mm256_cvtepi32_ps(low), scale.half[0]),
                              _mm256_mul_ps(_mm256_cvtepi32_ps(high), scale.half[1])};
  for (int i = 0; i < 2; ++i) _mm256_storeu_ps(total + 8 * i, _mm256_add_ps(_mm256_loadu_ps(total + 8 * i), products[i]));
}

// total [tokens][16]
inline void write_outputs(const Tile& tile, int panel, const float* total) {
  if (tile.acc != nullptr) return;
  const int first = panel * kPanelRows;
  const int rows = tile.rows - first < kPanelRows ? tile.rows - first : kPanelRows;
  alignas(32) float last[kPanelRows] = {};
  if (tile.bias != nullptr) memcpy(last, tile.bias + first, static_cast<size_t>(rows) * sizeof(float));
  const Row16 bias = load_row(last);
  for (int t = 0; t < tile.tokens; ++t, total += kPanelRows) {
    float* const out = tile.out + t * tile.out_stride + first;
    for (int i = 0; i < 2; ++i) {
      __m256 y = _mm256_loadu_ps(total + 8 * i);
      if (tile.row_offset != nullptr) {
        const __m256 offset = _mm256_loadu_ps(tile.row_offset + first + 8 * i);
        y = _mm256_add_ps(y, _mm256_mul_ps(offset, _mm256_set1_ps(static_cast<float>(tile.token_sums[t]))));
      }
      y = _mm256_mul_ps(y, _mm256_set1_ps(tile.act_scale[t]));
      if (tile.bias != nullptr) y = _mm256_add_ps(y, bias.half[i]);
      _mm256_storeu_ps(rows == kPanelRows ? out + 8 * i : last + 8 * i, y);
    }
    if (rows != kPanelRows) memcpy(out, last, static_cast<size_t>(rows) * sizeof(float));
  }
}

// ---- Few tokens: codes decoded in registers --------------------------------------------------------------------------

// One panel times T tokens. Step s adds to set s % kSets of the accumulators.
template <class Arithmetic, class Codes, int T, int kSets>
void multiply_few(const Tile& tile, int panel) {
  static_assert(kChunkSteps % kSets == 0, "a set has equally many steps of each chunk");
  constexpr int64_t kMost = Arithmetic::kMaxSteps * kSets / kChunkSteps >> (Codes::kSetShift * (kSets - 1));
  static_assert(kMost > 0, "the accumulators must take one chunk");
  alignas(32) float total[T][kPanelRows] = {};
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
      const uint8_t* const end = w + (left < kMost ? left : kMost) * Codes::kChunkBytes;
      do {
        unroll<Codes::kChunkBytes / kVectorBytes>([&](auto i) BITDISTILL_INLINE { prefetch(w + i * kVectorBytes); });
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
      } while (w != end);
      unroll<kSets>([&](auto set) BITDISTILL_INLINE {
        unroll<2 * T>([&](auto i) BITDISTILL_INLINE {
          const __m256i wide = Arithmetic::widen(acc[set][i / 2][i % 2]);
          sums[i / 2][i % 2] = _mm256_add_epi32(sums[i / 2][i % 2], _mm256_srai_epi32(wide, Codes::kSetShift * set));
        });
      });
    }
    const Row16 scale = load_scale_row(tile, panel, g);
    unroll<T>([&](auto t) BITDISTILL_INLINE { add_group(tile, panel, t, g, sums[t][0], sums[t][1], scale, total[t]); });
  }
  write_outputs(tile, panel, total[0]);
}

// ---- Many tokens: codes decoded to memory, a stretch of columns at a time --------------------------------------------

// Tokens of a tile, and chunks of a stretch: its decoded codes, the activations of these chunks and the sums of all tokens
// together stay in the first-level cache.
constexpr int kTokenBlock = 48;
constexpr int64_t kStretchChunks = 16;

// sums [T][16] plus a stretch of one panel times T tokens, whose activations are `stride` apart from chunk to chunk.
template <class Arithmetic, int T>
void multiply_stretch(const uint8_t* codes, int64_t chunks, const int8_t* x, int64_t stride, int32_t* sums) {
  __m256i acc[T][2];
  unroll<T>([&](auto t) BITDISTILL_INLINE { acc[t][0] = acc[t][1] = _mm256_setzero_si256(); });
  const uint8_t* const end = codes + chunks * kDecodedChunkBytes;
  do {
    unroll<kChunkSteps>([&](auto step) BITDISTILL_INLINE {
      const __m256i low = load(codes + step * kVectorBytes), high = load(codes + step * kVectorBytes + 32);
      unroll<T>([&](auto t) BITDISTILL_INLINE {
        const __m256i values = broadcast(x + t * kChunkCols + step * kStepCols);
        acc[t][0] = Arithmetic::add(acc[t][0], low, values);
        acc[t][1] = Arithmetic::add(acc[t][1], high, values);
      });
    });
    codes += kDecodedChunkBytes;
    x += stride;
  } while (codes != end);
  unroll<2 * T>([&](auto i) BITDISTILL_INLINE {
    int32_t* const to = sums + 8 * i;
    store(to, _mm256_add_epi32(load(to), Arithmetic::widen(acc[i / 2][i % 2])));
  });
}

using StretchFunction = void (*)(const uint8_t*, int64_t, const int8_t*, int64_t, int32_t*);

template <class Arithmetic, int T>
StretchFunction stretch_function(int tokens) {
  if constexpr (T == 1) {
    return multiply_stretch<Arithmetic, 1>;
  } else {
    return tokens == T ? multiply_stretch<Arithmetic, T> : stretch_function<Arithmetic, T - 1>(tokens);
  }
}

template <class Arithmetic, class Codes>
void multiply_many(const Tile& tile, int panel) {
  constexpr int64_t kMaxChunks = Arithmetic::kMaxSteps / kChunkSteps;
  constexpr int64_t kMost = kMaxChunks < kStretchChunks ? kMaxChunks : kStretchChunks;
  alignas(BD_ALIGNMENT) uint8_t decoded[kMost * kDecodedChunkBytes];
  alignas(BD_ALIGNMENT) int32_t sums[kTokenBlock][kPanelRows];
  alignas(32) float total[kTokenBlock][kPanelRows];
  // Parts of nearly equal size.
  const int parts = static_cast<int>(div_up(tile.tokens, Arithmetic::kTokens));
  const int most = static_cast<int>(div_up(tile.tokens, parts));
  const int full = tile.tokens - parts * (most - 1);  // parts of `most` tokens; the others have one less
  const StretchFunction larger = stretch_function<Arithmetic, Arithmetic::kTokens>(most);
  const StretchFunction smaller = stretch_function<Arithmetic, Arithmetic::kTokens>(most > 1 ? most - 1 : 1);
  const int64_t stride = int64_t{tile.tokens} * kChunkCols;

  memset(total, 0, static_cast<size_t>(tile.tokens) * sizeof total[0]);
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    for (int t = 0; t < tile.tokens; ++t) {
      const __m256i start = _mm256_set1_epi32(start_sum(tile, t, g));
      store(sums[t], start);
      store(sums[t] + 8, start);
    }
    for (int64_t left = chunks_of_group(tile, g); left > 0; left -= kMost) {
      const int64_t chunks = left < kMost ? left : kMost;
      const uint8_t* const codes = Decoder<Codes>::run(w, chunks, decoded);
      int t = 0;
      for (int part = 0; part < full; ++part, t += most) larger(codes, chunks, x + t * kChunkCols, stride, sums[t]);
      for (; t < tile.tokens; t += most - 1) smaller(codes, chunks, x + t * kChunkCols, stride, sums[t]);
      w += chunks * Codes::kChunkBytes;
      x += chunks * stride;
    }
    const Row16 scale = load_scale_row(tile, panel, g);
    for (int t = 0; t < tile.tokens; ++t) {
      add_group(tile, panel, t, g, load(sums[t]), load(sums[t] + 8), scale, total[t]);
    }
  }
  write_outputs(tile, panel, total[0]);
}

// ---- All of them -----------------------------------------------------------------------------------------------------

using PanelFunction = void (*)(const Tile&, int);

constexpr int kFewTokens = 4;

// Sets of accumulators for T tokens: as many as there must be chains, as far as registers go.
template <class Arithmetic>
constexpr int sets_of(int tokens) {
  const int wanted = Arithmetic::kChains / (2 * tokens);
  return wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
}

template <class Arithmetic, class Codes, int T>
constexpr PanelFunction few_function() {
  return multiply_few<Arithmetic, Codes, T, sets_of<Arithmetic>(T)>;
}

template <class Arithmetic, class Codes>
constexpr PanelFunction kMultiply[kFewTokens + 1] = {
    multiply_many<Arithmetic, Codes>, few_function<Arithmetic, Codes, 1>(), few_function<Arithmetic, Codes, 2>(),
    few_function<Arithmetic, Codes, 3>(), few_function<Arithmetic, Codes, 4>()};

template <class Arithmetic>
constexpr PanelFunction kMultiply<Arithmetic, TernaryCodes>[kFewTokens + 1] = {
    multiply_many<Arithmetic, TernaryCodes>,
    multiply_few<Arithmetic, TernaryCodesInPlace<Arithmetic::kTernarySets1>, 1, Arithmetic::kTernarySets1>,
    multiply_few<Arithmetic, TernaryCodesInPlace<2>, 2, 2>,
    few_function<Arithmetic, TernaryCodes, 3>(), few_function<Arithmetic, TernaryCodes, 4>()};

// One Arithmetic a format.
template <class Ternary, class Int4, class Int8, uint8_t flip>
struct Kernels256 {
  static void multiply(const Tile& tile) {
    const int t = tile.tokens <= kFewTokens ? tile.tokens : 0;
    const PanelFunction function = tile.format == BD_INT8   ? kMultiply<Int8, Int8Codes<flip>>[t]
                                   : tile.format == BD_INT4 ? kMultiply<Int4, Int4Codes>[t]
                                                            : kMultiply<Ternary, TernaryCodes>[t];
    for (int p = 0; p < tile.panels; ++p) function(tile, p);
  }

  // What the ternary product does per step, without loads and decoding.
  static double multiply_add_loop(int64_t iterations) {
    constexpr int kSums = 12;
    __m256i acc[kSums];
    unroll<kSums>([&](auto i) BITDISTILL_INLINE { acc[i] = _mm256_setzero_si256(); });
    __m256i codes = bytes(2), values = bytes(0);
    for (int64_t i = 0; i < iterations; ++i) {
      unroll<kSums>([&](auto i) BITDISTILL_INLINE {
        asm volatile("" : "+x"(codes), "+x"(values));  // else one product would do for all sums
        acc[i] = Ternary::add(acc[i], codes, values);
      });
    }
    unroll<kSums>([&](auto i) BITDISTILL_INLINE { asm volatile("" : : "x"(acc[i])); });
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
