// NEON with the matrix extension: smmla multiplies 2 tokens x 8 columns by 8 columns x 2 rows and adds into 2 x 2 int32 sums,
// twice the products of an sdot. A panel has 4 columns of a row together, so two steps are zipped, once for all tokens of a
// block. 8 tokens x 8 rows at once: 16 registers of sums. Fewer tokens than fill such a tile are left to sdot.
#include "kernels/kernels.h"

#if defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_MATMUL_INT8)

#include "kernels/neon_panels.h"
#include "kernels/strips.h"

namespace bitdistill {
namespace {

constexpr int kPairCols = 8;
constexpr int kHalfRows = kPanelRows / 2;
constexpr int kRowPairs = kHalfRows / 2;
constexpr int kFewestTokens = 5;

// Sums of P pairs of tokens and half a panel over the chunks of a span. Codes are [chunk][2][row pair][2][8], activations
// [chunk][2][token][8].
template <int P, int kTokens>
__attribute__((noinline)) void multiply_half(const int8_t* x, const uint8_t* codes, int64_t chunks, int32_t* sums, bool first) {
  int32x4_t acc[P][kRowPairs];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < kRowPairs; ++r) acc[p][r] = vdupq_n_s32(0);
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
#pragma GCC unroll 2
    for (int i = 0; i < kChunkCols / kPairCols; ++i) {
      int8x16_t tokens[P], rows[kRowPairs];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) tokens[p] = vld1q_s8(x + (i * kTokens + 2 * p) * kPairCols);
#pragma GCC unroll 4
      for (int r = 0; r < kRowPairs; ++r) {
        rows[r] = vreinterpretq_s8_u8(vld1q_u8(codes + (i * kRowPairs + r) * 2 * kPairCols));
      }
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        if (i > 0) tokens[p] = after(acc[p], tokens[p]);
#pragma GCC unroll 4
        for (int r = 0; r < kRowPairs; ++r) acc[p][r] = vmmlaq_s32(acc[p][r], tokens[p], rows[r]);
      }
    }
    codes += kCodeBytes / 2;
    x += kTokens * kChunkCols;
  }
  // From [token][row] of a pair each to 4 rows of a token.
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int r = 0; r < kRowPairs; r += 2) {
      const int64x2_t low = vreinterpretq_s64_s32(acc[p][r]), high = vreinterpretq_s64_s32(acc[p][r + 1]);
      int32x4_t even = vreinterpretq_s32_s64(vzip1q_s64(low, high)), odd = vreinterpretq_s32_s64(vzip2q_s64(low, high));
      int32_t* const at = sums + 2 * p * kPanelRows + 2 * r;
      if (!first) {
        even = vaddq_s32(even, vld1q_s32(at));
        odd = vaddq_s32(odd, vld1q_s32(at + kPanelRows));
      }
      vst1q_s32(at, even);
      vst1q_s32(at + kPanelRows, odd);
    }
  }
}

struct I8mm {
  static constexpr int kTokens = 8;
  static constexpr int kStrips = 1;
  static constexpr int kPanels = 1;
  static constexpr int kBlock = 64;
  static constexpr int kCols = kPairCols;

  static int64_t columns_at(int64_t chunk) { return chunk * kChunkCols * kTokens; }

  // [half][chunk][2][row pair][2][8]
  template <class Codes>
  __attribute__((noinline)) static void decode(const uint8_t* w, int64_t chunks, uint8_t* out) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk, w += Codes::kChunkBytes, out += kCodeBytes / 2) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        uint8x16_t v[Codes::kLoads];
        load_codes<Codes>(w, i, v);
        int8x16_t codes[kChunkSteps];
        Codes::get(v, codes);
        uint8_t* const half = out + i / 2 * (kSpanBytes / 2) + i % 2 * 32;
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
          const int32x4x2_t steps = {{vreinterpretq_s32_s8(codes[2 * k]), vreinterpretq_s32_s8(codes[2 * k + 1])}};
          vst2q_s32(reinterpret_cast<int32_t*>(half + k * 64), steps);  // stores zipped: the steps of a row together
        }
      }
    }
  }

  template <int P>
  static void multiply_pairs(const int8_t* x, const uint8_t* codes, int64_t chunks, int32_t* sums, bool first) {
    multiply_half<P, kTokens>(x, codes, chunks, sums, first);
    multiply_half<P, kTokens>(x, codes + kSpanBytes / 2, chunks, sums + kHalfRows, first);
  }

  static void multiply(const int8_t* x, int64_t, int tokens, const uint8_t* codes, int, int64_t chunks, int32_t* sums,
                       bool first) {
    switch ((tokens + 1) / 2) {
      case 1: return multiply_pairs<1>(x, codes, chunks, sums, first);
      case 2: return multiply_pairs<2>(x, codes, chunks, sums, first);
      case 3: return multiply_pairs<3>(x, codes, chunks, sums, first);
      default: return multiply_pairs<4>(x, codes, chunks, sums, first);
    }
  }
};

void multiply(const Tile& tile) {
  switch (tile.format) {
    case BD_TERNARY: return multiply_strips<I8mm, TernaryCodes>(tile);
    case BD_INT8: return multiply_strips<I8mm, Int8Codes>(tile);
    case BD_INT4: return multiply_strips<I8mm, Int4Codes>(tile);
    case BD_TERNARY_DENSE: return;  // (never: it is widened)
  }
}

double multiply_add_loop(int64_t iterations) {
  add_again(iterations, [](int32x4_t a, int8x16_t codes, int8x16_t x) { return vmmlaq_s32(a, codes, x); });
  return static_cast<double>(iterations) * 16 * 32;
}

constexpr Kernels kI8mm = {"i8mm",         I8mm::kBlock,       0,
                           quantize_token, multiply,           multiply_add_loop,
                           read_loop,      neon_float_kernels, {I8mm::kTokens, kPairCols, 1},
                           kFewestTokens,  neon_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(i8mm_kernels, &kI8mm)

#else

BITDISTILL_GIVES(i8mm_kernels, nullptr)

#endif
