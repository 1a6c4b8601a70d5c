// The dense ternary form with AVX-512 VNNI and VBMI (see dense.h): bytes are decoded in registers by two lookups, inside the
// product. Sums and activations are those of avx512_vnni.cpp.
#include "kernels/dense.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

#include "kernels/x86_512.h"

namespace bitdistill {
namespace {

inline __m512i bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// ---- Decoding --------------------------------------------------------------------------------------------------------

struct Tables {
  __m512i first = load(kDenseCode.first), second = load(kDenseCode.second);
};

struct Digits {
  __m512i first, second;

  // `many`: products are the limit. Comparisons into a mask register compete with them for ports, so it takes none; that is one more
  // instruction.
  Digits(__m512i coded, const Tables& tables, bool many) {
    first = _mm512_permutexvar_epi8(coded, tables.first);
    // d2, d3 of `first`, e of the byte itself: right but where its high bits are 3.
    const __m512i common = _mm512_ternarylogic_epi32(bytes(0x0f), first, coded, 0xca);
    if (many) {
      // A shuffle within lanes gives zero where the highest bit of an index is set: here where both are.
      const __m512i right = _mm512_shuffle_epi8(bytes(-1), _mm512_and_si512(coded, _mm512_add_epi8(coded, coded)));
      second = _mm512_ternarylogic_epi32(right, common, _mm512_permutexvar_epi8(coded, tables.second), 0xca);
    } else {
      second = _mm512_mask_permutexvar_epi8(common, _mm512_cmpge_epu8_mask(coded, bytes(0xc0)), coded, tables.second);
    }
  }
};

constexpr int kDigits = 5;
constexpr int kShift[kDigits] = {4, 6, 0, 2, 6};  // of digit k, in `first` (0, 1) or `second`

// Digit k, moved to the low bits.
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
// At most two of five digits share a place: 192 * 128 * (2^17 * 2 / 5) < 2^31. With two sums a token there are two places:
// what stands in the upper half of a byte is brought down to the lower one.

// Adds the products of digit K of a vector to the sums of all tokens.
template <int K, int T, int N>
inline void add_digit(__m512i (&sums)[T][N], const Digits& digits, const int8_t* x) {
  constexpr int kPlace = kShift[K] / 2 % N;
  const __m512i codes = _mm512_and_si512(K < 2 ? digits.first : digits.second, bytes(3 << (2 * kPlace)));
#pragma GCC unroll 9
  for (int t = 0; t < T; ++t) sums[t][kPlace] = add(sums[t][kPlace], codes, broadcast(x + t * kChunkCols));
}

template <int J, int T, int N>
inline void add_vector(__m512i (&sums)[T][N], const uint8_t* group, const int8_t* x, const Tables& tables) {
  prefetch(group + J * kVectorBytes);
  Digits digits(load(group + J * kVectorBytes), tables, T > 2);
  if (N == 2) digits.first = _mm512_srli_epi16(digits.first, 4);
  add_digit<0>(sums, digits, x + kValues<T, J, 0>);
  add_digit<1>(sums, digits, x + kValues<T, J, 1>);
  add_digit<2>(sums, digits, x + kValues<T, J, 2>);
  add_digit<3>(sums, digits, x + kValues<T, J, 3>);
  if (N == 2) digits.second = _mm512_srli_epi16(digits.second, 4);
  add_digit<4>(sums, digits, x + kValues<T, J, 4>);
}

template <int T>
void multiply_few(const Tile& tile, int panel) {
  constexpr int kSets = T <= 2 ? 2 : 1, kSums = sums_of(T);
  const Tables tables;
  const uint8_t* w = tile.weights + panel * tile.panel_bytes;
  const int8_t* x = tile.x;
  __m512i sums[kSets][T][kSums];
#pragma GCC unroll 2
  for (auto& set : sums) {
#pragma GCC unroll 9
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int i = 0; i < kSums; ++i) set[t][i] = _mm512_setzero_si512();
    }
  }
  int64_t chunks = tile.chunks;
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    add_vector<0>(sums[0], w, x, tables);
    add_vector<1>(sums[kSets - 1], w, x, tables);
    add_vector<2>(sums[0], w, x, tables);
    add_vector<3>(sums[kSets - 1], w, x, tables);
    w += kDenseVectors * kVectorBytes;
    x += kDenseChunks * kChunkValues<T>;
  }
  for (; chunks > 0; --chunks) {
    add_ternary_chunk(w, x, sums[0]);  // of two bits a weight
    w += kVectorBytes;
    x += kChunkValues<T>;
  }
  const Floats scale = load_scales(tile, panel, 0);
#pragma GCC unroll 9
  for (int t = 0; t < T; ++t) {
    __m512i all = _mm512_set1_epi32(start_sum(tile, t, 0));
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) {
      const __m512i sum = kSets == 2 ? _mm512_add_epi32(sums[0][t][i], sums[kSets - 1][t][i]) : sums[0][t][i];
      all = _mm512_add_epi32(all, _mm512_srai_epi32(sum, static_cast<unsigned>(2 * i)));
    }
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
    for (int p = 0; p < P; ++p) sums[p][t] = add(sums[p][t], codes[p], values);
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
      const Digits a(load(w), tables, true), b(load(w + last), tables, true);
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
  finish_only_group(tile, panel, sums);
}

using PanelFunction = void (*)(const Tile&, int);

constexpr PanelFunction kFew[kFewTokens] = {multiply_few<1>, multiply_few<2>, multiply_few<3>, multiply_few<4>, multiply_few<5>,
                                            multiply_few<6>, multiply_few<7>, multiply_few<8>, multiply_few<9>};

void multiply(const Tile& tile) {
  if (tile.tokens <= kFewTokens) {
    for (int p = 0; p < tile.panels; ++p) kFew[tile.tokens - 1](tile, p);
    return;
  }
  int p = 0;
  for (; p + 2 <= tile.panels; p += 2) multiply_many<2, kTokens>(tile, p);
  if (p < tile.panels) multiply_many<1, kTokens>(tile, p);
}

// ---- To two bits -----------------------------------------------------------------------------------------------------

void widen(const uint8_t* panel, int64_t chunks, uint8_t* wide) {
  const Tables tables;
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    __m512i fifth = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int j = 0; j < kDenseVectors; ++j) {
      const Digits digits(load(panel + j * kVectorBytes), tables, false);
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
