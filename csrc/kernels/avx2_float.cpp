// Float kernels with AVX2: a 16-lane vector is two registers of 16.
#include "kernels/float_kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

namespace {
constexpr int kRowsAtOnce = 4;
constexpr int kAccumulators = 8;
}  // namespace

#include "kernels/float_portable.h"

BITDISTILL_GIVES(avx2_float_kernels, &kFloatKernels)

#else

BITDISTILL_GIVES(avx2_float_kernels, nullptr)

#endif
