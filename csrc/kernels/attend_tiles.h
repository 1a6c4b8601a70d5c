// What attention (attend_portable.h) does alike for every kind of cache, on vectors as wide as a register: compilers keep an
// array of those, and of no wider ones, in registers.
//
// Which rows and positions are computed together never shows in a row: a score is one sum over the columns in their order, a
// column of the output one over the positions of a page in theirs, and what a row does not see has weight 0.
//
// The including file defines kRowsAtOnce, the most rows of a tile, and kAccumulators, the registers that its sums may take.
#pragma once

#include "kernels/float_vectors.h"

namespace bitdistill {
namespace {

static_assert(kKeyBlock % kWidth == 0 && kRowsAtOnce % 2 == 0, "tiles are made of whole vectors and pairs of rows");

// Lane by lane a > b ? a : b, for which compilers that keep to the rules of NaN take two instructions.
inline Vector greater_of(const Vector& a, const Vector& b) {
#if defined(__AVX512F__)
  const __m512 v = _mm512_max_ps(load_vector<__m512>(&a), load_vector<__m512>(&b));
  return load_vector<Vector>(&v);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline VectorInts greater_of(const VectorInts& a, const VectorInts& b) {
#if defined(__AVX512F__)
  const __m512i v = _mm512_max_epi32(load_vector<__m512i>(&a), load_vector<__m512i>(&b));
  return load_vector<VectorInts>(&v);
#elif defined(__AVX2__)
  return reinterpret_cast<VectorInts>(_mm256_max_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return a > b ? a : b;
#endif
}

// The greatest lane; of lanes that are no numbers no one is taken, or any.
inline float greatest_of(const Vector& v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float lanes[kWidth];
  store_vector(lanes, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
  }
  return lanes[0];
#endif
}

inline int32_t greatest_of(const VectorInts& v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32(load_vector<__m512i>(&v));
#else
  int32_t lanes[kWidth];
  store_vector(lanes, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
  }
  return lanes[0];
#endif
}

#if defined(__AVX512F__)
// Lane by lane the greater of two orders of the same lanes: each step halves the lanes that are left of a row and joins two rows.
template <typename V, int Low, int High>
inline V halve_lanes(const V& a, const V& b) {
  const __m512 x = load_vector<__m512>(&a), y = load_vector<__m512>(&b);
  const __m512 low = _mm512_shuffle_f32x4(x, y, Low), high = _mm512_shuffle_f32x4(x, y, High);
  return greater_of(load_vector<V>(&low), load_vector<V>(&high));
}

template <typename V>
inline V halve_quarters(const V& a, const V& b) {
  const __m512 x = load_vector<__m512>(&a), y = load_vector<__m512>(&b);
  const __m512 low = _mm512_shuffle_ps(x, y, 0x44), high = _mm512_shuffle_ps(x, y, 0xee);
  return greater_of(load_vector<V>(&low), load_vector<V>(&high));
}
#endif

// The greatest lane of each row.
template <int R, typename V, typename T>
inline void greatest_of_rows(const V (&rows)[R], T (&greatest)[R]) {
#if defined(__AVX512F__)
  if constexpr (R == 8) {
    V halves[4], quarters[2];
    for (int i = 0; i < 4; ++i) halves[i] = halve_lanes<V, 0x44, 0xee>(rows[2 * i], rows[2 * i + 1]);
    for (int i = 0; i < 2; ++i) quarters[i] = halve_lanes<V, 0x88, 0xdd>(halves[2 * i], halves[2 * i + 1]);
    const V pairs = halve_quarters(quarters[0], quarters[1]);  // of four: two of row i, two of row 4 + i
    const __m512 swapped = _mm512_permute_ps(load_vector<__m512>(&pairs), 0xb1);
    T lanes[kWidth];
    store_vector(lanes, greater_of(load_vector<V>(&swapped), pairs));
    for (int i = 0; i < 4; ++i) greatest[i] = lanes[4 * i], greatest[4 + i] = lanes[4 * i + 2];
    return;
  }
#endif
  for (int r = 0; r < R; ++r) greatest[r] = greatest_of(rows[r]);
}

inline float total_of(const Vector& v) {
  float lanes[kWidth];
  store_vector(lanes, v);
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Into the second cache: what is one page ahead is more than the first one holds.
inline void ask_for(const void* p) { __builtin_prefetch(p, 0, 2); }

inline Vector load_as(Float32, const float* p) { return load_vector<Vector>(p); }

inline Vector load_as(Float16, const uint16_t* p) {
#if defined(__AVX512F__)
  return Float16::load(p);
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  typedef uint16_t Narrow __attribute__((vector_size(kWidth * sizeof(uint16_t))));
  return widen_halves<Vector>(__builtin_convertvector(load_vector<Narrow>(p), VectorBits));
#endif
}

// e^x of numbers that are not above 0, see `exponential`.
inline Vector decay(const Vector& x) {
  const Vector shifted = fused(x, all(1.44269504f), all(12582912.0f));
  const Vector n = shifted - 12582912.0f;
  const Vector r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  const Vector p = exponential_series(r, [](const Vector& a, const Vector& b, const Vector& c) { return fused(a, b, c); });
#if defined(__AVX512F__)
  const __mmask16 seen = _mm512_cmp_ps_mask(load_vector<__m512>(&x), _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
  const __m512 y = _mm512_maskz_scalef_ps(seen, load_vector<__m512>(&p), load_vector<__m512>(&n));
  return load_vector<Vector>(&y);
#else
  const VectorBits power = (load_vector<VectorBits>(&shifted) + 127) << 23;  // the last bits of `shifted` are n
  const Vector y = p * load_vector<Vector>(&power);
  return x < -87.3f ? all(0.0f) : y;
#endif
}

// ---- What a row has seen ---------------------------------------------------------------------------------------------
// attend_row_floats() floats: the weighted values, their weights' sum lane by lane, and the greatest score.

inline float* row_of(const AttendTask& task, int row) { return task.rows_seen + row * attend_row_floats(task.head_dim); }
inline int64_t padded_columns(const AttendTask& task) { return round_up(task.head_dim, kLanes); }

inline void forget(const AttendTask& task, int row) {
  float* const seen = row_of(task, row);
  memset(seen, 0, static_cast<size_t>(attend_row_floats(task.head_dim)) * sizeof(float));
  seen[attend_greatest(task.head_dim)] = -__builtin_inff();
}

// The positions of one page that the rows of a tile see.
template <int R>
struct Sight {
  Sight(const AttendTask& task, int row, int64_t page) {
    first = kPagePositions, last = 0, whole = true;
    for (int r = 0; r < R; ++r) {
      low[r] = within(task.first[row + r] - page * kPagePositions);
      high[r] = within(task.last[row + r] - page * kPagePositions);
      if (low[r] < first) first = low[r];
      if (high[r] > last) last = high[r];
      whole &= low[r] == 0 && high[r] == kPagePositions;
    }
  }
  static int within(int64_t i) { return static_cast<int>(i < 0 ? 0 : i > kPagePositions ? kPagePositions : i); }

  int low[R], high[R];
  int first, last;  // of all rows
  bool whole;       // all rows see all
};

constexpr int kPageVectors = kPagePositions / kWidth;
typedef Vector PageVectors[kPageVectors];

// Scores become weights, relative to the greatest score so far; what was seen before is to be multiplied by `correction`.
// `take(r, weights)` gets those of row r in registers. One step for all rows after another: the steps of one row wait for each other.
template <int R, typename F>
inline void weigh(const AttendTask& task, int row, const Sight<R>& sight, float (&scores)[R][kPagePositions],
                  float (&correction)[R], F&& take) {
  const int64_t columns = padded_columns(task);
  const float hidden = -__builtin_inff();
  if (task.softcap != 0.0f) {
    for (int r = 0; r < R; ++r) softcap(task.softcap, kPagePositions, scores[r]);
  }
  if (!sight.whole) {
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < sight.low[r]; ++i) scores[r][i] = hidden;
      for (int i = sight.high[r]; i < kPagePositions; ++i) scores[r][i] = hidden;
    }
  }
  Vector most[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    most[r] = load_vector<Vector>(scores[r]);
#pragma GCC unroll 8
    for (int i = 1; i < kPageVectors; ++i) most[r] = greater_of(load_vector<Vector>(scores[r] + i * kWidth), most[r]);
  }
  float here[R], base[R], change[kLanes] = {};
  greatest_of_rows(most, here);
  for (int r = 0; r < R; ++r) {
    float* const greatest = row_of(task, row + r) + attend_greatest(task.head_dim);
    const float before = *greatest, now = here[r] > before ? here[r] : before;
    *greatest = now;
    base[r] = now == hidden ? 0.0f : now;
    change[r] = before - base[r];
  }
  for (int r = 0; r < R; r += kWidth) {
    float factors[kWidth];
    store_vector(factors, decay(load_vector<Vector>(change + r)));
    for (int i = 0; i < kWidth && r + i < R; ++i) correction[r + i] = factors[i];
  }
  for (int r = 0; r < R; ++r) {
    Vector sum = {};
    PageVectors weights;
#pragma GCC unroll 8
    for (int i = 0; i < kPageVectors; ++i) {
      weights[i] = decay(load_vector<Vector>(scores[r] + i * kWidth) - base[r]);
      sum += weights[i];
    }
    take(r, weights);
    float* const sums = row_of(task, row + r) + columns;
    store_vector(sums, fused(load_vector<Vector>(sums), all(correction[r]), sum));
  }
}

// Numbers of vectors that a tile of R rows computes at once.
template <int R>
constexpr int vectors_of(int most) {
  int vectors = most;
  while (vectors > 1 && R * vectors > kAccumulators) vectors /= 2;
  return vectors;
}

template <int R>
constexpr int score_vectors() {
  return vectors_of<R>(kPagePositions / kWidth);
}

// Whether more than half of score_vectors() positions are seen from `at` on; else a block of keys at a time is less work.
template <int R>
inline bool tile_fits(int at, int last) {
  constexpr int kStep = score_vectors<R>() * kWidth;
  return kStep <= kKeyBlock || (at + kStep <= kPagePositions && last - at > kStep / 2);
}

}  // namespace
}  // namespace bitdistill
