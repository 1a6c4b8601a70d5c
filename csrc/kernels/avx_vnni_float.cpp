// Float kernels with AVX-VNNI, which multiplies the integers of a cache: a 16-lane vector is two registers of 16.
#include "kernels/float_kernels.h"

#if defined(__AVXVNNI__) && defined(__FMA__) && defined(__F16C__)

namespace {
constexpr int kRowsAtOnce = 4;
constexpr int kAccumulators = 8;
}  // namespace

#include "kernels/float_portable.h"

BITDISTILL_GIVES(avxvnni_float_kernels, &kFloatKernels)

#else

BITDISTILL_GIVES(avxvnni_float_kernels, nullptr)

#endif
