// Prefetching of a stream of weights on x86.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace bitdistill {

extern const int64_t plain_prefetch_bytes;

namespace {

// The prefetchers of the CPU stop at a page, and the arithmetic between two loads keeps a core from asking for enough
// lines at once. So lines are asked for twice: far ahead into the second-level cache, which has room for many requests,
// and shortly before use into the first. Measured with AVX-512 against one request 4 KB ahead: 86 -> 92 % of the read
// bandwidth.
constexpr int64_t kFarBytes = 16384;
constexpr int64_t kNearBytes = 2048;

// Codes of 4 and 8 bits in one group leave little arithmetic between two loads, and there the prefetchers of the CPU
// follow: requests only get in their way. Measured on Zen 4: a token with an 8-bit head is 1.18 times as fast without any
// (one thread, benchmarks/results/compare_prefetch_avx512_8.json). So the distance is 0 there, which asks for the line that
// is being read; other CPUs keep one request: plain_prefetch_bytes, set in dispatch.cpp. Short groups of 4 bits (tables of
// 4 bits) have arithmetic of their own, and keep both requests.

// May point beyond the weights: a prefetch never faults. Always inlined, because GCC sees a function without results or
// side effects and may leave out the call.
__attribute__((always_inline)) inline void prefetch(const uint8_t* w) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(w);
  _mm_prefetch(reinterpret_cast<const char*>(address + kFarBytes), _MM_HINT_T1);
  _mm_prefetch(reinterpret_cast<const char*>(address + kNearBytes), _MM_HINT_T0);
}

// All lines of a chunk of 16 columns times 16 rows; `groups` of the matrix.
template <int64_t kChunkBytes>
__attribute__((always_inline)) inline void prefetch_chunk(const uint8_t* w, int64_t groups) {
  if (kChunkBytes == 64) return prefetch(w);
  const int64_t ahead = plain_prefetch_bytes;
  const bool twice = kChunkBytes == 128 && groups > 1;
  const int64_t far = twice ? kFarBytes : ahead, near = twice ? kNearBytes : ahead;
#pragma GCC unroll 4
  for (int64_t line = 0; line < kChunkBytes; line += 64) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(w + line);
    if (kChunkBytes == 128) _mm_prefetch(reinterpret_cast<const char*>(address + static_cast<uintptr_t>(far)), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(address + static_cast<uintptr_t>(near)), _MM_HINT_T0);
  }
}

}  // namespace
}  // namespace bitdistill
