// Attention to keys and values that are floats: scores and weighted values of one page.
#pragma once

#include "kernels/attend_tiles.h"

namespace bitdistill {
namespace {

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
  // One vector of values at a time: an array of them GCC would keep on the stack.
  for (int p = first; p < last; ++p) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const int64_t i = p * columns + column + c * kWidth;
      const Vector v = load_as(T{}, values + i);
      if (Ahead && c * kWidth % kLanes == 0) ask_for(next + i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][c] = fused(all(weights[r][p]), v, sums[r][c]);
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
  weigh(task, row, sight, scores, correction, [&](int r, const PageVectors& weights) {
#pragma GCC unroll 8
    for (int i = 0; i < kPageVectors; ++i) store_vector(scores[r] + i * kWidth, weights[i]);
  });
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
