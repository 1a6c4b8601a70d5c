// What a training does row by row beside its matrix products, in as few passes over memory as go; one implementation an instruction set.
// Rows are BD_FLOAT32 or BD_BFLOAT16, computed in float32.
#pragma once

#include <cstdint>

#include "bitdistill.h"

namespace bitdistill {

struct TrainingKernels {
  // out = round_half_even(x * s), the integers that bd_linear quantises a token to. Returns s.
  float (*round_activations)(const void* x, bd_dtype x_dtype, int64_t n, void* out, bd_dtype out_dtype);

  // out = clip(round_half_even(x / scale), -1, 1)
  void (*ternarize)(const void* x, bd_dtype x_dtype, int64_t n, float scale, void* out, bd_dtype out_dtype);

  // out = (x * first) * second; `out` may be `x` where the dtypes are equal.
  void (*scale)(const void* x, bd_dtype x_dtype, int64_t n, float first, float second, void* out, bd_dtype out_dtype);
  // The same with a `first` [n] of its own for each column.
  void (*scale_columns)(const void* x, bd_dtype x_dtype, int64_t n, const float* first, float second, void* out,
                        bd_dtype out_dtype);

  // out = x * r * weight, in the dtype of x. Returns r = 1 / sqrt(mean(x^2) + eps), the mean in double.
  float (*norm)(const void* x, bd_dtype dtype, int64_t n, const float* weight, float eps, void* out);

  // Of `norm`, from the gradient of its result: that of x, and weight_sums += that of the weight. All rows are of one dtype.
  void (*norm_backward)(const void* grad, const void* x, bd_dtype dtype, int64_t n, const float* weight, float inverse_rms,
                        void* grad_x, float* weight_sums);
};

}  // namespace bitdistill
