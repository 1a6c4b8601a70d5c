// AVX-VNNI's vpdpbusd in its AVX-512 encoding, for CPUs with AVX-512 VNNI alone: included in front of avx_vnni.cpp by
// BITDISTILL_EVEX_VNNI, so that these kernels can be timed there. Everything else is compiled as without it: 16 registers,
// no operand that only AVX-512 has.
#pragma once

#include <immintrin.h>

namespace evex {

inline __m256i dpbusd(__m256i sum, __m256i u, __m256i s) {
  asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "x"(s));
  return sum;
}

}  // namespace evex

#define _mm256_dpbusd_avx_epi32 evex::dpbusd
#define __AVXVNNI__ 1
