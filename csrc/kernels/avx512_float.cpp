// Float kernels with AVX-512: a 16-lane vector is one register of 32.
#include "kernels/float_kernels.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)

namespace {
constexpr int kRowsAtOnce = 8;
constexpr int kAccumulators = 16;
}  // namespace

#include "kernels/float_portable.h"

BITDISTILL_GIVES(avx512_float_kernels, &kFloatKernels)

#else

BITDISTILL_GIVES(avx512_float_kernels, nullptr)

#endif
