// What the float kernels are made of: 16-lane vectors (portable.h) of floats, loaded from what tables and caches hold, and
// vectors as wide as a register, for what is computed at length: wider ones go through the stack.
#pragma once

#include "kernels/float_kernels.h"
#include "kernels/portable.h"

#if defined(__AVX512F__) || defined(__F16C__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace bitdistill {
namespace {

// ---- Loading and storing ---------------------------------------------------------------------------------------------

typedef uint16_t Halves __attribute__((vector_size(16 * sizeof(uint16_t))));

struct Float32 {
  static constexpr bool kIntegers = false;
  typedef float Storage;
  static inline Floats load(const float* p) { return load_vector<Floats>(p); }
  static inline void store(float* p, const Floats& v) { store_vector(p, v); }
  static inline float one(const float* p) { return *p; }
};

struct BFloat16 {
  typedef uint16_t Storage;
  static inline Floats load(const uint16_t* p) {
    const Bits bits = __builtin_convertvector(load_vector<Halves>(p), Bits) << 16;
    return load_vector<Floats>(&bits);
  }
  static inline float one(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
};

struct Float16 {
  static constexpr bool kIntegers = false;
  typedef uint16_t Storage;
  static inline Floats load(const uint16_t* p) {
#if defined(__AVX512F__)
    const __m512 v = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return load_vector<Floats>(&v);
#elif defined(__F16C__)
    const __m256 v[2] = {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                         _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    return load_vector<Floats>(&v);
#else
    return widen_halves<Floats>(__builtin_convertvector(load_vector<Halves>(p), Bits));  // (keys and values are finite)
#endif
  }
  static inline float one(const uint16_t* p) { return half_to_float(*p); }
  static inline void store(uint16_t* p, const Floats& v) {
#if defined(__AVX512F__)
    const __m512 floats = load_vector<__m512>(&v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    __m256 floats[2];
    memcpy(floats, &v, sizeof floats);
    for (int i = 0; i < 2; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i), _mm256_cvtps_ph(floats[i], _MM_FROUND_TO_NEAREST_INT));
    }
#else
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(v[i]);
#endif
  }
  // Half to even, as the instructions do it.
  static inline uint16_t float_to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude < 0x38800000u) {  // below 2^-14: a subnormal, counted in steps of 2^-24
      float absolute;
      memcpy(&absolute, &magnitude, sizeof absolute);
      const float rounded = absolute + 0.5f;  // the last bit of floats in [0.5, 1) is 2^-24
      uint32_t steps;
      memcpy(&steps, &rounded, sizeof steps);
      return static_cast<uint16_t>(sign | (steps - 0x3f000000u));
    }
    const uint32_t even = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + even - 0x38000000u) >> 13));
  }
};

// ---- Functions -------------------------------------------------------------------------------------------------------

// Minus zero, because x + 0 is an operation (-0 + 0 is 0) and x - 0 is none.
inline Floats spread(float value) { return value - Floats{}; }

// a * b + c, rounded once where the instruction set can, else twice.
inline Floats fused(const Floats& a, const Floats& b, const Floats& c) {
#if defined(__AVX512F__)
  const __m512 v = _mm512_fmadd_ps(load_vector<__m512>(&a), load_vector<__m512>(&b), load_vector<__m512>(&c));
  return load_vector<Floats>(&v);
#elif defined(__FMA__)
  __m256 x[2], y[2], z[2];
  memcpy(x, &a, sizeof x);
  memcpy(y, &b, sizeof y);
  memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  return load_vector<Floats>(z);
#elif defined(__ARM_NEON)
  float32x4_t x[4], y[4], z[4];
  memcpy(x, &a, sizeof x);
  memcpy(y, &b, sizeof y);
  memcpy(z, &c, sizeof z);
  for (int i = 0; i < 4; ++i) z[i] = vfmaq_f32(z[i], x[i], y[i]);
  return load_vector<Floats>(z);
#else
  return a * b + c;
#endif
}

#if defined(__AVX512F__)
constexpr int kWidth = 16;
typedef Floats Vector;
typedef Ints VectorInts;
typedef Bits VectorBits;
#else
#if defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef int32_t VectorInts __attribute__((vector_size(kWidth * sizeof(int32_t))));
typedef uint32_t VectorBits __attribute__((vector_size(kWidth * sizeof(uint32_t))));

inline Vector fused(const Vector& a, const Vector& b, const Vector& c) {
#if defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
#endif

inline Vector all(float value) { return value - Vector{}; }
inline VectorInts all(int32_t value) { return value + VectorInts{}; }

inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_NEON)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline Floats select(const Ints& mask, const Floats& yes, const Floats& no) {
  const Ints bits = (mask & load_vector<Ints>(&yes)) | (~mask & load_vector<Ints>(&no));
  return load_vector<Floats>(&bits);
}

inline float sum_of(const Floats& v) {
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// e^r of small numbers, by its series; `fused(a, b, c)` is a * b + c.
template <class Vector, typename F>
inline Vector exponential_series(const Vector& r, F&& fused) {
  const auto all = [](float value) { return value - Vector{}; };
  Vector p = fused(r, all(1.0f / 5040.0f), all(1.0f / 720.0f));
  p = fused(p, r, all(1.0f / 120.0f));
  p = fused(p, r, all(1.0f / 24.0f));
  p = fused(p, r, all(1.0f / 6.0f));
  p = fused(p, r, all(0.5f));
  p = fused(p, r, all(1.0f));
  p = fused(p, r, all(1.0f));
  return p;
}

// e^x to within 2 ulp: 2^n * p(r), x = n ln 2 + r, |r| <= ln 2 / 2. 0 below -87.3, infinity above 88.7.
inline Vector exponential(Vector x) {
  const VectorInts small = x < all(-87.3f);
  const VectorInts large = x > all(88.7f);
  x = (small | large) ? all(0.0f) : x;
  const Vector n = fused(x, all(1.44269504f), all(12582912.0f)) - 12582912.0f;
  const Vector r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  const Vector p = exponential_series(r, [](const Vector& a, const Vector& b, const Vector& c) { return fused(a, b, c); });
  const VectorInts power = (__builtin_convertvector(n, VectorInts) + 127) << 23;
  const Vector y = p * load_vector<Vector>(&power);
  return small ? all(0.0f) : large ? all(__builtin_inff()) : y;
}

inline Vector hyperbolic_tangent(const Vector& x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// x / (1 + e^-x)
inline Vector silu(const Vector& x) { return x / (1.0f + exponential(-x)); }

// Runs body(i, n) over [0, n) in vectors of kStep lanes; the last one goes through a buffer.
template <int kStep = kLanes, typename F>
inline void in_vectors(int64_t n, F&& body) {
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) body(i, kStep);
  if (i < n) body(i, static_cast<int>(n - i));
}

template <class V = Floats>
inline V load_some(const float* p, int n) {
  if (n == static_cast<int>(sizeof(V) / sizeof(float))) return load_vector<V>(p);
  V v = {};
  memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}

template <class V>
inline void store_some(float* p, const V& v, int n) {
  if (n == static_cast<int>(sizeof(V) / sizeof(float))) store_vector(p, v);
  else memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

inline void softcap(float cap, int64_t n, float* x) {
  in_vectors<kWidth>(n, [&](int64_t i, int lanes) {
    store_some(x + i, cap * hyperbolic_tangent(load_some<Vector>(x + i, lanes) / cap), lanes);
  });
}

}  // namespace
}  // namespace bitdistill
