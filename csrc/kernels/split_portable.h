// SplitKernels, written once on 16-lane vectors and included by float_portable.h.
#pragma once

#include "kernels/portable.h"
#include "kernels/split_kernels.h"

namespace bitdistill {
namespace {

// One register each.
#if defined(__AVX512BW__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif
typedef uint8_t Bytes __attribute__((vector_size(kRegister)));
typedef uint16_t Pairs __attribute__((vector_size(kRegister)));  // of bytes
typedef uint8_t Steps __attribute__((vector_size(kPanelRows)));

inline Ints steps_of(const uint8_t* steps) { return __builtin_convertvector(load_vector<Steps>(steps), Ints); }

// Wraps where int32 would be undefined, for damaged tables.
void add_high(const SplitSums& task) {
  for (int64_t p = 0; p < task.panels; ++p) {
    const Ints steps = steps_of(task.steps + p * kPanelRows);
    const Bits high = load_vector<Bits>(task.high + p * kPanelRows) * load_vector<Bits>(&steps);
    store_vector(task.sums + p * kPanelRows, load_vector<Bits>(task.sums + p * kPanelRows) + high);
  }
}

inline Floats magnitude(const Floats& v) {
  const Bits bits = load_vector<Bits>(&v) & 0x7fffffffu;
  return load_vector<Floats>(&bits);
}

// The bound's own roundings are at most 5 * 2^-24 of the magnitudes that are added; 2^-20 of them is put on top. A larger
// sum never gives a smaller output, because every rounding keeps the order: hence what is done to sums in `finish` is done to the
// bound.
int64_t bound(const SplitSums& task, float* out) {
  Floats best = Floats{} - __builtin_inff();
  Ints best_panel = {};
  for (int64_t p = 0; p < task.panels; ++p) {
    const int64_t at = p * kPanelRows;
    const Floats steps = __builtin_convertvector(steps_of(task.steps + at), Floats);
    const Floats scale = load_vector<Floats>(task.scales + at);
    const Floats sum = __builtin_convertvector(load_vector<Ints>(task.sums + at), Floats);
    const Floats middle = (steps - 1.0f) * (0.5f * task.sum);
    const Floats radius = load_vector<Floats>(task.norms + at) * task.norm;
    const Floats likely = sum + middle;
    const Floats most = likely + radius + (magnitude(sum) + magnitude(middle) + radius) * 0x1p-20f;
    store_vector(out + at, most * scale * task.act_scale);
    const Floats output = likely * scale;
    const Ints better = output > best;
    best = better ? output : best;
    best_panel = better ? Ints{} + static_cast<int32_t>(p) : best_panel;
  }
  int64_t lane = 0;
  for (int i = 1; i < kLanes; ++i) {
    if (best[i] > best[lane]) lane = i;
  }
  return int64_t{best_panel[lane]} * kPanelRows + lane;
}

// As finish_group and finish_output of an int8 matrix.
void finish(const SplitSums& task, const int32_t* low, float* out) {
  for (int64_t p = 0; p < task.panels; ++p) {
    const int64_t at = p * kPanelRows;
    const Bits sums = load_vector<Bits>(task.sums + at) + load_vector<Bits>(low + at);
    Floats y = {};
    y += __builtin_convertvector(load_vector<Ints>(&sums), Floats) * load_vector<Floats>(task.scales + at);
    store_vector(out + at, y * task.act_scale);
  }
}

// Two bytes are multiplied at once: h * step <= 15 * 16 never reaches the next one. A cast of a vector keeps its bits.
void join(const uint8_t* high, const uint8_t* low, const uint8_t* steps, int64_t chunks, uint8_t* out) {
  alignas(kVectorBytes) uint16_t step[kVectorBytes / 2];
  alignas(kVectorBytes) uint8_t zero[kVectorBytes];
  for (int i = 0; i < kVectorBytes; ++i) zero[i] = static_cast<uint8_t>(8 * steps[i / kStepCols]);
  for (int i = 0; i < kVectorBytes / 2; ++i) step[i] = steps[2 * i / kStepCols];
  constexpr int kParts = kVectorBytes / static_cast<int>(sizeof(Bytes));
  Pairs s[kParts];
  Bytes z[kParts];
  for (int i = 0; i < kParts; ++i) {
    s[i] = load_vector<Pairs>(step + i * sizeof(Bytes) / 2);
    z[i] = load_vector<Bytes>(zero + i * sizeof(Bytes));
  }
  for (int64_t i = 0; i < 2 * chunks; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) {
      const size_t at = j * sizeof(Bytes);
      const Pairs h = load_vector<Pairs>(high + i * kVectorBytes + at), l = load_vector<Pairs>(low + i * kVectorBytes + at);
      store_vector(out + 2 * i * kVectorBytes + at, (Bytes)((h & 0x0f0f) * s[j]) + (Bytes)(l & 0x0f0f) - z[j]);
      store_vector(out + (2 * i + 1) * kVectorBytes + at,
                   (Bytes)(((h >> 4) & 0x0f0f) * s[j]) + (Bytes)((l >> 4) & 0x0f0f) - z[j]);
    }
  }
}

constexpr SplitKernels kSplitKernels = {add_high, bound, finish, join};

}  // namespace
}  // namespace bitdistill
