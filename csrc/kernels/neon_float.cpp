// Float kernels with NEON: a 16-lane vector is four registers of 32.
#include "kernels/float_kernels.h"

#if defined(__ARM_NEON)

namespace {
constexpr int kRowsAtOnce = 4;
constexpr int kAccumulators = 16;
}  // namespace

#include "kernels/float_portable.h"

BITDISTILL_GIVES(neon_float_kernels, &kFloatKernels)

#else

BITDISTILL_GIVES(neon_float_kernels, nullptr)

#endif
