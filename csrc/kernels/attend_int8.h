// Attention over keys and values of 8 bits: as over floats (attend_floats.h), with sums of integers.
// They are exact, hence the same in any order and on every instruction set.
//
//   key, value  k = scale * integers of [-127, 127], scale = the greatest magnitude / 127, of a head and position
//   query       the same
//   score       float32(sum of integers) * (scale of the query * attention scale) * scale of the key
//   weights     of a page: e^(score - greatest) * scale of the value, as integers of [0, 16383] times one scale
// A vector that holds a NaN or an infinity has integers 0 and the scale NaN.
#pragma once

#include "kernels/attend_tiles.h"

namespace bitdistill {
namespace {

constexpr float kMostInteger = 127.0f;
constexpr float kMostWeight = 16383.0f;  // two digits of 7 bits: bytes that signed and unsigned products take alike

// ---- Products of four ------------------------------------------------------------------------------------------------
// Sixteen times four signed bytes lie in 64 bytes; a register holds kWidth times four. Each is multiplied by the same four
// integers, the operand.

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)

typedef uint32_t Operand;      // four bytes
typedef int8_t Element;        // of an operand
constexpr int kDigits = 2;     // of a weight
#if defined(__AVX512VNNI__)
typedef __m512i Fours;
inline Fours load_fours(const int8_t* p) { return _mm512_loadu_si512(p); }
inline VectorInts add_products(const VectorInts& sum, const Fours& unsigned_bytes, const Fours& signed_bytes) {
  const __m512i v = _mm512_dpbusd_epi32(load_vector<__m512i>(&sum), unsigned_bytes, signed_bytes);
  return load_vector<VectorInts>(&v);
}
inline Fours all_fours(const Operand* p) {
  int32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  return _mm512_set1_epi32(bytes);
}
#elif defined(__AVXVNNI__)
typedef __m256i Fours;
inline Fours load_fours(const int8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline VectorInts add_products(const VectorInts& sum, const Fours& unsigned_bytes, const Fours& signed_bytes) {
  return reinterpret_cast<VectorInts>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), unsigned_bytes, signed_bytes));
}
inline Fours all_fours(const Operand* p) {
  int32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}
#else
typedef int8x16_t Fours;
inline Fours load_fours(const int8_t* p) { return vld1q_s8(p); }
inline VectorInts add_products(const VectorInts& sum, const Fours& a, const Fours& b) {
  return reinterpret_cast<VectorInts>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), a, b));
}
inline Fours all_fours(const Operand* p) {
  uint32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  return vreinterpretq_s8_u32(vdupq_n_u32(bytes));
}
#endif
// x86 multiplies unsigned by signed bytes: keys are stored with 128 added, which the start of their sums takes off.
#if defined(__ARM_NEON)
constexpr int32_t kKeyOffset = 0;
#else
constexpr int32_t kKeyOffset = 128;
#endif
inline VectorInts multiply_key(const VectorInts& sum, const Fours& key, const Operand* q) {
  return add_products(sum, key, all_fours(q));
}
inline VectorInts multiply_value(const VectorInts& sum, const Fours& value, const Operand* weights) {
  return add_products(sum, all_fours(weights), value);
}
inline Operand in_order(Operand x) { return x; }

#else

// Products of 16 bits, added in pairs: of the elements 0 and 2, and of 1 and 3.
typedef uint64_t Operand;  // four times 16 bits, in the order 0, 2, 1, 3 (in_order)
typedef int16_t Element;
constexpr int kDigits = 1;
constexpr int32_t kKeyOffset = 0;
#if defined(__AVX2__)
struct Fours {
  __m256i even, odd;
};
inline Fours load_fours(const int8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}
inline VectorInts multiply_key(const VectorInts& sum, const Fours& fours, const Operand* operand) {
  int32_t pairs[2];
  memcpy(pairs, operand, sizeof pairs);
  const __m256i even = _mm256_madd_epi16(fours.even, _mm256_set1_epi32(pairs[0]));
  const __m256i odd = _mm256_madd_epi16(fours.odd, _mm256_set1_epi32(pairs[1]));
  return reinterpret_cast<VectorInts>(_mm256_add_epi32(_mm256_add_epi32(reinterpret_cast<__m256i>(sum), even), odd));
}
#else
struct Fours {
  VectorInts elements[4];
};
inline Fours load_fours(const int8_t* p) {
  Fours fours;
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < kWidth; ++i) fours.elements[j][i] = p[4 * i + j];
  }
  return fours;
}
inline VectorInts multiply_key(const VectorInts& sum, const Fours& fours, const Operand* operand) {
  int16_t x[4];
  memcpy(x, operand, sizeof x);
  return sum + (fours.elements[0] * x[0] + fours.elements[1] * x[2]) + (fours.elements[2] * x[1] + fours.elements[3] * x[3]);
}
#endif
inline VectorInts multiply_value(const VectorInts& sum, const Fours& value, const Operand* weights) {
  return multiply_key(sum, value, weights);
}
inline Operand in_order(Operand x) { return (x & 0xffff00000000ffffu) | (x & 0xffff0000u) << 16 | ((x >> 16) & 0xffff0000u); }

#endif

// ---- Layout of a page ------------------------------------------------------------------------------------------------

constexpr int kGroup = 4;  // neighbours that are multiplied together: columns of a key, positions of values
constexpr int kGroups = kPagePositions / kGroup;

// NaN where there was a NaN or an infinity.
inline float magnitude_of(uint32_t greatest_bits) {
  if (greatest_bits >= kInfinityBits) return __builtin_nanf("");
  float greatest;
  memcpy(&greatest, &greatest_bits, sizeof greatest);
  return greatest;
}

// Integers of a vector and their scale. `place(i)` is where number i goes, with `offset` added (in the bits of a byte).
template <typename F>
inline float quantize_vector(const float* x, int64_t n, int32_t offset, F&& place) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds half to even
  const float largest = magnitude_of(max_magnitude_bits(x, n));
  const float factor = largest > 0.0f ? kMostInteger / largest : 0.0f;  // 0 for NaN too
  const bool usable = factor > 0.0f && factor - factor == 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float rounded = usable ? (x[i] * factor + kRound) - kRound : 0.0f;
    place(i) = static_cast<int8_t>(static_cast<int32_t>(rounded) + offset);
  }
  return largest == largest && !usable ? 0.0f : largest / kMostInteger;
}

inline void store_integers(const float* key, const float* value, int64_t head_dim, int64_t position, void* page_keys,
                           void* page_values) {
  int8_t* const keys = static_cast<int8_t*>(page_keys);
  int8_t* const values = static_cast<int8_t*>(page_values);
  const int64_t depth = round_up(head_dim, kGroup), columns = round_up(head_dim, kLanes);
  int8_t* const k = keys + position / kKeyBlock * depth * kKeyBlock + position % kKeyBlock * kGroup;
  int8_t* const v = values + position / kGroup * columns * kGroup + position % kGroup;
  const auto key_place = [&](int64_t d) -> int8_t& { return k[d / kGroup * kKeyBlock * kGroup + d % kGroup]; };
  const auto value_place = [&](int64_t d) -> int8_t& { return v[d * kGroup]; };
  const float key_scale = quantize_vector(key, head_dim, kKeyOffset, key_place);
  const float value_scale = quantize_vector(value, head_dim, 0, value_place);
  for (int64_t d = head_dim; d < depth; ++d) key_place(d) = 0;
  for (int64_t d = head_dim; d < columns; ++d) value_place(d) = 0;
  memcpy(keys + kPagePositions * depth + position * static_cast<int64_t>(sizeof(float)), &key_scale, sizeof(float));
  memcpy(values + kPagePositions * columns + position * static_cast<int64_t>(sizeof(float)), &value_scale, sizeof(float));
}

// ---- Queries ---------------------------------------------------------------------------------------------------------

struct Int8 {
  static constexpr bool kIntegers = true;

  explicit Int8(const AttendTask& task)
      : steps(div_up(task.head_dim, kGroup)), queries(reinterpret_cast<Operand*>(task.scratch)) {
    for (int row = 0; row < task.rows; ++row) {
      Element* const to = reinterpret_cast<Element*>(queries + row * steps);
      for (int64_t i = task.head_dim; i < steps * kGroup; ++i) to[i] = 0;
      factors[row] = quantize_vector(task.q[row], task.head_dim, 0, [=](int64_t i) -> Element& { return to[i]; }) * task.scale;
      int32_t sum = 0;
      for (int64_t i = 0; i < task.head_dim; ++i) sum += to[i];
      starts[row] = -kKeyOffset * sum;
      for (int64_t i = 0; i < steps; ++i) {
        Operand four;
        memcpy(&four, to + i * kGroup, sizeof four);
        queries[row * steps + i] = in_order(four);
      }
    }
  }

  const int64_t steps;      // of four columns
  Operand* const queries;   // [rows][steps]
  float factors[kAttendRows];
  int32_t starts[kAttendRows];
};

template <int R, int V, bool Ahead>
inline void score_integers(const Int8& cache, int row, const int8_t* keys, const int8_t* next, int at,
                           float (&scores)[R][kPagePositions]) {
  const int64_t steps = cache.steps;
  const float* const scales = reinterpret_cast<const float*>(keys + steps * kGroup * kPagePositions);
  const int64_t start = at / kKeyBlock * steps * kKeyBlock * kGroup + at % kKeyBlock * kGroup;
  const Operand* const q = cache.queries + row * steps;
  VectorInts sums[V][R];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[v][r] = all(cache.starts[row + r]);
  }
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const int64_t i = start + (v * kWidth / kKeyBlock * steps + step) * kKeyBlock * kGroup + v * kWidth % kKeyBlock * kGroup;
      const Fours k = load_fours(keys + i);
      if (Ahead && v * kWidth % kKeyBlock == 0) ask_for(next + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[v][r] = multiply_key(sums[v][r], k, q + r * steps + step);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    const Vector scale = load_vector<Vector>(scales + at + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      store_vector(scores[r] + at + v * kWidth, __builtin_convertvector(sums[v][r], Vector) * cache.factors[row + r] * scale);
    }
  }
}

// The bits of numbers that are not negative order as the numbers do, with infinity and NaN above them.
inline VectorInts greatest_bits(const PageVectors& weights) {
  VectorInts most = {};
#pragma GCC unroll 8
  for (int i = 0; i < kPageVectors; ++i) most = greater_of(load_vector<VectorInts>(&weights[i]) & 0x7fffffff, most);
  return most;
}

// As operands: [kDigits][kGroups], the greater digit first.
inline void store_weights(const VectorInts (&weights)[kPageVectors], Operand* operands) {
#if defined(__AVX512VNNI__)
  static_assert(kPageVectors == 4, "two pairs of vectors become one of bytes");
  __m512i w[4];
  memcpy(w, weights, sizeof w);
  // Packing goes by lanes of four: of each vector one group of positions.
  const __m512i a = _mm512_packus_epi32(w[0], w[1]), b = _mm512_packus_epi32(w[2], w[3]), low = _mm512_set1_epi16(127);
  const __m512i digits[2] = {_mm512_packus_epi16(_mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7)),
                             _mm512_packus_epi16(_mm512_and_si512(a, low), _mm512_and_si512(b, low))};
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int i = 0; i < 2; ++i) _mm512_storeu_si512(operands + i * kGroups, _mm512_permutexvar_epi32(order, digits[i]));
#else
  typedef Element Elements __attribute__((vector_size(kWidth * sizeof(Element))));
  Element digits[kDigits * kPagePositions];
#pragma GCC unroll 8
  for (int i = 0; i < kPageVectors; ++i) {
    const VectorInts w = weights[i];
    store_vector(digits + i * kWidth, __builtin_convertvector(kDigits == 2 ? w >> 7 : w, Elements));
    if constexpr (kDigits == 2) store_vector(digits + kPagePositions + i * kWidth, __builtin_convertvector(w & 127, Elements));
  }
  memcpy(operands, digits, sizeof digits);
  for (int i = 0; i < kDigits * kGroups; ++i) operands[i] = in_order(operands[i]);
#endif
}

// Weights of a page, already times the scales of its values, as integers; those that a row does not see become 0 whatever their scale is.
// `most`: of each row the greatest, in any lane.
template <int R>
inline void quantize_weights(const Sight<R>& sight, float (&weights)[R][kPagePositions], VectorInts (&most)[R],
                             Operand (&operands)[R][kDigits * kGroups], float (&scales)[R]) {
  if (!sight.whole) {
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < sight.low[r]; ++i) weights[r][i] = 0.0f;
      for (int i = sight.high[r]; i < kPagePositions; ++i) weights[r][i] = 0.0f;
      PageVectors seen;
      memcpy(seen, weights[r], sizeof seen);
      most[r] = greatest_bits(seen);
    }
  }
  int32_t bits[R];
  greatest_of_rows(most, bits);
  for (int r = 0; r < R; ++r) {
    const float largest = magnitude_of(static_cast<uint32_t>(bits[r]));
    const float factor = largest > 0.0f ? kMostWeight / largest : 0.0f;
    const bool usable = factor > 0.0f && factor - factor == 0.0f;
    if (!usable) memset(weights[r], 0, sizeof weights[r]);
    scales[r] = largest == largest && !usable ? 0.0f : largest / kMostWeight;
    const Vector by = all(usable ? factor : 0.0f);
    VectorInts integers[kPageVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kPageVectors; ++i) {
      integers[i] = __builtin_convertvector(load_vector<Vector>(weights[r] + i * kWidth) * by + 0.5f, VectorInts);
    }
    store_weights(integers, operands[r]);
  }
}

template <int R, int C, bool Ahead>
inline void mix_integers(const AttendTask& task, int row, const int8_t* values, const int8_t* next, int first, int last,
                         const Operand (&operands)[R][kDigits * kGroups], const float (&scales)[R],
                         const float (&correction)[R], int64_t column) {
  const int64_t columns = padded_columns(task);
  VectorInts sums[R][C] = {};
#pragma GCC unroll 2
  for (int digit = 0; digit < kDigits; ++digit) {
    if (digit > 0) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[r][c] <<= 7;
      }
    }
    for (int g = first; g < last; ++g) {
      Fours v[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const int64_t i = (g * columns + column + c * kWidth) * kGroup;
        v[c] = load_fours(values + i);
        if (Ahead && digit == 0 && c * kWidth % kLanes == 0) ask_for(next + i);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[r][c] = multiply_value(sums[r][c], v[c], operands[r] + digit * kGroups + g);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      float* const seen = row_of(task, row + r) + column + c * kWidth;
      store_vector(
          seen, fused(__builtin_convertvector(sums[r][c], Vector), all(scales[r]), load_vector<Vector>(seen) * correction[r]));
    }
  }
}

template <int R, int C, bool Ahead>
inline void mix_integer_columns(const AttendTask& task, int row, const int8_t* values, const int8_t* next, int first, int last,
                                const Operand (&operands)[R][kDigits * kGroups], const float (&scales)[R],
                                const float (&correction)[R], int64_t column) {
  const int64_t columns = padded_columns(task);
  for (; column + C * kWidth <= columns; column += C * kWidth) {
    mix_integers<R, C, Ahead>(task, row, values, next, first, last, operands, scales, correction, column);
  }
  if constexpr (C > 1) {
    if (column < columns) {
      mix_integer_columns<R, C / 2, Ahead>(task, row, values, next, first, last, operands, scales, correction, column);
    }
  }
}

template <int R, bool Ahead>
void attend_page_integers(const AttendTask& task, const Int8& cache, int row, int64_t page, int64_t next_page) {
  const Sight<R> sight(task, row, page);
  if (sight.first >= sight.last) return;
  const auto part = [&](int64_t of, int64_t offset) { return reinterpret_cast<const int8_t*>(task.pages[of] + offset); };
  alignas(64) float scores[R][kPagePositions];
  float correction[R], scales[R];
  const int8_t* const keys = part(page, task.key_offset);
  const int8_t* const next_keys = part(next_page, task.key_offset);
  if (!sight.whole) memset(scores, 0, sizeof scores);
  for (int at = sight.first / kKeyBlock * kKeyBlock; at < sight.last;) {
    if (tile_fits<R>(at, sight.last)) {
      score_integers<R, score_vectors<R>(), Ahead>(cache, row, keys, next_keys, at, scores);
      at += score_vectors<R>() * kWidth;
    } else {
      score_integers<R, kKeyBlock / kWidth, Ahead>(cache, row, keys, next_keys, at, scores);
      at += kKeyBlock;
    }
  }
  const int8_t* const values = part(page, task.value_offset);
  const float* const value_scales = reinterpret_cast<const float*>(values + padded_columns(task) * kPagePositions);
  alignas(64) Operand operands[R][kDigits * kGroups];
  VectorInts most[R];
  weigh(task, row, sight, scores, correction, [&](int r, const PageVectors& weights) {
    PageVectors scaled;
#pragma GCC unroll 8
    for (int i = 0; i < kPageVectors; ++i) {
      scaled[i] = weights[i] * load_vector<Vector>(value_scales + i * kWidth);
      store_vector(scores[r] + i * kWidth, scaled[i]);
    }
    most[r] = greatest_bits(scaled);
  });
  quantize_weights(sight, scores, most, operands, scales);
  mix_integer_columns<R, vectors_of<R>(8), Ahead>(task, row, values, part(next_page, task.value_offset), sight.first / kGroup,
                                                  static_cast<int>(div_up(sight.last, kGroup)), operands, scales, correction,
                                                  0);
}

}  // namespace
}  // namespace bitdistill
