// The one AVX-VNNI instruction that the kernels use, for CPUs without it: included in front of avx_vnni_float.cpp and, with
// more, of avx_vnni.cpp by BITDISTILL_EMULATE_VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace emulated {

// Four unsigned times four signed bytes, added to 32 bits; wraps around, never saturates.
inline uint32_t dpbusd_lane(uint32_t sum, const uint8_t* u, const uint8_t* s) {
  for (int k = 0; k < 4; ++k) sum += static_cast<uint32_t>(int32_t{u[k]} * static_cast<int8_t>(s[k]));
  return sum;
}
inline __m256i dpbusd256(__m256i sum, __m256i u, __m256i s) {
  alignas(32) uint32_t sums[8];
  alignas(32) uint8_t us[32], ss[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(sums), sum);
  _mm256_store_si256(reinterpret_cast<__m256i*>(us), u);
  _mm256_store_si256(reinterpret_cast<__m256i*>(ss), s);
  for (int i = 0; i < 8; ++i) sums[i] = dpbusd_lane(sums[i], us + 4 * i, ss + 4 * i);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(sums));
}

}  // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::dpbusd256
#define __AVXVNNI__ 1
