// NEON with the dot-product extension: sdot multiplies 16 signed bytes and adds fours into int32. Its by-element form
// takes 4 activations from a register that holds 16, so one load serves four steps. A panel is four vectors of 4 rows.
#include "kernels/kernels.h"

#if defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)

#include "kernels/neon_panels.h"

namespace bitdistill {
namespace {

constexpr int kTokens = 4;

// ---- One panel times T tokens ----------------------------------------------------------------------------------------

template <int step, int T>
inline void multiply_step(int8x16_t codes, const int8x16_t (&x)[T], int32x4_t (&acc)[T]) {
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) acc[t] = vdotq_laneq_s32(acc[t], codes, x[t], step);
}

template <class Codes, int T>
void multiply_panel(const Tile& tile, int panel, const uint8_t* w) {
  Floats total[T] = {};
  const int8_t* activations = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    int32x4_t acc[kVectors][T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const int32x4_t start = vdupq_n_s32(start_sum(tile, t, g));
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[i][t] = start;
    }
    const uint8_t* const end = w + chunks_of_group(tile, g) * Codes::kChunkBytes;
    for (; w != end; w += Codes::kChunkBytes) {
      int8x16_t x[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) x[t] = vld1q_s8(activations + t * kChunkCols);
      prefetch(w);
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        uint8x16_t v[Codes::kLoads];
        load_codes<Codes>(w, i, v);
        // One vector after the other: 16 sums, 4 tokens, 4 codes and a mask fit into the 32 registers.
        if (i > 0) v[0] = after(acc[i - 1], v[0]);
        int8x16_t codes[kChunkSteps];
        Codes::get(v, codes);
        multiply_step<0, T>(codes[0], x, acc[i]);
        multiply_step<1, T>(codes[1], x, acc[i]);
        multiply_step<2, T>(codes[2], x, acc[i]);
        multiply_step<3, T>(codes[3], x, acc[i]);
      }
      activations += T * kChunkCols;
    }
    const Floats scale = load_scales(tile, panel, g);
    for (int t = 0; t < T; ++t) {
      int32_t sums[kPanelRows];
      for (int i = 0; i < kVectors; ++i) vst1q_s32(sums + 4 * i, acc[i][t]);
      finish_group(tile, panel, t, g, load_vector<Ints>(sums), scale, &total[t]);
    }
  }
  for (int t = 0; t < T; ++t) finish_output(tile, panel, t, total[t]);
}

using PanelFunction = void (*)(const Tile&, int, const uint8_t*);

template <class Codes>
constexpr PanelFunction kMultiply[kTokens] = {multiply_panel<Codes, 1>, multiply_panel<Codes, 2>, multiply_panel<Codes, 3>,
                                              multiply_panel<Codes, 4>};

void multiply(const Tile& tile) {
  const int t = tile.tokens - 1;
  const PanelFunction function = tile.format == BD_INT8   ? kMultiply<Int8Codes>[t]
                                 : tile.format == BD_INT4 ? kMultiply<Int4Codes>[t]
                                                          : kMultiply<TernaryCodes>[t];
  for (int p = 0; p < tile.panels; ++p) function(tile, p, tile.weights + p * tile.panel_bytes);
}

// ---- Limits ----------------------------------------------------------------------------------------------------------

double multiply_add_loop(int64_t iterations) {
  add_again(iterations, [](int32x4_t a, int8x16_t codes, int8x16_t x) { return vdotq_laneq_s32(a, codes, x, 0); });
  return static_cast<double>(iterations) * 16 * 16;
}

constexpr Kernels kNeon = {"neon", kTokens, 0, quantize_token, multiply, multiply_add_loop, read_loop, neon_float_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(neon_kernels, &kNeon)

#else

BITDISTILL_GIVES(neon_kernels, nullptr)

#endif
