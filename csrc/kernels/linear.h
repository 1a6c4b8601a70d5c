// The matrix product over all rows and tokens, on all threads. What the ABI and the decoder call.
#pragma once

#include "kernels/activations.h"
#include "kernels/matrix.h"

namespace bitdistill {

struct Output {
  const float* bias = nullptr;  // rows floats, or null
  float* out = nullptr;         // [tokens][rows], `out_stride` from token to token
  int64_t out_stride = 0;
  int32_t* acc = nullptr;       // instead of all that: the sums, [tokens][rows][groups]
};

// x.cols() must be matrix.cols, and `x` must come from the same kernels.
int multiply(const Kernels& kernels, const Matrix& matrix, QuantizedActivations& x, const Output& output);

constexpr int kMaxParts = 3;

struct MultiplyPart {
  const Matrix* matrix;
  Output output;
};

// Several matrices of equal cols times the same x, as one job of the threads.
int multiply(const Kernels& kernels, const MultiplyPart* parts, int count, QuantizedActivations& x);

// The same on the calling thread alone: for measurements.
int multiply_here(const Kernels& kernels, const Matrix& matrix, QuantizedActivations& x, const Output& output);

// out [cols]: row `row` of the dequantised matrix.
void dequantize_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace bitdistill
