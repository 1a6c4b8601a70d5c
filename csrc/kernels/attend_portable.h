// Attention over the pages of a cache, in one pass: of every page the scores, the weights that follow from the greatest score
// so far, and the weighted values, while the page is near. Written once on vectors as wide as a register, because compilers
// keep an array of those, and of no wider ones, in registers.
//
// Which rows and positions are computed together never shows in a row: a score is one sum over the columns in their order, a
// column of the output one over the positions of a page in theirs, and what a row does not see has weight 0.
//
// The including file defines kRowsAtOnce, the most rows of a tile, and kAccumulators, the registers that its sums may take.
#pragma once

#include "kernels/float_vectors.h"

namespace bitdistill {
namespace {

// ---- Vectors as wide as a register -----------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kWidth = 16;
typedef Floats Vector;
typedef Ints VectorInts;
typedef Bits VectorBits;
#else
#if defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t VectorInts __attribute__((vector_size(kWidth * sizeof(int32_t))));
typedef uint32_t VectorBits __attribute__((vector_size(kWidth * sizeof(uint32_t))));

inline Vector fused(const Vector& a, const Vector& b, const Vector& c) {
#if defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
#endif

static_assert(kKeyBlock % kWidth == 0 && kRowsAtOnce % 2 == 0, "tiles are made of whole vectors and pairs of rows");

inline Vector all(float value) { return value - Vector{}; }
inline VectorInts all(int32_t value) { return value + VectorInts{}; }
inline Vector greater_of(const Vector& a, const Vector& b) { return a > b ? a : b; }

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
  Vector v;
  for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i]);
  return v;
#endif
}

// e^x of numbers that are not above 0, see `exponential`.
inline Vector decay(const Vector& x) {
  const Vector shifted = fused(x, all(1.44269504f), all(12582912.0f));
  const Vector n = shifted - 12582912.0f;
  const Vector r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  Vector p = fused(r, all(1.0f / 5040.0f), all(1.0f / 720.0f));
  p = fused(p, r, all(1.0f / 120.0f));
  p = fused(p, r, all(1.0f / 24.0f));
  p = fused(p, r, all(1.0f / 6.0f));
  p = fused(p, r, all(0.5f));
  p = fused(p, r, all(1.0f));
  p = fused(p, r, all(1.0f));
  const VectorBits power = (load_vector<VectorBits>(&shifted) + 127) << 23;  // the last bits of `shifted` are n
  const Vector y = p * load_vector<Vector>(&power);
  return x < -87.3f ? all(0.0f) : y;
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

// Scores become weights, relative to the greatest score so far; what was seen before is to be multiplied by `correction`.
template <int R>
inline void weigh(const AttendTask& task, int row, const Sight<R>& sight, float (&scores)[R][kPagePositions],
                  float (&correction)[R]) {
  constexpr int kVectors = kPagePositions / kWidth;
  const int64_t columns = padded_columns(task);
  const float hidden = -__builtin_inff();
  float base[R], change[kLanes] = {};
  for (int r = 0; r < R; ++r) {
    float* const s = scores[r];
    if (task.softcap != 0.0f) softcap(task.softcap, kPagePositions, s);
    if (!sight.whole) {
      for (int i = 0; i < sight.low[r]; ++i) s[i] = hidden;
      for (int i = sight.high[r]; i < kPagePositions; ++i) s[i] = hidden;
    }
    Vector most = load_vector<Vector>(s);
    for (int i = 1; i < kVectors; ++i) most = greater_of(load_vector<Vector>(s + i * kWidth), most);
    float* const greatest = row_of(task, row + r) + attend_greatest(task.head_dim);
    const float before = *greatest, here = greatest_of(most);
    const float now = here > before ? here : before;
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
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const Vector e = decay(load_vector<Vector>(scores[r] + i * kWidth) - base[r]);
      store_vector(scores[r] + i * kWidth, e);
      sum += e;
    }
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

// ---- Floats ----------------------------------------------------------------------------------------------------------

// Scores of R queries and V vectors of positions from `at` on. With few rows the cache comes from far away: for every vector
// that is read, the one at the same place of the next page is asked for.
template <class T, int R, int V, bool Ahead>
inline void score_floats(const AttendTask& task, int row, const typename T::Storage* keys, const typename T::Storage* next,
                         int at, float (&scores)[R][kPagePositions]) {
  const int64_t head_dim = task.head_dim;
  const int64_t start = at / kKeyBlock * head_dim * kKeyBlock + at % kKeyBlock;
  const float* q[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) q[r] = task.q[row + r];
  Vector sums[V][R] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const int64_t i = start + v * kWidth / kKeyBlock * head_dim * kKeyBlock + v * kWidth % kKeyBlock + d * kKeyBlock;
      const Vector k = load_as(T{}, keys + i);
      if (Ahead && v * kWidth % kKeyBlock == 0) ask_for(next + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[v][r] = fused(all(q[r][d]), k, sums[v][r]);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store_vector(scores[r] + at + v * kWidth, sums[v][r] * task.scale);
  }
}

// Columns [column, column + C * kWidth): what was seen so far, corrected, and the values of this page.
template <class T, int R, int C, bool Ahead>
inline void mix_floats(const AttendTask& task, int row, const typename T::Storage* values, const typename T::Storage* next,
                       int first, int last, const float (&weights)[R][kPagePositions], const float (&correction)[R],
                       int64_t column) {
  const int64_t columns = padded_columns(task);
  Vector sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      sums[r][c] = load_vector<Vector>(row_of(task, row + r) + column + c * kWidth) * correction[r];
    }
  }
  for (int p = first; p < last; ++p) {
    Vector v[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const int64_t i = p * columns + column + c * kWidth;
      v[c] = load_as(T{}, values + i);
      if (Ahead && c * kWidth % kLanes == 0) ask_for(next + i);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector w = all(weights[r][p]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[r][c] = fused(w, v[c], sums[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store_vector(row_of(task, row + r) + column + c * kWidth, sums[r][c]);
  }
}

template <class T, int R, int C, bool Ahead>
inline void mix_columns(const AttendTask& task, int row, const typename T::Storage* values, const typename T::Storage* next,
                        int first, int last, const float (&weights)[R][kPagePositions], const float (&correction)[R],
                        int64_t column) {
  const int64_t columns = padded_columns(task);
  for (; column + C * kWidth <= columns; column += C * kWidth) {
    mix_floats<T, R, C, Ahead>(task, row, values, next, first, last, weights, correction, column);
  }
  if constexpr (C > 1) {
    if (column < columns) mix_columns<T, R, C / 2, Ahead>(task, row, values, next, first, last, weights, correction, column);
  }
}

template <class T, int R, bool Ahead>
void attend_page_floats(const AttendTask& task, int row, int64_t page, int64_t next_page) {
  typedef typename T::Storage Storage;
  const Sight<R> sight(task, row, page);
  if (sight.first >= sight.last) return;
  const auto part = [&](int64_t of, int64_t offset) { return reinterpret_cast<const Storage*>(task.pages[of] + offset); };
  alignas(64) float scores[R][kPagePositions];
  float correction[R];
  const Storage* const keys = part(page, task.key_offset);
  const Storage* const next_keys = part(next_page, task.key_offset);
  if (!sight.whole) memset(scores, 0, sizeof scores);
  for (int at = sight.first / kKeyBlock * kKeyBlock; at < sight.last;) {
    if (tile_fits<R>(at, sight.last)) {
      score_floats<T, R, score_vectors<R>(), Ahead>(task, row, keys, next_keys, at, scores);
      at += score_vectors<R>() * kWidth;
    } else {
      score_floats<T, R, kKeyBlock / kWidth, Ahead>(task, row, keys, next_keys, at, scores);
      at += kKeyBlock;
    }
  }
  weigh(task, row, sight, scores, correction);
  mix_columns<T, R, vectors_of<R>(8), Ahead>(task, row, part(page, task.value_offset), part(next_page, task.value_offset),
                                             sight.first, sight.last, scores, correction, 0);
}

template <class T>
void store_floats(const float* key, const float* value, int64_t head_dim, int64_t position, void* page_keys,
                  void* page_values) {
  typedef typename T::Storage Storage;
  Storage* const keys = static_cast<Storage*>(page_keys) + position / kKeyBlock * head_dim * kKeyBlock + position % kKeyBlock;
  Storage* const values = static_cast<Storage*>(page_values) + position * round_up(head_dim, kLanes);
  in_vectors(head_dim, [&](int64_t d, int lanes) {
    Storage narrow[kLanes];
    T::store(narrow, load_some(key + d, lanes));
    for (int i = 0; i < lanes; ++i) keys[(d + i) * kKeyBlock] = narrow[i];
    T::store(values + d, load_some(value + d, lanes));  // zeros beyond the last column
  });
}

}  // namespace
}  // namespace bitdistill

#include "kernels/attend_int8.h"

namespace bitdistill {
namespace {

// ---- All rows and pages of a task ------------------------------------------------------------------------------------

template <class T, int R, bool Ahead>
inline void attend_page(const AttendTask& task, const T& cache, int row, int64_t page, int64_t next) {
  if constexpr (T::kIntegers) attend_page_integers<R, Ahead>(task, cache, row, page, next);
  else attend_page_floats<T, R, Ahead>(task, row, page, next);
}

template <class T, int R, bool Ahead>
inline int attend_tiles(const AttendTask& task, const T& cache, int row, int64_t page, int64_t next) {
  for (; row + R <= task.rows; row += R) attend_page<T, R, Ahead>(task, cache, row, page, next);
  return row;
}

template <class T, bool Ahead>
void attend_rows(const AttendTask& task, const T& cache, int64_t page, int64_t next) {
  int row = attend_tiles<T, kRowsAtOnce, Ahead>(task, cache, 0, page, next);
  if constexpr (kRowsAtOnce > 4) row = attend_tiles<T, 4, true>(task, cache, row, page, next);
  row = attend_tiles<T, 2, true>(task, cache, row, page, next);
  attend_tiles<T, 1, true>(task, cache, row, page, next);
}

inline bool has_no_number(const AttendTask& task, int row) {
  Vector difference = {};
  for (int64_t i = 0; i < padded_columns(task); i += kWidth) {
    const Vector v = load_vector<Vector>(row_of(task, row) + i);
    difference += v - v;
  }
  return total_of(difference) != 0.0f;
}

template <class T>
void attend_as(const AttendTask& task, const T& cache) {
  const int64_t start = task.from / kPagePositions, stop = div_up(task.to, kPagePositions);
  const auto next = [&](int64_t page) { return page + 1 < stop ? page + 1 : page; };
  for (int row = 0; row < task.rows; ++row) forget(task, row);
  const bool few = task.rows <= 2 * kRowsAtOnce;
  for (int64_t page = start; page < stop; ++page) {
    if (few) attend_rows<T, true>(task, cache, page, next(page));
    else attend_rows<T, false>(task, cache, page, next(page));
  }
  // A value that only other rows see counted with weight 0. That changes nothing, unless it is no finite number.
  if constexpr (!T::kIntegers) {
    for (int row = 0; row < task.rows && task.rows > 1; ++row) {
      if (!has_no_number(task, row)) continue;
      forget(task, row);
      for (int64_t page = start; page < stop; ++page) attend_page<T, 1, true>(task, cache, row, page, next(page));
    }
  }
  for (int row = 0; row < task.rows; ++row) {
    float* const sums = row_of(task, row) + padded_columns(task);
    sums[0] = total_of(load_vector<Vector>(sums));
  }
}

void attend(const AttendTask& task) {
  switch (task.dtype) {
    case BD_FLOAT16: return attend_as(task, Float16{});
    case BD_SCALED_INT8: return attend_as(task, Int8(task));
    default: return attend_as(task, Float32{});
  }
}

void merge_attended(const float* more, int64_t head_dim, float* seen) {
  const int64_t columns = round_up(head_dim, kLanes), greatest = attend_greatest(head_dim);
  const float most = more[greatest] > seen[greatest] ? more[greatest] : seen[greatest];
  const float base = most == -__builtin_inff() ? 0.0f : most;
  Vector change = {};
  change[0] = seen[greatest] - base;
  change[1] = more[greatest] - base;
  const Vector factors = decay(change);
  // The sum of the weights, one more number, stands behind the columns.
  for (int64_t i = 0; i < columns; i += kWidth) {
    store_vector(seen + i, fused(load_vector<Vector>(more + i), all(factors[1]), load_vector<Vector>(seen + i) * factors[0]));
  }
  seen[columns] = fused(more[columns], static_cast<float>(factors[1]), seen[columns] * factors[0]);
  seen[greatest] = most;
}

void finish_attended(const float* seen, int64_t head_dim, float* out) {
  const float inverse = 1.0f / seen[round_up(head_dim, kLanes)];
  for (int64_t i = 0; i < head_dim; ++i) out[i] = seen[i] * inverse;
}

void store_key_value(const float* key, const float* value, int64_t head_dim, bd_dtype dtype, int64_t position,
                     void* page_keys, void* page_values) {
  switch (dtype) {
    case BD_FLOAT16: return store_floats<Float16>(key, value, head_dim, position, page_keys, page_values);
    case BD_SCALED_INT8: return store_integers(key, value, head_dim, position, page_keys, page_values);
    default: return store_floats<Float32>(key, value, head_dim, position, page_keys, page_values);
  }
}

}  // namespace
}  // namespace bitdistill
