// Float kernels for any CPU.
#include "kernels/float_kernels.h"

namespace {
constexpr int kRowsAtOnce = 4;
constexpr int kAccumulators = 8;
}  // namespace

#include "kernels/float_portable.h"

BITDISTILL_GIVES(scalar_float_kernels, &kFloatKernels)
