// NEON with the dot-product extension: sdot multiplies 16 signed bytes and adds fours into int32. Its by-element form
// takes 4 activations from a register that holds 16, so one load serves four steps. A panel is four vectors of 4 rows.
#include "kernels/kernels.h"

#if defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>

#include "kernels/portable.h"

namespace bitdistill {
namespace {

constexpr int kTokens = 4;
constexpr int kVectors = 4;

// ---- Decoding: get(step, i) is vector i of a step of a chunk ----------------------------------------------------------

struct Int8Codes {
  static constexpr int64_t kChunkBytes = 4 * kVectorBytes;
  const uint8_t* w;
  explicit Int8Codes(const uint8_t* chunk) : w(chunk) {}
  int8x16_t get(int step, int i) const { return vreinterpretq_s8_u8(vld1q_u8(w + step * kVectorBytes + i * 16)); }
};

struct TernaryCodes {
  static constexpr int64_t kChunkBytes = kVectorBytes;
  const uint8_t* w;
  explicit TernaryCodes(const uint8_t* chunk) : w(chunk) { __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(chunk) + 1024)); }
  int8x16_t get(int step, int i) const {
    const uint8x16_t v = vshlq_u8(vld1q_u8(w + i * 16), vdupq_n_s8(static_cast<int8_t>(-2 * step)));
    return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(3)));
  }
};

struct Int4Codes {
  static constexpr int64_t kChunkBytes = 2 * kVectorBytes;
  const uint8_t* w;
  explicit Int4Codes(const uint8_t* chunk) : w(chunk) { __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(chunk) + 1024)); }
  int8x16_t get(int step, int i) const {
    const uint8x16_t v = vld1q_u8(w + step / 2 * kVectorBytes + i * 16);
    return vreinterpretq_s8_u8(step % 2 == 0 ? vandq_u8(v, vdupq_n_u8(15)) : vshrq_n_u8(v, 4));
  }
};

// ---- One panel times T tokens ----------------------------------------------------------------------------------------

template <class Codes, int step, int T>
inline void multiply_step(const Codes& source, const int8x16_t (&x)[T], int32x4_t (&acc)[T][kVectors]) {
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; ++i) {
    const int8x16_t codes = source.get(step, i);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[t][i] = vdotq_laneq_s32(acc[t][i], codes, x[t], step);
  }
}

template <class Codes, int T>
void multiply_panel(const Tile& tile, int panel, const uint8_t* w) {
  Floats total[T] = {};
  const int8_t* activations = tile.x;
  for (int64_t g = 0; g < tile.groups; ++g) {
    int32x4_t acc[T][kVectors];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const int32x4_t start = vdupq_n_s32(start_sum(tile, t, g));
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[t][i] = start;
    }
    const int64_t chunks = chunks_of_group(tile, g);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      int8x16_t x[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) x[t] = vld1q_s8(activations + t * kChunkCols);
      const Codes source(w);
      multiply_step<Codes, 0, T>(source, x, acc);
      multiply_step<Codes, 1, T>(source, x, acc);
      multiply_step<Codes, 2, T>(source, x, acc);
      multiply_step<Codes, 3, T>(source, x, acc);
      w += Codes::kChunkBytes;
      activations += T * kChunkCols;
    }
    const Floats scale = load_scales(tile, panel, g);
    for (int t = 0; t < T; ++t) {
      int32_t sums[kPanelRows];
      for (int i = 0; i < kVectors; ++i) vst1q_s32(sums + 4 * i, acc[t][i]);
      finish_group(tile, panel, t, g, load_vector<Ints>(sums), scale, &total[t]);
    }
  }
  for (int t = 0; t < T; ++t) finish_output(tile, panel, t, total[t]);
}

using PanelFunction = void (*)(const Tile&, int, const uint8_t*);

template <class Codes>
constexpr PanelFunction kMultiply[kTokens] = {multiply_panel<Codes, 1>, multiply_panel<Codes, 2>,
                                              multiply_panel<Codes, 3>, multiply_panel<Codes, 4>};

void multiply(const Tile& tile) {
  const int t = tile.tokens - 1;
  const PanelFunction function = tile.format == BD_INT8   ? kMultiply<Int8Codes>[t]
                                 : tile.format == BD_INT4 ? kMultiply<Int4Codes>[t]
                                                          : kMultiply<TernaryCodes>[t];
  for (int p = 0; p < tile.panels; ++p) function(tile, p, tile.weights + p * tile.panel_bytes);
}

// ---- Limits ----------------------------------------------------------------------------------------------------------

double multiply_add_loop(int64_t iterations) {
  int32x4_t acc[16];
  for (int32x4_t& a : acc) a = vdupq_n_s32(0);
  int8x16_t codes = vdupq_n_s8(2), x = vdupq_n_s8(3);
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile("" : "+w"(codes), "+w"(x));
#pragma GCC unroll 16
    for (int32x4_t& a : acc) a = vdotq_laneq_s32(a, codes, x, 0);
  }
  for (int32x4_t& a : acc) asm volatile("" : : "w"(a));
  return static_cast<double>(iterations) * 16 * 16;
}

uint64_t read_loop(const uint8_t* data, int64_t bytes) {
  uint64x2_t acc[4] = {vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0)};
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    for (int j = 0; j < 4; ++j) acc[j] = vaddq_u64(acc[j], vreinterpretq_u64_u8(vld1q_u8(data + i + 16 * j)));
  }
  return vaddvq_u64(vaddq_u64(vaddq_u64(acc[0], acc[1]), vaddq_u64(acc[2], acc[3])));
}

constexpr Kernels kNeon = {"neon", kTokens, 0, quantize_token, multiply, multiply_add_loop, read_loop, neon_float_kernels};

}  // namespace

const Kernels* neon_kernels() { return &kNeon; }

}  // namespace bitdistill

#else

namespace bitdistill {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace bitdistill

#endif
