// The float kernels, written once on vectors (float_vectors.h); attention is in attend_portable.h. Each instruction
// set includes this header in a file of its own, compiled with its own flags.
//
// What a row (one token's output, one query) becomes is one expression, whatever is computed beside it: the same terms, in
// the same order, with the same roundings, in every template. Hence no contraction by the compiler, which may fuse a
// product and a sum in one instance of a template and not in another: where they are to be fused it says `fused`.
#pragma once

#include "kernels/attend_portable.h"
#include "kernels/float_vectors.h"
#include "kernels/split_portable.h"
#include "kernels/training_portable.h"

namespace bitdistill {
namespace {

// ---- Functions -------------------------------------------------------------------------------------------------------

inline Vector activated(bd_activation activation, const Vector& x) {
  switch (activation) {
    case BD_SILU: return silu(x);
    case BD_RELU: return x > all(0.0f) ? x : all(0.0f);
    case BD_RELU_SQUARED: {
      const Vector y = x > all(0.0f) ? x : all(0.0f);
      return y * y;
    }
    case BD_GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608f * (x + 0.044715f * x * x * x)));
    case BD_GELU: {
      Vector y;
      for (int i = 0; i < kWidth; ++i) y[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678f));
      return y;
    }
  }
  return x;
}

void activate(bd_activation activation, const float* gate, const float* up, int64_t n, float* out) {
  in_vectors<kWidth>(n, [&](int64_t i, int lanes) {
    store_some(out + i, activated(activation, load_some<Vector>(gate + i, lanes)) * load_some<Vector>(up + i, lanes), lanes);
  });
}

void add(const float* x, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

void rms_norm(const float* x, int64_t n, const float* weight, float eps, float* out) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) lanes[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  }
  double sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const float inverse = static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(n) + static_cast<double>(eps)));
  for (i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

// ---- Tables ----------------------------------------------------------------------------------------------------------

template <class T, int R, int N>
inline void dense_tile(const typename T::Storage* weight, int64_t cols, const float* x, float* out, int64_t out_stride) {
  Floats sums[R][N] = {};
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) {
    Floats w[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = T::load(weight + r * cols + i);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const Floats v = load_vector<Floats>(x + n * cols + i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[r][n] = fused(w[r], v, sums[r][n]);
    }
  }
  Floats done[R][N];  // so that the sums above need no address and stay in registers
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) done[r][n] = sums[r][n];
  }
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) {
      float sum = sum_of(done[r][n]);
      for (int64_t j = i; j < cols; ++j) sum = fused(T::one(weight + r * cols + j), x[n * cols + j], sum);
      out[n * out_stride + r] = sum;
    }
  }
}

template <class T>
void dense_as(const typename T::Storage* weight, int64_t rows, int64_t cols, const float* x, int64_t tokens, float* out,
              int64_t out_stride) {
  for (int64_t r = 0; r < rows;) {
    const bool four = r + 4 <= rows;
    const typename T::Storage* w = weight + r * cols;
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) {
      if (four) dense_tile<T, 4, 4>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
      else dense_tile<T, 1, 4>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
    }
    for (; t < tokens; ++t) {
      if (four) dense_tile<T, 4, 1>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
      else dense_tile<T, 1, 1>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
    }
    r += four ? 4 : 1;
  }
}

void dense(bd_table_kind kind, const void* weight, int64_t rows, int64_t cols, const float* x, int64_t tokens, float* out,
           int64_t out_stride) {
  switch (kind) {
    case BD_TABLE_FLOAT32: return dense_as<Float32>(static_cast<const float*>(weight), rows, cols, x, tokens, out, out_stride);
    case BD_TABLE_BFLOAT16:
      return dense_as<BFloat16>(static_cast<const uint16_t*>(weight), rows, cols, x, tokens, out, out_stride);
    case BD_TABLE_FLOAT16:
      return dense_as<Float16>(static_cast<const uint16_t*>(weight), rows, cols, x, tokens, out, out_stride);
    case BD_TABLE_PACKED:
    case BD_TABLE_SPLIT: break;  // the integer kernels' work
  }
}

template <class T>
void widen_as(const typename T::Storage* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = T::one(row + i);
}

void widen(bd_table_kind kind, const void* row, int64_t cols, float* out) {
  switch (kind) {
    case BD_TABLE_FLOAT32: return widen_as<Float32>(static_cast<const float*>(row), cols, out);
    case BD_TABLE_BFLOAT16: return widen_as<BFloat16>(static_cast<const uint16_t*>(row), cols, out);
    case BD_TABLE_FLOAT16: return widen_as<Float16>(static_cast<const uint16_t*>(row), cols, out);
    case BD_TABLE_PACKED:
    case BD_TABLE_SPLIT: break;
  }
}

// ---- Adapters --------------------------------------------------------------------------------------------------------

// A stretch of outputs at a time: the second factor of a product of low rank has columns that are too short for dot products.
template <int N>
inline void expand_tile(const float* x, int64_t rank, const float* weight, int64_t rows, float* out) {
  Floats sums[N] = {};
  for (int64_t k = 0; k < rank; ++k) {
    const Floats v = spread(x[k]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sums[n] = fused(v, load_vector<Floats>(weight + k * rows + n * kLanes), sums[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) store_vector(out + n * kLanes, load_vector<Floats>(out + n * kLanes) + sums[n]);
}

void expand(const float* x, int64_t rank, const float* weight, int64_t rows, float* out) {
  int64_t r = 0;
  for (; r + 4 * kLanes <= rows; r += 4 * kLanes) expand_tile<4>(x, rank, weight + r, rows, out + r);
  for (; r + kLanes <= rows; r += kLanes) expand_tile<1>(x, rank, weight + r, rows, out + r);
  for (; r < rows; ++r) {
    float sum = 0.0f;
    for (int64_t k = 0; k < rank; ++k) sum = fused(x[k], weight[k * rows + r], sum);
    out[r] += sum;
  }
}

constexpr FloatKernels kFloatKernels = {
    attend, merge_attended, finish_attended, store_key_value,        rms_norm,      rotate,          activate, add, softcap,
    dense,  widen,          expand,          Float16::float_to_half, kSplitKernels, kTrainingKernels};

}  // namespace
}  // namespace bitdistill
