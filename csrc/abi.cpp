// The C ABI: checks what callers pass, then calls the library.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>

#include "bitdistill.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/dense.h"
#include "kernels/dense_storage.h"
#include "kernels/linear.h"
#include "kernels/pack.h"
#include "kernels/split.h"

using namespace bitdistill;

namespace {

// Reused by the calls of a thread.
thread_local QuantizedActivations t_activations;
thread_local AlignedBuffer t_ordered;

bool is_dtype(int dtype) { return dtype == BD_FLOAT32 || dtype == BD_BFLOAT16; }

// Large weights on large pages: fewer misses of the address translation while they stream by. Only a hint.
void advise_large_pages(void* data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLargePage = uintptr_t{1} << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Checks the destination and writes the header.
int start_packing(const Matrix& matrix, const Layout& layout, void* packed, size_t packed_bytes, PackedParts* parts) {
  if (packed == nullptr) return BD_ERROR_NULL_POINTER;
  if (reinterpret_cast<uintptr_t>(packed) % BD_ALIGNMENT != 0) return BD_ERROR_ALIGNMENT;
  if (packed_bytes != layout.total) return BD_ERROR_BUFFER_SIZE;
  advise_large_pages(packed, packed_bytes);
  uint8_t* base = static_cast<uint8_t*>(packed);
  std::memset(base, 0, layout.panel_data);
  write_header(matrix, packed);
  parts->scales = base + layout.scales;
  parts->panel_data = base + layout.panel_data;
  return BD_OK;
}

// Whether both forms of a matrix in files have these sizes. (It may be wider than the kernels take: files may hold it.)
int check_stored_forms(size_t dense_bytes, int64_t rows, int64_t cols, size_t weight_bytes) {
  if (rows < 1 || rows > BD_MAX_ROWS || cols < 1 || cols > BD_MAX_ROWS) return BD_ERROR_SHAPE;
  const bool fit = dense_bytes == static_cast<size_t>(stored_dense_bytes(rows, cols)) &&
                   weight_bytes == static_cast<size_t>(div_up(rows, 4) * cols);
  return fit ? BD_OK : BD_ERROR_BUFFER_SIZE;
}

template <typename F>
double best_seconds(int repeats, F&& body) {
  double best = 1e300;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    if (time.count() < best) best = time.count();
  }
  return best;
}

// A packed weight that could not be finished must not be usable.
int finish_packing(int status, void* packed) {
  if (status != BD_OK) std::memset(packed, 0, sizeof(uint64_t));
  return status;
}

int check_input(const void* x, size_t x_count, int x_dtype, int64_t tokens, int64_t cols, const float* norm_weight,
                size_t norm_count, float norm_eps) {
  if (x == nullptr) return BD_ERROR_NULL_POINTER;
  if (!is_dtype(x_dtype)) return BD_ERROR_ARGUMENT;
  if (tokens < 1 || tokens > BD_MAX_TOKENS || cols < 1 || cols > BD_MAX_COLS) return BD_ERROR_SHAPE;
  if (x_count != static_cast<size_t>(tokens * cols)) return BD_ERROR_BUFFER_SIZE;
  if (norm_count != (norm_weight == nullptr ? 0 : static_cast<size_t>(cols))) return BD_ERROR_BUFFER_SIZE;
  if (norm_weight != nullptr && !(norm_eps >= 0.0f && std::isfinite(norm_eps))) return BD_ERROR_ARGUMENT;
  return BD_OK;
}

}  // namespace

extern "C" {

int bd_abi_version(void) { return BD_ABI_VERSION; }

const char* bd_version(void) { return BITDISTILL_VERSION; }

const char* bd_strerror(int status) {
  switch (status) {
    case BD_OK: return "success";
    case BD_ERROR_NULL_POINTER: return "a required pointer is null";
    case BD_ERROR_SHAPE: return "a size is zero, negative or above the limits, or two sizes disagree";
    case BD_ERROR_BUFFER_SIZE: return "a buffer does not have the size that its shape asks for";
    case BD_ERROR_ALIGNMENT: return "a packed weight is not aligned to 64 bytes";
    case BD_ERROR_ARGUMENT: return "an argument has a value without a meaning";
    case BD_ERROR_CODE: return "the weight holds an invalid code";
    case BD_ERROR_SCALE: return "a scale is not finite";
    case BD_ERROR_HEADER: return "not a weight packed by this version of the library";
    case BD_ERROR_INDEX: return "a row index is out of range";
    case BD_ERROR_ISA: return "unknown instruction set, or one that this CPU or build does not have";
    case BD_ERROR_OUT_OF_MEMORY: return "out of memory";
    case BD_ERROR_THREADS: return "the number of threads is out of range";
    case BD_ERROR_CONTEXT: return "a sequence would grow beyond the positions that the model has";
    case BD_ERROR_MODEL: return "the parts of the decoder do not fit together";
    default: return "unknown status";
  }
}

int bd_get_isa(const char** name) {
  if (name == nullptr) return BD_ERROR_NULL_POINTER;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  *name = kernels->name;
  return BD_OK;
}

int bd_set_isa(const char* name) { return name == nullptr ? BD_ERROR_NULL_POINTER : set_active_kernels(name); }

const char* const* bd_supported_isas(void) { return supported_kernels(); }

int bd_set_num_threads(int threads) { return set_num_threads(threads); }

int bd_get_num_threads(void) { return num_threads(); }

int bd_set_team(bd_team team) {
  set_team(team);
  return BD_OK;
}

int bd_ternary_packed_size(int64_t rows, int64_t cols, int64_t group_size, size_t scale_count, size_t* bytes) {
  if (bytes == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(describe_matrix(BD_TERNARY, rows, cols, group_size, scale_count, &matrix, &layout));
  *bytes = layout.total;
  return BD_OK;
}

int bd_ternary_pack(const uint8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, const float* weight_scale,
                    size_t scale_count, int64_t group_size, void* packed, size_t packed_bytes) {
  if (weight == nullptr || weight_scale == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(describe_matrix(BD_TERNARY, rows, cols, group_size, scale_count, &matrix, &layout));
  if (weight_bytes != static_cast<size_t>(div_up(rows, 4) * cols)) return BD_ERROR_BUFFER_SIZE;
  PackedParts parts;
  BD_RETURN_IF_ERROR(start_packing(matrix, layout, packed, packed_bytes, &parts));
  int status = pack_scales(matrix, weight_scale, parts);
  if (status == BD_OK) status = pack_ternary(matrix, weight, parts);
  return finish_packing(status, packed);
}

int bd_ternary_check(const uint8_t* weight, size_t weight_bytes) {
  return weight == nullptr ? BD_ERROR_NULL_POINTER : check_ternary(weight, weight_bytes);
}

int bd_ternary_from_dense(const uint8_t* dense, size_t dense_bytes, int64_t rows, int64_t cols, uint8_t* weight,
                          size_t weight_bytes) {
  if (dense == nullptr || weight == nullptr) return BD_ERROR_NULL_POINTER;
  BD_RETURN_IF_ERROR(check_stored_forms(dense_bytes, rows, cols, weight_bytes));
  unpack_stored_dense(dense, rows, cols, weight);
  return BD_OK;
}

int bd_ternary_to_dense(const uint8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, uint8_t* dense,
                        size_t dense_bytes) {
  if (dense == nullptr || weight == nullptr) return BD_ERROR_NULL_POINTER;
  BD_RETURN_IF_ERROR(check_stored_forms(dense_bytes, rows, cols, weight_bytes));
  return pack_stored_dense(weight, rows, cols, dense);
}

int bd_ternary_dense_is_fast(int* fast) {
  if (fast == nullptr) return BD_ERROR_NULL_POINTER;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  return without_exceptions([&]() -> int {
    *fast = dense_is_fast(*kernels) ? 1 : 0;
    return BD_OK;
  });
}

int bd_ternary_dense_size(const void* packed, size_t packed_bytes, size_t* bytes) {
  if (bytes == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix, dense;
  Layout layout;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  if (matrix.format != BD_TERNARY) return BD_ERROR_ARGUMENT;
  *bytes = 0;
  if (matrix.group_size != 0 || matrix.chunks() < kDenseChunks) return BD_OK;
  BD_RETURN_IF_ERROR(describe_in_form(matrix, BD_TERNARY_DENSE, &dense, &layout));
  *bytes = layout.total;
  return BD_OK;
}

int bd_ternary_dense_pack(const void* packed, size_t packed_bytes, void* dense_packed, size_t dense_bytes) {
  Matrix matrix, dense;
  Layout layout;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  if (matrix.format != BD_TERNARY || matrix.group_size != 0) return BD_ERROR_ARGUMENT;
  BD_RETURN_IF_ERROR(describe_in_form(matrix, BD_TERNARY_DENSE, &dense, &layout));
  PackedParts parts;
  BD_RETURN_IF_ERROR(start_packing(dense, layout, dense_packed, dense_bytes, &parts));
  // Scales have the same places in both forms.
  std::memcpy(static_cast<uint8_t*>(dense_packed) + layout.scales, matrix.scales, layout.panel_data - layout.scales);
  pack_dense(matrix, dense, parts.panel_data);
  return BD_OK;
}

int bd_int8_packed_size(int64_t rows, int64_t cols, size_t* bytes) {
  if (bytes == nullptr) return BD_ERROR_NULL_POINTER;
  if (rows < 1) return BD_ERROR_SHAPE;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(describe_matrix(BD_INT8, rows, cols, 0, static_cast<size_t>(rows), &matrix, &layout));
  *bytes = layout.total;
  return BD_OK;
}

int bd_int8_pack(const int8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, const float* weight_scale,
                 size_t scale_count, void* packed, size_t packed_bytes) {
  if (weight == nullptr || weight_scale == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(describe_matrix(BD_INT8, rows, cols, 0, scale_count, &matrix, &layout));
  if (weight_bytes != static_cast<size_t>(rows * cols)) return BD_ERROR_BUFFER_SIZE;
  PackedParts parts;
  BD_RETURN_IF_ERROR(start_packing(matrix, layout, packed, packed_bytes, &parts));
  int status = pack_scales(matrix, weight_scale, parts);
  if (status == BD_OK) status = pack_int8(matrix, weight, parts);
  return finish_packing(status, packed);
}

int bd_int4_packed_size(int64_t rows, int64_t cols, size_t* bytes) {
  if (bytes == nullptr) return BD_ERROR_NULL_POINTER;
  if (rows < 1 || rows > BD_MAX_ROWS || cols < 1 || cols > BD_MAX_COLS) return BD_ERROR_SHAPE;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(
      describe_matrix(BD_INT4, rows, cols, kInt4Group, static_cast<size_t>(rows * div_up(cols, kInt4Group)), &matrix, &layout));
  *bytes = layout.total;
  return BD_OK;
}

int bd_int4_pack(const uint8_t* weight, size_t weight_bytes, int64_t rows, int64_t cols, const uint16_t* weight_scale,
                 size_t scale_count, void* packed, size_t packed_bytes) {
  if (weight == nullptr || weight_scale == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(describe_matrix(BD_INT4, rows, cols, kInt4Group, scale_count, &matrix, &layout));
  if (weight_bytes != static_cast<size_t>(rows * div_up(cols, 2))) return BD_ERROR_BUFFER_SIZE;
  PackedParts parts;
  BD_RETURN_IF_ERROR(start_packing(matrix, layout, packed, packed_bytes, &parts));
  int status = pack_scales(matrix, weight_scale, parts);
  if (status == BD_OK) status = pack_int4(matrix, weight, parts);
  return finish_packing(status, packed);
}

int bd_table_pack_rows(int format, const void* table, size_t table_bytes, int kind, int64_t rows, int64_t cols,
                       int64_t first_row, int64_t row_count, void* packed, size_t packed_bytes) {
  if (table == nullptr || packed == nullptr) return BD_ERROR_NULL_POINTER;
  if (format != BD_INT8 && format != BD_INT4) return BD_ERROR_ARGUMENT;
  if (kind < BD_TABLE_FLOAT32 || kind > BD_TABLE_FLOAT16) return BD_ERROR_ARGUMENT;
  if (rows < 1 || rows > BD_MAX_ROWS || cols < 1 || cols > BD_MAX_COLS) return BD_ERROR_SHAPE;
  if (first_row < 0 || row_count < 1 || first_row > rows - row_count || first_row % kPanelRows != 0) return BD_ERROR_SHAPE;
  if (row_count % kPanelRows != 0 && first_row + row_count != rows) return BD_ERROR_SHAPE;
  const bool int4 = format == BD_INT4;
  const size_t element = kind == BD_TABLE_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  if (table_bytes != static_cast<size_t>(row_count * cols) * element) return BD_ERROR_BUFFER_SIZE;
  if (reinterpret_cast<uintptr_t>(table) % element != 0) return BD_ERROR_ALIGNMENT;
  Matrix matrix;
  Layout layout;
  BD_RETURN_IF_ERROR(describe_matrix(format, rows, cols, int4 ? kInt4Group : 0,
                                     static_cast<size_t>(rows * (int4 ? div_up(cols, kInt4Group) : 1)), &matrix, &layout));
  PackedParts parts;
  if (first_row == 0) {
    BD_RETURN_IF_ERROR(start_packing(matrix, layout, packed, packed_bytes, &parts));
  } else {
    // What an earlier call began, and nothing else.
    Matrix begun;
    BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &begun));
    if (begun.format != matrix.format || begun.rows != rows || begun.cols != cols) return BD_ERROR_HEADER;
    uint8_t* base = static_cast<uint8_t*>(packed);
    parts = {base + layout.scales, base + layout.panel_data};
  }
  if (first_row + row_count == rows) {  // the rows that fill up the last panel are zeros
    const int64_t last = (matrix.panels - 1) * matrix.panel_bytes;
    std::memset(parts.panel_data + last, 0, static_cast<size_t>(matrix.panel_bytes));
  }
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  return finish_packing(pack_table_rows(matrix, *kernels, table, static_cast<bd_table_kind>(kind), first_row, row_count, parts),
                        packed);
}

int bd_split_size(int64_t rows, int64_t cols, size_t* bytes) {
  return bytes == nullptr ? BD_ERROR_NULL_POINTER : split_size(rows, cols, bytes);
}

int bd_split_begin(int64_t rows, const void* sample, size_t sample_bytes, const float* norm_weight, size_t norm_count,
                   void* split, size_t split_bytes) {
  Matrix matrix;
  BD_RETURN_IF_ERROR(open_matrix(sample, sample_bytes, &matrix));
  if (norm_count != (norm_weight == nullptr ? 0 : static_cast<size_t>(matrix.cols))) return BD_ERROR_BUFFER_SIZE;
  for (size_t i = 0; i < norm_count; ++i) {
    if (!std::isfinite(norm_weight[i])) return BD_ERROR_SCALE;
  }
  if (split != nullptr) advise_large_pages(split, split_bytes);
  return without_exceptions([&] { return begin_split(rows, matrix, norm_weight, split, split_bytes); });
}

int bd_split_pack_rows(const void* packed, size_t packed_bytes, int64_t first_row, void* split, size_t split_bytes) {
  Matrix matrix;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  return without_exceptions([&] { return pack_split_rows(matrix, first_row, split, split_bytes); });
}

int bd_weight_describe(const void* packed, size_t packed_bytes, bd_weight_info* info) {
  if (info == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  *info = {matrix.format, matrix.tensor_scale, matrix.rows, matrix.cols, matrix.group_size, matrix.groups};
  return BD_OK;
}

int bd_linear(const void* packed, size_t packed_bytes, const void* x, size_t x_count, int x_dtype, int64_t tokens,
              const float* norm_weight, size_t norm_count, float norm_eps, const float* bias, size_t bias_count, float* out,
              size_t out_count) {
  Matrix matrix;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  BD_RETURN_IF_ERROR(check_input(x, x_count, x_dtype, tokens, matrix.cols, norm_weight, norm_count, norm_eps));
  if (out == nullptr) return BD_ERROR_NULL_POINTER;
  if (bias_count != (bias == nullptr ? 0 : static_cast<size_t>(matrix.rows))) return BD_ERROR_BUFFER_SIZE;
  if (out_count != static_cast<size_t>(tokens * matrix.rows)) return BD_ERROR_BUFFER_SIZE;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  BD_RETURN_IF_ERROR(
      t_activations.quantize(*kernels, x, static_cast<bd_dtype>(x_dtype), tokens, matrix.cols, Norm{norm_weight, norm_eps}));
  Output output;
  output.bias = bias;
  output.out = out;
  output.out_stride = matrix.rows;
  return multiply(*kernels, matrix, t_activations, output);
}

int bd_split_linear(const void* packed, size_t packed_bytes, const float* x, size_t x_count, int64_t tokens, int greatest,
                    float* out, size_t out_count) {
  return without_exceptions([&]() -> int {
    Split split;
    const Kernels* kernels;
    BD_RETURN_IF_ERROR(open_split(packed, packed_bytes, &split));
    BD_RETURN_IF_ERROR(check_input(x, x_count, BD_FLOAT32, tokens, split.cols, nullptr, 0, 0.0f));
    if (out == nullptr) return BD_ERROR_NULL_POINTER;
    if (out_count != static_cast<size_t>(tokens * split.rows)) return BD_ERROR_BUFFER_SIZE;
    BD_RETURN_IF_ERROR(active_kernels(&kernels));
    if (!t_ordered.reserve(x_count * sizeof(float))) return BD_ERROR_OUT_OF_MEMORY;
    float* const ordered = t_ordered.as<float>();
    for (int64_t t = 0; t < tokens; ++t) order_columns(split, x + t * split.cols, ordered + t * split.cols);
    BD_RETURN_IF_ERROR(t_activations.quantize(*kernels, ordered, BD_FLOAT32, tokens, split.cols, Norm{}));
    multiply_split(*kernels, split, t_activations, greatest != 0, out, split.rows);
    return BD_OK;
  });
}

int bd_embedding(const void* packed, size_t packed_bytes, const int64_t* index, size_t index_count, float* out,
                 size_t out_count) {
  if (index == nullptr || out == nullptr) return BD_ERROR_NULL_POINTER;
  Matrix matrix;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  if (index_count > static_cast<size_t>(BD_MAX_TOKENS)) return BD_ERROR_SHAPE;
  if (out_count != index_count * static_cast<size_t>(matrix.cols)) return BD_ERROR_BUFFER_SIZE;
  for (size_t i = 0; i < index_count; ++i) {
    if (index[i] < 0 || index[i] >= matrix.rows) return BD_ERROR_INDEX;
  }
  parallel_for(static_cast<int64_t>(index_count), [&](int64_t i) { dequantize_row(matrix, index[i], out + i * matrix.cols); });
  return BD_OK;
}

int bd_quantize_activations(const void* x, size_t x_count, int x_dtype, int64_t tokens, int64_t cols, const float* norm_weight,
                            size_t norm_count, float norm_eps, int8_t* x_q, size_t x_q_count, float* s, size_t s_count) {
  BD_RETURN_IF_ERROR(check_input(x, x_count, x_dtype, tokens, cols, norm_weight, norm_count, norm_eps));
  if (x_q == nullptr || s == nullptr) return BD_ERROR_NULL_POINTER;
  if (x_q_count != x_count || s_count != static_cast<size_t>(tokens)) return BD_ERROR_BUFFER_SIZE;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  BD_RETURN_IF_ERROR(
      t_activations.quantize(*kernels, x, static_cast<bd_dtype>(x_dtype), tokens, cols, Norm{norm_weight, norm_eps}));
  for (int64_t t = 0; t < tokens; ++t) {
    t_activations.copy_token(t, x_q + t * cols);
    s[t] = *t_activations.scale(t);
  }
  return BD_OK;
}

int bd_matmul_int32(const void* packed, size_t packed_bytes, const int8_t* x_q, size_t x_q_count, int64_t tokens, int32_t* acc,
                    size_t acc_count) {
  Matrix matrix;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(open_matrix(packed, packed_bytes, &matrix));
  if (x_q == nullptr || acc == nullptr) return BD_ERROR_NULL_POINTER;
  if (tokens < 1 || tokens > BD_MAX_TOKENS) return BD_ERROR_SHAPE;
  if (x_q_count != static_cast<size_t>(tokens * matrix.cols)) return BD_ERROR_BUFFER_SIZE;
  if (acc_count / static_cast<size_t>(tokens) != static_cast<size_t>(matrix.rows * matrix.groups) ||
      acc_count % static_cast<size_t>(tokens) != 0) {
    return BD_ERROR_BUFFER_SIZE;
  }
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  BD_RETURN_IF_ERROR(t_activations.assign(*kernels, x_q, tokens, matrix.cols));
  Output output;
  output.acc = acc;
  return multiply(*kernels, matrix, t_activations, output);
}

int bd_measure_read_bandwidth(const void* data, size_t bytes, int repeats, double* bytes_per_second) {
  if (data == nullptr || bytes_per_second == nullptr) return BD_ERROR_NULL_POINTER;
  if (repeats < 1 || bytes < 4096 || bytes > (size_t{1} << 40)) return BD_ERROR_SHAPE;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  constexpr int64_t kPart = 1 << 20;
  std::atomic<uint64_t> sum{0};
  const auto read_all = [&] {
    parallel_for(div_up(static_cast<int64_t>(bytes), kPart), [&](int64_t part) {
      const int64_t left = static_cast<int64_t>(bytes) - part * kPart;
      sum += kernels->read_loop(static_cast<const uint8_t*>(data) + part * kPart, left < kPart ? left : kPart);
    });
  };
  *bytes_per_second = static_cast<double>(bytes) / best_seconds(repeats, read_all);
  return BD_OK;
}

int bd_measure_multiply_add(int repeats, double* multiply_adds_per_second) {
  if (multiply_adds_per_second == nullptr) return BD_ERROR_NULL_POINTER;
  if (repeats < 1) return BD_ERROR_SHAPE;
  const Kernels* kernels;
  BD_RETURN_IF_ERROR(active_kernels(&kernels));
  const int64_t tasks = int64_t{num_threads()} * 8;
  constexpr int64_t kIterations = 100'000;
  double per_task = 0;
  const auto multiply_all = [&] {
    parallel_for(tasks, [&](int64_t task) {
      const double done = kernels->multiply_add_loop(kIterations);
      if (task == 0) per_task = done;
    });
  };
  const double seconds = best_seconds(repeats, multiply_all);
  *multiply_adds_per_second = per_task * static_cast<double>(tasks) / seconds;
  return BD_OK;
}

}  // extern "C"
