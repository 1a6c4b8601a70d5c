// AVX-VNNI: the 256-bit form of the AVX-512 kernels, for CPUs that have vpdpbusd but not AVX-512.
#include "kernels/kernels.h"

#if defined(__AVXVNNI__)

#include "kernels/x86_256.h"

namespace bitdistill {
namespace {

// Does not saturate; sums that wrap around 2^32 come back when zero_point * sum(x_q) is taken off.
struct Int32Sums {
  static constexpr int kTokens = 5;
  static constexpr int64_t kMaxSteps = INT64_C(1) << 40;
  static constexpr int sets(int tokens) { return tokens == 1 ? 4 : tokens == 2 ? 2 : 1; }
  static inline __m256i add(__m256i acc, __m256i codes, __m256i x) { return in_order(_mm256_dpbusd_avx_epi32(acc, codes, x)); }
  static inline __m256i widen(__m256i acc) { return acc; }
};

using Implementation = Kernels256<Int32Sums, Int32Sums, Int32Sums, 0x80>;

constexpr Kernels kAvxVnni = {"avxvnni",
                              Int32Sums::kTokens,
                              128,
                              quantize_token,
                              Implementation::multiply,
                              Implementation::multiply_add_loop,
                              Implementation::read_loop,
                              avxvnni_float_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(avxvnni_kernels, &kAvxVnni)

#else

BITDISTILL_GIVES(avxvnni_kernels, nullptr)

#endif
