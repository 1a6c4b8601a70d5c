// Attention over the pages of a cache, in one pass: of every page the scores, the weights that follow from the greatest score
// so far, and the weighted values, while the page is near (attend_floats.h, attend_int8.h).
#pragma once

#include "kernels/attend_floats.h"
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

void store_key_value(const float* key, const float* value, int64_t head_dim, bd_dtype dtype, int64_t position, void* page_keys,
                     void* page_values) {
  switch (dtype) {
    case BD_FLOAT16: return store_floats<Float16>(key, value, head_dim, position, page_keys, page_values);
    case BD_SCALED_INT8: return store_integers(key, value, head_dim, position, page_keys, page_values);
    default: return store_floats<Float32>(key, value, head_dim, position, page_keys, page_values);
  }
}

}  // namespace
}  // namespace bitdistill
