// The dense ternary form with AVX-512 VNNI and VBMI (see dense.h): bytes are decoded in registers by two lookups, inside the
// product. Sums and activations are those of avx512_vnni.cpp.
#include "kernels/dense.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

#include "kernels/x86_512.h"

namespace bitdistill {
namespace {

constexpr int kTokens = 10, kFewTokens = 4;

inline __m512i bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// ---- Decoding --------------------------------------------------------------------------------------------------------

struct Tables {
  __m512i first = load(kDenseCode.first), second = load(kDenseCode.second);
};

struct Digits {
  __m512i first, second;

  Digits(__m512i coded, const Tables& tables) {
    first = _mm512_permutexvar_epi8(coded, tables.first);
    // d2, d3 of `first`, e of the byte itself: right but where its high bits are 3.
    const __m512i common = _mm512_ternarylogic_epi32(bytes(0x0f), first, coded, 0xca);
    second = _mm512_mask_permutexvar_epi8(common, _mm512_cmpge_epu8_mask(coded, bytes(0xc0)), coded, tables.second);
  }
};

constexpr int kDigits = 5;
constexpr int kShift[kDigits] = {4, 6, 0, 2, 6};  // of digit k, in `first` (0, 1) or `second`

// Digit k where it stands, and moved to the low bits.
template <int K>
inline __m512i in_place(const Digits& d) {
  return _mm512_and_si512(K < 2 ? d.first : d.second, bytes(3 << kShift[K]));
}

template <int K>
inline __m512i code(const Digits& d) {
  return _mm512_and_si512(_mm512_srli_epi16(K < 2 ? d.first : d.second, kShift[K]), bytes(3));
}

template <int T>
constexpr int64_t kChunkValues = T * kChunkCols;

// Activations of step K of vector J (K = 4: step J of the fifth chunk), from those of the group.
template <int T, int J, int K>
constexpr int64_t kValues = K < 4 ? J * kChunkValues<T> + K * kStepCols : 4 * kChunkValues<T> + J * kStepCols;

// ---- Few tokens: as there, a sum for each place that a digit has, 4^k times what it should be -------------------------
// At most two of five digits share a place: 192 * 128 * (2^17 * 2 / 5) < 2^31.

template <int T>
using Sums = __m512i[T][4];

template <int T>
inline void add(Sums<T>& sums, int place, __m512i codes, const int8_t* x) {
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) sums[t][place] = _mm512_dpbusd_epi32(sums[t][place], codes, broadcast(x + t * kChunkCols));
}

template <int T, int J>
inline void add_vector(Sums<T>& sums, const uint8_t* group, const int8_t* x, const Tables& tables) {
  prefetch(group + J * kVectorBytes);
  const Digits digits(load(group + J * kVectorBytes), tables);
  add<T>(sums, kShift[0] / 2, in_place<0>(digits), x + kValues<T, J, 0>);
  add<T>(sums, kShift[1] / 2, in_place<1>(digits), x + kValues<T, J, 1>);
  add<T>(sums, kShift[2] / 2, in_place<2>(digits), x + kValues<T, J, 2>);
  add<T>(sums, kShift[3] / 2, in_place<3>(digits), x + kValues<T, J, 3>);
  add<T>(sums, kShift[4] / 2, in_place<4>(digits), x + kValues<T, J, 4>);
}

template <int T>
void multiply_few(const Tile& tile, int panel) {
  constexpr int kSets = T <= 2 ? 2 : 1;
  const Tables tables;
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  Sums<T> sums[kSets];
#pragma GCC unroll 2
  for (auto& set : sums) {
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) set[t][0] = set[t][1] = set[t][2] = set[t][3] = _mm512_setzero_si512();
  }
  int64_t chunks = tile.chunks;
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    add_vector<T, 0>(sums[0], w, x, tables);
    add_vector<T, 1>(sums[kSets - 1], w, x, tables);
    add_vector<T, 2>(sums[0], w, x, tables);
    add_vector<T, 3>(sums[kSets - 1], w, x, tables);
    w += kDenseVectors * kVectorBytes;
    x += kDenseChunks * kChunkValues<T>;
  }
  for (; chunks > 0; --chunks) {
    const __m512i v = load(w);
#pragma GCC unroll 4
    for (int step = 0; step < kChunkSteps; ++step) {
      add<T>(sums[0], step, _mm512_and_si512(v, bytes(3 << (2 * step))), x + step * kStepCols);
    }
    w += kVectorBytes;
    x += kChunkValues<T>;
  }
  const Floats scale = load_scales(tile, panel, 0);
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    __m512i total[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) total[i] = kSets == 2 ? _mm512_add_epi32(sums[0][t][i], sums[kSets - 1][t][i]) : sums[0][t][i];
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(total[0], _mm512_srai_epi32(total[1], 2)),
                                         _mm512_add_epi32(_mm512_srai_epi32(total[2], 4), _mm512_srai_epi32(total[3], 6)));
    const __m512i all = _mm512_add_epi32(sum, _mm512_set1_epi32(start_sum(tile, t, 0)));
    Floats y = {};
    finish_group(tile, panel, t, 0, load_vector<Ints>(&all), scale, &y);
    finish_output(tile, panel, t, y);
  }
}

// ---- Many tokens: one or two panels ----------------------------------------------------------------------------------

template <int P, int T>
using Tokens = __m512i[P][T];

template <int P, int T>
inline void add_step(Tokens<P, T>& sums, __m512i first, __m512i last, const int8_t* x) {
  const __m512i codes[2] = {first, last};
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const __m512i values = broadcast(x + t * kChunkCols);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) sums[p][t] = _mm512_dpbusd_epi32(sums[p][t], codes[p], values);
  }
}

template <int P, int T>
void multiply_many(const Tile& tile, int panel) {
  const Tables tables;
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int64_t last = (P - 1) * tile.panel_bytes;
  const int8_t* x = tile.x;
  Tokens<P, T> sums;
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    const __m512i start = _mm512_set1_epi32(start_sum(tile, t, 0));
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) sums[p][t] = start;
  }
  int64_t chunks = tile.chunks;
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    const int8_t* fifth = x + kDenseVectors * kChunkValues<T>;
    for (int j = 0; j < kDenseVectors; ++j) {
      const Digits a(load(w), tables), b(load(w + last), tables);
      add_step<P, T>(sums, code<0>(a), code<0>(b), x);
      add_step<P, T>(sums, code<1>(a), code<1>(b), x + kStepCols);
      add_step<P, T>(sums, code<2>(a), code<2>(b), x + 2 * kStepCols);
      add_step<P, T>(sums, code<3>(a), code<3>(b), x + 3 * kStepCols);
      add_step<P, T>(sums, code<4>(a), code<4>(b), fifth + j * kStepCols);
      w += kVectorBytes;
      x += kChunkValues<T>;
    }
    x += kChunkValues<T>;
  }
  for (; chunks > 0; --chunks) {
    const TernaryCodes a(w), b(w + last);
#pragma GCC unroll 4
    for (int step = 0; step < kChunkSteps; ++step) add_step<P, T>(sums, a.get(step), b.get(step), x + step * kStepCols);
    w += kVectorBytes;
    x += kChunkValues<T>;
  }
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p) {
    const Floats scale = load_scales(tile, panel + p, 0);
    for (int t = 0; t < T; ++t) {
      Floats y = {};
      finish_group(tile, panel + p, t, 0, load_vector<Ints>(&sums[p][t]), scale, &y);
      finish_output(tile, panel + p, t, y);
    }
  }
}

using PanelFunction = void (*)(const Tile&, int);

constexpr PanelFunction kFew[kFewTokens] = {multiply_few<1>, multiply_few<2>, multiply_few<3>, multiply_few<4>};

template <int P>
constexpr PanelFunction kMany[kTokens - kFewTokens] = {multiply_many<P, 5>, multiply_many<P, 6>, multiply_many<P, 7>,
                                                       multiply_many<P, 8>, multiply_many<P, 9>, multiply_many<P, 10>};

void multiply(const Tile& tile) {
  if (tile.tokens <= kFewTokens) {
    for (int p = 0; p < tile.panels; ++p) kFew[tile.tokens - 1](tile, p);
    return;
  }
  const int t = tile.tokens - kFewTokens - 1;
  int p = 0;
  for (; p + 2 <= tile.panels; p += 2) kMany<2>[t](tile, p);
  if (p < tile.panels) kMany<1>[t](tile, p);
}

// ---- To two bits -----------------------------------------------------------------------------------------------------

void widen(const uint8_t* panel, int64_t chunks, uint8_t* wide) {
  const Tables tables;
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    __m512i fifth = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < kDenseVectors; ++j) {
      const Digits digits(load(panel + j * kVectorBytes), tables);
      // d0, d1 stand in the high half of a byte and belong in the low one; d2, d3 the other way round.
      const __m512i low = _mm512_srli_epi16(digits.first, 4), high = _mm512_slli_epi16(digits.second, 4);
      _mm512_storeu_si512(wide + j * kVectorBytes, _mm512_ternarylogic_epi32(bytes(0x0f), low, high, 0xca));
      const __m512i e = _mm512_srli_epi16(digits.second, static_cast<unsigned>(kShift[4] - 2 * j));
      fifth = _mm512_or_si512(fifth, _mm512_and_si512(e, bytes(3 << (2 * j))));
    }
    _mm512_storeu_si512(wide + kDenseVectors * kVectorBytes, fifth);
    panel += kDenseVectors * kVectorBytes;
    wide += kDenseChunks * kVectorBytes;
  }
  memcpy(wide, panel, static_cast<size_t>(chunks * kVectorBytes));
}

constexpr DenseKernels kAvx512Vbmi = {multiply, widen};

}  // namespace

}  // namespace bitdistill

BITDISTILL_GIVES(avx512vbmi_dense_kernels, &kAvx512Vbmi)

#else

BITDISTILL_GIVES(avx512vbmi_dense_kernels, nullptr)

#endif
