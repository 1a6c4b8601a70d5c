// The C ABI of what a training does beside its matrix products: checks, and the work shared among threads.
#include <cmath>

#include "bitdistill.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"

using namespace bitdistill;

namespace {

// Below this many values threads cost more than they save.
constexpr int64_t kValuesPerTask = 16384;

bool is_row_dtype(int dtype) { return dtype == BD_FLOAT32 || dtype == BD_BFLOAT16; }

int64_t bytes_of(int dtype) { return dtype == BD_BFLOAT16 ? 2 : 4; }

int check_rows(const void* x, size_t count, int dtype, int64_t rows, int64_t cols, const void* out, size_t out_count,
               int out_dtype) {
  if (x == nullptr || out == nullptr) return BD_ERROR_NULL_POINTER;
  if (!is_row_dtype(dtype) || !is_row_dtype(out_dtype)) return BD_ERROR_ARGUMENT;
  if (rows < 1 || rows > BD_MAX_TOKENS || cols < 1 || cols > BD_MAX_ROWS) return BD_ERROR_SHAPE;
  const size_t size = static_cast<size_t>(rows) * static_cast<size_t>(cols);
  return count == size && out_count == size ? BD_OK : BD_ERROR_BUFFER_SIZE;
}

int training_kernels(const TrainingKernels** training) {
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  *training = &kernels->floats()->training;
  return BD_OK;
}

const uint8_t* row_of(const void* x, int dtype, int64_t row, int64_t cols) {
  return static_cast<const uint8_t*>(x) + row * cols * bytes_of(dtype);
}

uint8_t* row_of(void* x, int dtype, int64_t row, int64_t cols) {
  return static_cast<uint8_t*>(x) + row * cols * bytes_of(dtype);
}

// body(row) for all rows.
template <typename F>
void for_rows(int64_t rows, int64_t cols, F&& body) {
  const int64_t per_task = div_up(kValuesPerTask, cols);
  parallel_for(div_up(rows, per_task), [&](int64_t task) {
    const int64_t stop = (task + 1) * per_task < rows ? (task + 1) * per_task : rows;
    for (int64_t row = task * per_task; row < stop; ++row) body(row);
  });
}

}  // namespace

extern "C" {

int bd_train_quantize(const void* x, size_t x_count, int x_dtype, int64_t tokens, int64_t cols, void* out, size_t out_count,
                      int out_dtype, float* s, size_t s_count) {
  const TrainingKernels* kernels;
  BD_RETURN_IF_ERROR(check_rows(x, x_count, x_dtype, tokens, cols, out, out_count, out_dtype));
  if (s == nullptr) return BD_ERROR_NULL_POINTER;
  if (s_count != static_cast<size_t>(tokens)) return BD_ERROR_BUFFER_SIZE;
  BD_RETURN_IF_ERROR(training_kernels(&kernels));
  for_rows(tokens, cols, [&](int64_t t) {
    s[t] = kernels->round_activations(row_of(x, x_dtype, t, cols), static_cast<bd_dtype>(x_dtype), cols,
                                      row_of(out, out_dtype, t, cols), static_cast<bd_dtype>(out_dtype));
  });
  return BD_OK;
}

int bd_train_ternarize(const void* weight, size_t weight_count, int weight_dtype, int64_t rows, int64_t cols,
                       const float* scales, size_t scale_count, void* out, size_t out_count, int out_dtype) {
  const TrainingKernels* kernels;
  BD_RETURN_IF_ERROR(check_rows(weight, weight_count, weight_dtype, rows, cols, out, out_count, out_dtype));
  if (scales == nullptr) return BD_ERROR_NULL_POINTER;
  if (scale_count != 1 && scale_count != static_cast<size_t>(rows)) return BD_ERROR_BUFFER_SIZE;
  BD_RETURN_IF_ERROR(training_kernels(&kernels));
  for_rows(rows, cols, [&](int64_t row) {
    kernels->ternarize(row_of(weight, weight_dtype, row, cols), static_cast<bd_dtype>(weight_dtype), cols,
                       scales[scale_count == 1 ? 0 : row], row_of(out, out_dtype, row, cols), static_cast<bd_dtype>(out_dtype));
  });
  return BD_OK;
}

int bd_train_scale(const void* x, size_t x_count, int x_dtype, int64_t rows, int64_t cols, const float* first,
                   size_t first_count, const float* second, size_t second_count, void* out, size_t out_count, int out_dtype) {
  const TrainingKernels* kernels;
  BD_RETURN_IF_ERROR(check_rows(x, x_count, x_dtype, rows, cols, out, out_count, out_dtype));
  if (second == nullptr) return BD_ERROR_NULL_POINTER;
  if (second_count != static_cast<size_t>(rows)) return BD_ERROR_BUFFER_SIZE;
  if (first != nullptr && first_count != 1 && first_count != static_cast<size_t>(cols)) return BD_ERROR_BUFFER_SIZE;
  const bool by_column = first != nullptr && first_count > 1;
  BD_RETURN_IF_ERROR(training_kernels(&kernels));
  for_rows(rows, cols, [&](int64_t row) {
    const uint8_t* const in = row_of(x, x_dtype, row, cols);
    uint8_t* const to = row_of(out, out_dtype, row, cols);
    const bd_dtype in_dtype = static_cast<bd_dtype>(x_dtype), to_dtype = static_cast<bd_dtype>(out_dtype);
    if (by_column) return kernels->scale_columns(in, in_dtype, cols, first, second[row], to, to_dtype);
    kernels->scale(in, in_dtype, cols, first == nullptr ? 1.0f : *first, second[row], to, to_dtype);
  });
  return BD_OK;
}

int bd_train_norm(const void* x, size_t x_count, int dtype, int64_t tokens, int64_t cols, const float* weight,
                  size_t weight_count, float eps, void* out, size_t out_count, float* inverse_rms, size_t inverse_count) {
  const TrainingKernels* kernels;
  BD_RETURN_IF_ERROR(check_rows(x, x_count, dtype, tokens, cols, out, out_count, dtype));
  if (weight == nullptr || inverse_rms == nullptr) return BD_ERROR_NULL_POINTER;
  if (weight_count != static_cast<size_t>(cols) || inverse_count != static_cast<size_t>(tokens)) return BD_ERROR_BUFFER_SIZE;
  if (!(eps >= 0.0f && std::isfinite(eps))) return BD_ERROR_ARGUMENT;
  BD_RETURN_IF_ERROR(training_kernels(&kernels));
  for_rows(tokens, cols, [&](int64_t t) {
    inverse_rms[t] =
        kernels->norm(row_of(x, dtype, t, cols), static_cast<bd_dtype>(dtype), cols, weight, eps, row_of(out, dtype, t, cols));
  });
  return BD_OK;
}

int bd_train_norm_backward(const void* grad, size_t grad_count, const void* x, size_t x_count, int dtype, int64_t tokens,
                           int64_t cols, const float* weight, size_t weight_count, const float* inverse_rms,
                           size_t inverse_count, void* grad_x, size_t grad_x_count, float* weight_sums, size_t sums_count) {
  const TrainingKernels* kernels;
  BD_RETURN_IF_ERROR(check_rows(grad, grad_count, dtype, tokens, cols, grad_x, grad_x_count, dtype));
  if (x == nullptr || weight == nullptr || inverse_rms == nullptr || weight_sums == nullptr) return BD_ERROR_NULL_POINTER;
  const int64_t parts = div_up(tokens, int64_t{BD_NORM_TOKENS});
  if (x_count != grad_count || weight_count != static_cast<size_t>(cols) || inverse_count != static_cast<size_t>(tokens) ||
      sums_count != static_cast<size_t>(parts) * static_cast<size_t>(cols)) {
    return BD_ERROR_BUFFER_SIZE;
  }
  BD_RETURN_IF_ERROR(training_kernels(&kernels));
  parallel_for(parts, [&](int64_t part) {
    float* sums = weight_sums + part * cols;
    for (int64_t i = 0; i < cols; ++i) sums[i] = 0.0f;
    const int64_t stop = (part + 1) * BD_NORM_TOKENS < tokens ? (part + 1) * BD_NORM_TOKENS : tokens;
    for (int64_t t = part * BD_NORM_TOKENS; t < stop; ++t) {
      kernels->norm_backward(row_of(grad, dtype, t, cols), row_of(x, dtype, t, cols), static_cast<bd_dtype>(dtype), cols,
                             weight, inverse_rms[t], row_of(grad_x, dtype, t, cols), sums);
    }
  });
  return BD_OK;
}

}  // extern "C"
