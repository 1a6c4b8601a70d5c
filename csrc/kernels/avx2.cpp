// AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs into int16, saturating. The sums stay in int16 as
// long as they provably fit, because adding in int32 after every multiplication costs a third of the speed.
#include "kernels/kernels.h"

#if defined(__AVX2__)

#include "kernels/x86_256.h"

namespace bitdistill {
namespace {

// Two products of a code <= kLargest and an activation in [-128, 127] lie in [-256 * kLargest, 254 * kLargest], so n
// additions lie within int16 as long as n * 256 * kLargest <= 2^15. Then vpmaddubsw does not saturate either.
template <int kLargest>
struct Int16Sums {
  static constexpr int kTokens = 4;
  static constexpr int64_t kMaxSteps = 32768 / (256 * kLargest) / kChunkSteps * kChunkSteps;
  static constexpr int sets(int tokens) { return tokens == 1 ? 2 : 1; }
  static_assert(kMaxSteps > 0 && kMaxSteps * 256 * kLargest <= 32768, "int16 sums must not overflow");
  static inline __m256i add(__m256i acc, __m256i codes, __m256i x) {
    return in_order(_mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, x)));
  }
  static inline __m256i widen(__m256i acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
};

// int8 weights: |x| as the unsigned operand (128 included), the weight with the sign of x as the signed one. A pair is
// at most 2 * 128 * 127 < 2^15, since no weight is -128; sums are int32.
struct Int8Sums {
  static constexpr int kTokens = 4;
  static constexpr int64_t kMaxSteps = INT64_C(1) << 40;
  static constexpr int sets(int) { return 1; }
  static inline __m256i add(__m256i acc, __m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
    return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
  }
  static inline __m256i widen(__m256i acc) { return acc; }
};

// A code 3 occurs only in a packed weight that was damaged in memory: results are then unspecified, but not behaviour.
using Implementation = Kernels256<Int16Sums<2>, Int16Sums<15>, Int8Sums, 0>;

constexpr Kernels kAvx2 = {"avx2",
                           Int8Sums::kTokens,
                           0,
                           quantize_token,
                           Implementation::multiply,
                           Implementation::multiply_add_loop,
                           Implementation::read_loop,
                           avx2_float_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(avx2_kernels, &kAvx2)

#else

BITDISTILL_GIVES(avx2_kernels, nullptr)

#endif
