// The float kernels, written once on 16-lane vectors (portable.h). Each instruction set includes this header in a file
// of its own, compiled with its own flags.
//
// What a row (one token's output, one query) becomes is one expression, whatever is computed beside it: the same terms, in
// the same order, with the same roundings, in every template below. Hence no contraction by the compiler, which may fuse a
// product and a sum in one instance of a template and not in another: where they are to be fused it says `fused`.
//
// The including file defines kRowsAtOnce: how many rows of an attention task are computed together (each needs one
// 16-lane sum, which takes 1, 2 or 4 registers).
#pragma once

#include "kernels/float_kernels.h"
#include "kernels/portable.h"
#include "kernels/split_portable.h"

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
    // A half, shifted to the fraction and exponent of a float, is its value times 2^-112. Keys and values are finite.
    const Bits halves = __builtin_convertvector(load_vector<Halves>(p), Bits);
    const Bits shifted = (halves & 0x7fffu) << 13;
    const Floats magnitude = load_vector<Floats>(&shifted) * 0x1p112f;
    const Bits bits = load_vector<Bits>(&magnitude) | (halves & 0x8000u) << 16;
    return load_vector<Floats>(&bits);
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

// e^x to within 2 ulp: 2^n * p(r), x = n ln 2 + r, |r| <= ln 2 / 2. 0 below -87.3, infinity above 88.7.
inline Floats exponential(Floats x) {
  const Ints small = x < spread(-87.3f), large = x > spread(88.7f);
  x = select(small, spread(0.0f), select(large, spread(0.0f), x));
  const Floats n = fused(x, spread(1.44269504f), spread(12582912.0f)) - 12582912.0f;
  const Floats r = fused(n, spread(2.12194440e-4f), fused(n, spread(-0.693359375f), x));
  Floats p = fused(r, spread(1.0f / 5040.0f), spread(1.0f / 720.0f));
  p = fused(p, r, spread(1.0f / 120.0f));
  p = fused(p, r, spread(1.0f / 24.0f));
  p = fused(p, r, spread(1.0f / 6.0f));
  p = fused(p, r, spread(0.5f));
  p = fused(p, r, spread(1.0f));
  p = fused(p, r, spread(1.0f));
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  const Floats y = p * load_vector<Floats>(&power);
  return select(small, spread(0.0f), select(large, spread(__builtin_inff()), y));
}

inline Floats hyperbolic_tangent(const Floats& x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

// x / (1 + e^-x)
inline Floats silu(const Floats& x) { return x / (1.0f + exponential(-x)); }

// Runs body(i, n) over [0, n) in vectors; the last one goes through a buffer.
template <typename F>
inline void in_vectors(int64_t n, F&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

inline Floats load_some(const float* p, int n) {
  if (n == kLanes) return load_vector<Floats>(p);
  Floats v = {};
  memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}

inline void store_some(float* p, const Floats& v, int n) { memcpy(p, &v, static_cast<size_t>(n) * sizeof(float)); }

inline Floats activated(bd_activation activation, const Floats& x) {
  switch (activation) {
    case BD_SILU: return silu(x);
    case BD_RELU: return select(x > spread(0.0f), x, spread(0.0f));
    case BD_RELU_SQUARED: {
      const Floats y = select(x > spread(0.0f), x, spread(0.0f));
      return y * y;
    }
    case BD_GELU_TANH:
      return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608f * (x + 0.044715f * x * x * x)));
    case BD_GELU: {
      Floats y;
      for (int i = 0; i < kLanes; ++i) y[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678f));
      return y;
    }
  }
  return x;
}

void activate(bd_activation activation, const float* gate, const float* up, int64_t n, float* out) {
  in_vectors(n, [&](int64_t i, int lanes) {
    const Floats u = load_some(up + i, lanes);
    const Floats y = gate == nullptr ? activated(activation, u) : activated(activation, load_some(gate + i, lanes)) * u;
    store_some(out + i, y, lanes);
  });
}

void add(const float* x, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

void softcap(float cap, int64_t n, float* x) {
  in_vectors(n, [&](int64_t i, int lanes) {
    store_some(x + i, cap * hyperbolic_tangent(load_some(x + i, lanes) / cap), lanes);
  });
}

void rms_norm(const float* x, int64_t n, const float* weight, float eps, float* out) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) lanes[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  }
  double sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const float inverse =
      static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(n) + static_cast<double>(eps)));
  for (i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i] + a * sin[i];
  }
}

// ---- Keys and values -------------------------------------------------------------------------------------------------

template <class T>
void store_as(const float* key, const float* value, int64_t head_dim, int64_t position, void* page_keys,
              void* page_values) {
  typedef typename T::Storage Storage;
  Storage* const keys = static_cast<Storage*>(page_keys) + position / kKeyBlock * head_dim * kKeyBlock + position % kKeyBlock;
  Storage* const values = static_cast<Storage*>(page_values) + position * round_up(head_dim, kLanes);
  in_vectors(head_dim, [&](int64_t d, int lanes) {
    Storage narrow[kLanes];
    T::store(narrow, load_some(key + d, lanes));
    for (int i = 0; i < lanes; ++i) keys[(d + i) * kKeyBlock] = narrow[i];
    T::store(values + d, load_some(value + d, lanes));  // zeros beyond the last column
  });
}

void store_key_value(const float* key, const float* value, int64_t head_dim, bd_dtype dtype, int64_t position,
                     void* page_keys, void* page_values) {
  if (dtype == BD_FLOAT16) return store_as<Float16>(key, value, head_dim, position, page_keys, page_values);
  store_as<Float32>(key, value, head_dim, position, page_keys, page_values);
}

// ---- Attention -------------------------------------------------------------------------------------------------------

// Scores of R queries and B blocks of 16 positions. A score is one sum over the columns in their order.
template <class T, int R, int B>
inline void score_blocks(const float* const* q, const typename T::Storage* keys, int64_t head_dim, Floats (&out)[B][R]) {
  Floats sums[B][R] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
#pragma GCC unroll 4
    for (int block = 0; block < B; ++block) {
      const Floats k = T::load(keys + (block * head_dim + d) * kKeyBlock);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[block][r] = fused(spread(q[r][d]), k, sums[block][r]);
    }
  }
#pragma GCC unroll 4
  for (int block = 0; block < B; ++block) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) out[block][r] = sums[block][r];
  }
}

// 32 columns of R outputs, weighted sums over positions [first, last). `weights` of position p is at p - start.
template <class T, int R>
inline void mix_columns(const AttendTask& task, int64_t first, int64_t last, const float* weights, int64_t stride,
                        int64_t start, int64_t column, bool two, Floats (&out)[R][2]) {
  typedef typename T::Storage Storage;
  const int64_t width = round_up(task.head_dim, kLanes);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) out[r][0] = out[r][1] = Floats{};
  for (int64_t p = first; p < last;) {
    const int64_t page = p / kPagePositions;
    const int64_t page_end = (page + 1) * kPagePositions < last ? (page + 1) * kPagePositions : last;
    const Storage* v = reinterpret_cast<const Storage*>(task.pages[page] + task.value_offset) +
                       (p - page * kPagePositions) * width + column;
    if (two) {
      for (; p < page_end; ++p, v += width) {
        const Floats low = T::load(v), high = T::load(v + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const float w = weights[r * stride + p - start];
          out[r][0] = fused(spread(w), low, out[r][0]);
          out[r][1] = fused(spread(w), high, out[r][1]);
        }
      }
    } else {
      for (; p < page_end; ++p, v += width) {
        const Floats low = T::load(v);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) out[r][0] = fused(spread(weights[r * stride + p - start]), low, out[r][0]);
      }
    }
  }
}

// Asks for memory that will be read soon.
inline void prefetch_bytes(const void* start, int64_t bytes) {
  const char* const p = static_cast<const char*>(start);
  for (int64_t i = 0; i < bytes; i += BD_ALIGNMENT) __builtin_prefetch(p + i);
}

// Scaled scores of B blocks, all of one page.
template <class T, int R, int B>
inline void store_scores(const AttendTask& task, int row, int64_t block, int64_t start, int64_t stride) {
  typedef typename T::Storage Storage;
  constexpr int kBlocks = kPagePositions / kKeyBlock;
  const int64_t block_keys = task.head_dim * kKeyBlock;
  const Storage* const keys =
      reinterpret_cast<const Storage*>(task.pages[block / kBlocks] + task.key_offset) + block % kBlocks * block_keys;
  // Keys and values were last used a whole pass over the weights ago: they come from far away.
  const int64_t left = kBlocks - block % kBlocks - B;
  if (left > 0) prefetch_bytes(keys + B * block_keys, (left < B ? left : B) * block_keys * static_cast<int64_t>(sizeof(Storage)));
  const int64_t value_bytes = kKeyBlock * round_up(task.head_dim, kLanes) * static_cast<int64_t>(sizeof(Storage));
  prefetch_bytes(task.pages[block / kBlocks] + task.value_offset + block % kBlocks * value_bytes, B * value_bytes);
  Floats s[B][R];
  score_blocks<T, R, B>(task.q + row, keys, task.head_dim, s);
#pragma GCC unroll 4
  for (int i = 0; i < B; ++i) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      store_vector(task.scratch + r * stride + (block + i) * kKeyBlock - start, s[i][r] * task.scale);
    }
  }
}

template <class T, int R>
void attend_rows(const AttendTask& task, int row) {
  int64_t first = task.first[row], last = task.last[row];
  for (int r = 1; r < R; ++r) {
    if (task.first[row + r] < first) first = task.first[row + r];
    if (task.last[row + r] > last) last = task.last[row + r];
  }
  const int64_t start = first / kKeyBlock * kKeyBlock;
  const int64_t stride = round_up(last - start, kKeyBlock);
  float* const scores = task.scratch;

  // Few rows take several blocks of a page at once, so that additions do not wait for each other.
  constexpr int kBlocks = kPagePositions / kKeyBlock;
  constexpr int kTogether = R == 1 ? 4 : R == 2 ? 2 : 1;
  for (int64_t block = start / kKeyBlock; block < div_up(last, kKeyBlock);) {
    const int64_t in_page = kBlocks - block % kBlocks, in_all = div_up(last, kKeyBlock) - block;
    if (kTogether > 1 && in_page >= kTogether && in_all >= kTogether) {
      store_scores<T, R, kTogether>(task, row, block, start, stride);
      block += kTogether;
    } else {
      store_scores<T, R, 1>(task, row, block, start, stride);
      ++block;
    }
  }
  float inverse[R];
  for (int r = 0; r < R; ++r) {
    float* const s = scores + r * stride;
    if (task.softcap != 0.0f) softcap(task.softcap, stride, s);
    const float hidden = -__builtin_inff();
    for (int64_t i = 0; i < task.first[row + r] - start; ++i) s[i] = hidden;
    for (int64_t i = task.last[row + r] - start; i < stride; ++i) s[i] = hidden;
    Floats most = spread(hidden);
    for (int64_t i = 0; i < stride; i += kLanes) {
      const Floats v = load_vector<Floats>(s + i);
      most = select(v > most, v, most);
    }
    float largest = most[0];
    for (int i = 1; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
    Floats sum = {};
    for (int64_t i = 0; i < stride; i += kLanes) {
      const Floats e = exponential(load_vector<Floats>(s + i) - largest);
      store_vector(s + i, e);
      sum += e;
    }
    inverse[r] = 1.0f / sum_of(sum);
  }
  const int64_t width = round_up(task.head_dim, kLanes);
  Floats not_finite[R] = {};
  for (int64_t column = 0; column < width; column += 2 * kLanes) {
    Floats mixed[R][2];
    mix_columns<T, R>(task, first, last, scores, stride, start, column, column + kLanes < width, mixed);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (R > 1) not_finite[r] += (mixed[r][0] - mixed[r][0]) + (mixed[r][1] - mixed[r][1]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t left = task.head_dim - column - half * kLanes;
        if (left > 0) store_some(task.out[row + r] + column + half * kLanes, mixed[r][half] * inverse[r],
                                 static_cast<int>(left < kLanes ? left : kLanes));
      }
    }
  }
  // A value that only other rows see counted with weight 0 here. That changes nothing, unless it is no finite number.
  if constexpr (R > 1) {
    for (int r = 0; r < R; ++r) {
      if (sum_of(not_finite[r]) != 0.0f) attend_rows<T, 1>(task, row + r);
    }
  }
}

template <class T>
void attend_as(const AttendTask& task) {
  int row = 0;
  for (; row + kRowsAtOnce <= task.rows; row += kRowsAtOnce) attend_rows<T, kRowsAtOnce>(task, row);
  for (; row + 4 <= task.rows; row += 4) attend_rows<T, 4>(task, row);
  for (; row + 2 <= task.rows; row += 2) attend_rows<T, 2>(task, row);
  if (row < task.rows) attend_rows<T, 1>(task, row);
}

void attend(const AttendTask& task) {
  if (task.dtype == BD_FLOAT16) return attend_as<Float16>(task);
  attend_as<Float32>(task);
}

// ---- Tables ----------------------------------------------------------------------------------------------------------

template <class T, int R, int N>
inline void dense_tile(const typename T::Storage* weight, int64_t cols, const float* x, float* out, int64_t out_stride) {
  Floats sums[R][N] = {};
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) {
    Floats w[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = T::load(weight + r * cols + i);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const Floats v = load_vector<Floats>(x + n * cols + i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[r][n] = fused(w[r], v, sums[r][n]);
    }
  }
  Floats done[R][N];  // so that the sums above need no address and stay in registers
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) done[r][n] = sums[r][n];
  }
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) {
      float sum = sum_of(done[r][n]);
      for (int64_t j = i; j < cols; ++j) sum = fused(T::one(weight + r * cols + j), x[n * cols + j], sum);
      out[n * out_stride + r] = sum;
    }
  }
}

template <class T>
void dense_as(const typename T::Storage* weight, int64_t rows, int64_t cols, const float* x, int64_t tokens, float* out,
              int64_t out_stride) {
  for (int64_t r = 0; r < rows;) {
    const bool four = r + 4 <= rows;
    const typename T::Storage* w = weight + r * cols;
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) {
      if (four) dense_tile<T, 4, 4>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
      else dense_tile<T, 1, 4>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
    }
    for (; t < tokens; ++t) {
      if (four) dense_tile<T, 4, 1>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
      else dense_tile<T, 1, 1>(w, cols, x + t * cols, out + t * out_stride + r, out_stride);
    }
    r += four ? 4 : 1;
  }
}

void dense(bd_table_kind kind, const void* weight, int64_t rows, int64_t cols, const float* x, int64_t tokens, float* out,
           int64_t out_stride) {
  switch (kind) {
    case BD_TABLE_FLOAT32: return dense_as<Float32>(static_cast<const float*>(weight), rows, cols, x, tokens, out, out_stride);
    case BD_TABLE_BFLOAT16: return dense_as<BFloat16>(static_cast<const uint16_t*>(weight), rows, cols, x, tokens, out, out_stride);
    case BD_TABLE_FLOAT16: return dense_as<Float16>(static_cast<const uint16_t*>(weight), rows, cols, x, tokens, out, out_stride);
    case BD_TABLE_PACKED:
    case BD_TABLE_SPLIT: break;  // the integer kernels' work
  }
}

template <class T>
void widen_as(const typename T::Storage* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = T::one(row + i);
}

void widen(bd_table_kind kind, const void* row, int64_t cols, float* out) {
  switch (kind) {
    case BD_TABLE_FLOAT32: return widen_as<Float32>(static_cast<const float*>(row), cols, out);
    case BD_TABLE_BFLOAT16: return widen_as<BFloat16>(static_cast<const uint16_t*>(row), cols, out);
    case BD_TABLE_FLOAT16: return widen_as<Float16>(static_cast<const uint16_t*>(row), cols, out);
    case BD_TABLE_PACKED:
    case BD_TABLE_SPLIT: break;
  }
}

// ---- Adapters --------------------------------------------------------------------------------------------------------

// A stretch of outputs at a time: the second factor of a product of low rank has columns that are too short for dot products.
template <int N>
inline void expand_tile(const float* x, int64_t rank, const float* weight, int64_t rows, float* out) {
  Floats sums[N] = {};
  for (int64_t k = 0; k < rank; ++k) {
    const Floats v = spread(x[k]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sums[n] = fused(v, load_vector<Floats>(weight + k * rows + n * kLanes), sums[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) store_vector(out + n * kLanes, load_vector<Floats>(out + n * kLanes) + sums[n]);
}

void expand(const float* x, int64_t rank, const float* weight, int64_t rows, float* out) {
  int64_t r = 0;
  for (; r + 4 * kLanes <= rows; r += 4 * kLanes) expand_tile<4>(x, rank, weight + r, rows, out + r);
  for (; r + kLanes <= rows; r += kLanes) expand_tile<1>(x, rank, weight + r, rows, out + r);
  for (; r < rows; ++r) {
    float sum = 0.0f;
    for (int64_t k = 0; k < rank; ++k) sum = fused(x[k], weight[k * rows + r], sum);
    out[r] += sum;
  }
}

constexpr FloatKernels kFloatKernels = {attend, store_key_value, rms_norm, rotate, activate,
                                        add,    softcap,         dense,    widen,  expand,   Float16::float_to_half,
                                        kSplitKernels};

}  // namespace
}  // namespace bitdistill
