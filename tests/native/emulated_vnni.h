// The few AVX-512 VNNI and AVX-VNNI instructions that the kernels use, for CPUs without them: included in front of
// avx512_vnni.cpp, amx.cpp and avx_vnni.cpp by BITDISTILL_EMULATE_VNNI, so that what these files compute is tested everywhere. Slow.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "emulated_avx_vnni.h"

namespace emulated {

// Bit patterns of lanes in Intel's order.
struct alignas(64) Vector {
  uint8_t bytes[64];
};

template <typename Lane, typename F>
inline Vector lanes(F f) {
  Vector result;
  for (size_t i = 0; i < 64 / sizeof(Lane); ++i) {
    const Lane lane = f(i);
    std::memcpy(result.bytes + i * sizeof lane, &lane, sizeof lane);
  }
  return result;
}

template <typename Lane>
inline Lane lane(const Vector& v, size_t i) {
  Lane result;
  std::memcpy(&result, v.bytes + i * sizeof result, sizeof result);
  return result;
}

inline Vector load(const void* p) {
  Vector result;
  std::memcpy(&result, p, sizeof result);
  return result;
}

inline void store(void* p, const Vector& v) { std::memcpy(p, &v, sizeof v); }

inline Vector set1_epi8(int value) {
  return lanes<uint8_t>([=](size_t) { return static_cast<uint8_t>(value); });
}
inline Vector set1_epi32(int value) {
  return lanes<int32_t>([=](size_t) { return value; });
}
inline Vector setzero() { return set1_epi8(0); }

inline Vector bit_and(const Vector& a, const Vector& b) {
  return lanes<uint64_t>([&](size_t i) { return lane<uint64_t>(a, i) & lane<uint64_t>(b, i); });
}
inline Vector bit_xor(const Vector& a, const Vector& b) {
  return lanes<uint64_t>([&](size_t i) { return lane<uint64_t>(a, i) ^ lane<uint64_t>(b, i); });
}
inline Vector add_epi32(const Vector& a, const Vector& b) {
  return lanes<uint32_t>([&](size_t i) { return lane<uint32_t>(a, i) + lane<uint32_t>(b, i); });
}
inline Vector add_epi64(const Vector& a, const Vector& b) {
  return lanes<uint64_t>([&](size_t i) { return lane<uint64_t>(a, i) + lane<uint64_t>(b, i); });
}
inline Vector srli_epi16(const Vector& a, unsigned count) {
  return lanes<uint16_t>([&](size_t i) { return static_cast<uint16_t>(lane<uint16_t>(a, i) >> count); });
}
inline Vector srai_epi32(const Vector& a, unsigned count) {
  return lanes<int32_t>([&](size_t i) { return lane<int32_t>(a, i) >> count; });
}
inline long long reduce_add_epi64(const Vector& a) {
  uint64_t sum = 0;
  for (size_t i = 0; i < 8; ++i) sum += lane<uint64_t>(a, i);
  return static_cast<long long>(sum);
}

inline Vector dpbusd(const Vector& sum, const Vector& u, const Vector& s) {
  return lanes<uint32_t>(
      [&](size_t i) { return dpbusd_lane(lane<uint32_t>(sum, i), u.bytes + 4 * i, s.bytes + 4 * i); });
}
}  // namespace emulated

// Some compilers have macros of these names.
#undef _mm512_srai_epi32
#undef _mm512_srli_epi16

#define __m512i emulated::Vector
#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_add_epi64 emulated::add_epi64
#define _mm512_and_si512 emulated::bit_and
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_loadu_si512 emulated::load
#define _mm512_reduce_add_epi64 emulated::reduce_add_epi64
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_epi8(value) emulated::set1_epi8(value)
#define _mm512_setzero_si512 emulated::setzero
#define _mm512_store_si512 emulated::store
#define _mm512_srai_epi32 emulated::srai_epi32
#define _mm512_srli_epi16 emulated::srli_epi16
#define _mm512_xor_si512 emulated::bit_xor

// What the two files ask the compiler for.
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
#define BITDISTILL_REGISTER "m"
#define avx512_float_kernels avx2_float_kernels  // these are the same sources with other compiler options
