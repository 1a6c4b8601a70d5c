// AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned codes by 64 signed activations and adds into 16 int32 sums, one a
// row. It does not saturate, so the sums are exact: codes are at most 255 (int8 + 128), and the true sum of codes times
// activations may wrap around 2^32, which taking off zero_point * sum(x_q) undoes.
#include "kernels/kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include "kernels/x86_512.h"

namespace bitdistill {
namespace {

// ---- Many tokens: one or two panels times T tokens -------------------------------------------------------------------

// Sums of one group; `w` and `x` move on to the next.
template <class Codes, int P, int T>
inline void sum_group(const Tile& tile, int64_t group, const uint8_t*& w, const int8_t*& x, __m512i (&acc)[P][T]) {
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const __m512i start = _mm512_set1_epi32(start_sum(tile, t, group));
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) acc[p][t] = start;
  }
  const int64_t chunks = chunks_of_group(tile, group);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Codes first(w), last(w + (P - 1) * tile.panel_bytes);
#pragma GCC unroll 4
    for (int step = 0; step < kChunkSteps; ++step) {
      const __m512i codes[2] = {first.get(step), last.get(step)};
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const __m512i values = broadcast(x + t * kChunkCols + step * kStepCols);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) acc[p][t] = add(acc[p][t], codes[p], values);
      }
    }
    w += Codes::kChunkBytes;
    x += T * kChunkCols;
  }
}

template <class Codes, int P, int T>
__attribute__((noinline)) void multiply_many(const Tile& tile, int panel) {
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  __m512i acc[P][T];
  sum_group<Codes>(tile, 0, w, x, acc);
  finish_only_group(tile, panel, acc);
}

template <class Codes, int P, int T>
__attribute__((noinline)) void multiply_many_groups(const Tile& tile, int panel) {
  Floats total[P][T] = {};
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    __m512i acc[P][T];
    sum_group<Codes>(tile, g, w, x, acc);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const Floats scale = load_scales(tile, panel + p, g);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) finish_group(tile, panel + p, t, g, as_ints(acc[p][t]), scale, &total[p][t]);
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int t = 0; t < T; ++t) finish_output(tile, panel + p, t, total[p][t]);
  }
}

// ---- Few tokens: one panel at a time, from memory as fast as that gives it -------------------------------------------

template <class Codes>
struct FewTokens {
  template <int T, int N>
  static inline void chunk(const uint8_t* w, const int8_t* x, int64_t groups, __m512i (&acc)[T][N]) {
    prefetch_chunk<Codes::kChunkBytes>(w, groups);
    const Codes source(w);
#pragma GCC unroll 4
    for (int step = 0; step < kChunkSteps; ++step) {
      const __m512i codes = source.get(step);
#pragma GCC unroll 9
      for (int t = 0; t < T; ++t) {
        __m512i& sum = acc[t][step % N];
        sum = add(sum, codes, broadcast(x + t * kChunkCols + step * kStepCols));
      }
    }
  }
  static inline __m512i sum(const __m512i (&acc)[4]) {
    return _mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]), _mm512_add_epi32(acc[2], acc[3]));
  }
  static inline __m512i sum(const __m512i (&acc)[2]) { return _mm512_add_epi32(acc[0], acc[1]); }
};

template <>
struct FewTokens<TernaryCodes> {
  template <int T, int N>
  static inline void chunk(const uint8_t* w, const int8_t* x, int64_t, __m512i (&acc)[T][N]) {
    add_ternary_chunk(w, x, acc);
  }
  static inline __m512i sum(const __m512i (&acc)[4]) {
    return _mm512_add_epi32(_mm512_add_epi32(acc[0], _mm512_srai_epi32(acc[1], 2)),
                            _mm512_add_epi32(_mm512_srai_epi32(acc[2], 4), _mm512_srai_epi32(acc[3], 6)));
  }
  static inline __m512i sum(const __m512i (&acc)[2]) { return _mm512_add_epi32(acc[0], _mm512_srai_epi32(acc[1], 2)); }
};

template <class Codes, int T>
void multiply_few(const Tile& tile, int panel) {
  Floats total[T] = {};
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    // Two sets of sums for one or two tokens: an addition takes longer than the chunk it has to itself.
    constexpr int kSets = T <= 2 ? 2 : 1, kSums = sums_of(T);
    __m512i acc[kSets][T][kSums];
#pragma GCC unroll 2
    for (auto& set : acc) {
#pragma GCC unroll 9
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
        for (int i = 0; i < kSums; ++i) set[t][i] = _mm512_setzero_si512();
      }
    }
    int64_t chunks = chunks_of_group(tile, g);
    for (; chunks >= kSets; chunks -= kSets) {
#pragma GCC unroll 2
      for (auto& set : acc) {
        FewTokens<Codes>::chunk(w, x, tile.groups, set);
        w += Codes::kChunkBytes;
        x += T * kChunkCols;
      }
    }
    if (kSets == 2 && chunks == 1) {
      FewTokens<Codes>::chunk(w, x, tile.groups, acc[0]);
      w += Codes::kChunkBytes;
      x += T * kChunkCols;
    }
    if (kSets == 2) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
        for (int i = 0; i < kSums; ++i) acc[0][t][i] = _mm512_add_epi32(acc[0][t][i], acc[kSets - 1][t][i]);
      }
    }
    const Floats scale = load_scales(tile, panel, g);
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t) {
      const __m512i sum = _mm512_add_epi32(FewTokens<Codes>::sum(acc[0][t]), _mm512_set1_epi32(start_sum(tile, t, g)));
      finish_group(tile, panel, t, g, as_ints(sum), scale, &total[t]);
    }
  }
  for (int t = 0; t < T; ++t) finish_output(tile, panel, t, total[t]);
}

using PanelFunction = void (*)(const Tile&, int);

template <class C>
constexpr PanelFunction kFew[kFewTokens] = {multiply_few<C, 1>, multiply_few<C, 2>, multiply_few<C, 3>,
                                            multiply_few<C, 4>, multiply_few<C, 5>, multiply_few<C, 6>,
                                            multiply_few<C, 7>, multiply_few<C, 8>, multiply_few<C, 9>};

template <class C>
void multiply_format(const Tile& tile) {
  if (tile.tokens <= kFewTokens) {
    for (int p = 0; p < tile.panels; ++p) kFew<C>[tile.tokens - 1](tile, p);
    return;
  }
  const bool one = tile.groups == 1;
  const PanelFunction pair = one ? multiply_many<C, 2, kTokens> : multiply_many_groups<C, 2, kTokens>;
  const PanelFunction last = one ? multiply_many<C, 1, kTokens> : multiply_many_groups<C, 1, kTokens>;
  int p = 0;
  for (; p + 2 <= tile.panels; p += 2) pair(tile, p);
  if (p < tile.panels) last(tile, p);
}

void multiply(const Tile& tile) {
  switch (tile.format) {
    case BD_TERNARY: return multiply_format<TernaryCodes>(tile);
    case BD_INT8: return multiply_format<Int8Codes>(tile);
    case BD_INT4: return multiply_format<Int4Codes>(tile);
    case BD_TERNARY_DENSE: return;  // (never: dense_kernels)
  }
}

// ---- Limits ----------------------------------------------------------------------------------------------------------

double multiply_add_loop(int64_t iterations) {
  __m512i acc[20];
  for (__m512i& a : acc) a = _mm512_setzero_si512();
  __m512i codes = _mm512_set1_epi8(2), values = _mm512_set1_epi8(3);
  for (int64_t i = 0; i < iterations; ++i) {
    asm volatile("" : "+" BITDISTILL_REGISTER(codes), "+" BITDISTILL_REGISTER(values));
#pragma GCC unroll 20
    for (int j = 0; j < 20; ++j) acc[j] = add(acc[j], codes, values);
  }
  for (__m512i& a : acc) asm volatile("" : : BITDISTILL_REGISTER(a));
  return static_cast<double>(iterations) * 20 * 64;
}

constexpr Kernels kAvx512Vnni = {"avx512vnni", kTokens,           128,       quantize_token,
                                 multiply,     multiply_add_loop, read_loop, avx512_float_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(avx512vnni_kernels, &kAvx512Vnni)

#else

BITDISTILL_GIVES(avx512vnni_kernels, nullptr)

#endif
