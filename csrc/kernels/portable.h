// The parts of a kernel that plain loops express well. Every instruction set includes this header and is compiled with
// its own flags, so the compiler vectorises these loops for it; all is in an unnamed namespace, so that no copy built
// for a newer CPU can be linked in for an older one. For the same reason nothing here uses the C++ standard library.
//
// Floating point: the order of every operation is fixed here and contraction is off, so results are equal bit for bit
// on every instruction set.
#pragma once

#include <string.h>

#include "kernels/kernels.h"

namespace bitdistill {
namespace {

// ---- Vectors of 16 lanes ---------------------------------------------------------------------------------------------
// A language extension of GCC and Clang: one, two or four registers, depending on the flags of the including file.

typedef float Floats __attribute__((vector_size(16 * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(16 * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(16 * sizeof(uint32_t))));
typedef float FourFloats __attribute__((vector_size(4 * sizeof(float))));
typedef double FourDoubles __attribute__((vector_size(4 * sizeof(double))));

constexpr int kLanes = 16;

template <typename V, typename T>
inline V load_vector(const T* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <typename V, typename T>
inline void store_vector(T* p, const V& v) {
  memcpy(p, &v, sizeof v);
}

// ---- Quantisation of activations -------------------------------------------------------------------------------------

constexpr uint32_t kInfinityBits = 0x7f800000u;

inline void widen_bfloat16(const uint16_t* x, int64_t n, float* v) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    memcpy(v + i, &bits, sizeof bits);
  }
}

// The magnitude bits of floats order as the floats do, with infinity and NaN above all numbers.
inline uint32_t max_magnitude_bits(const float* values, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return static_cast<uint32_t>(largest);
}

// In double the squares of floats are exact and the rounding of their sum is far below float32; the order of the sum is
// fixed by the lanes.
inline float inverse_rms(const float* values, int64_t n, int64_t cols, float eps) {
  FourDoubles lanes[4] = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int j = 0; j < 4; ++j) {
      const FourDoubles v = __builtin_convertvector(load_vector<FourFloats>(values + i + 4 * j), FourDoubles);
      lanes[j] += v * v;
    }
  }
  const FourDoubles four = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  const double sum = (four[0] + four[1]) + (four[2] + four[3]);
  return static_cast<float>(1.0 / __builtin_sqrt(sum / static_cast<double>(cols) + static_cast<double>(eps)));
}

// The token in float32, normalised if asked for, zero beyond the last column.
inline void load_token(const QuantizeTask& task, int64_t padded, float* v) {
  const int64_t cols = task.cols;
  if (task.dtype == BD_BFLOAT16) {
    widen_bfloat16(static_cast<const uint16_t*>(task.x), cols, v);
  } else {
    memcpy(v, task.x, static_cast<size_t>(cols) * sizeof(float));
  }
  for (int64_t i = cols; i < padded; ++i) v[i] = 0.0f;
  if (task.norm_weight == nullptr) return;
  const float inverse = inverse_rms(v, padded, cols, task.norm_eps);
  for (int64_t i = 0; i < cols; ++i) v[i] = v[i] * inverse * task.norm_weight[i];
}

// Columns to where they belong; q is zero up to the end of the last chunk. The compiler knows the sizes of the pieces: a
// call of memcpy for each would take longer than the quantisation.
template <int kPiece>
inline void store_chunks(const QuantizeTask& task, const int8_t* q, int64_t padded) {
  int8_t* out = task.x_q;
  for (int64_t i = 0; i < padded; i += task.chunk_cols, out += task.chunk_stride) {
    for (int64_t j = 0; j < task.chunk_cols; j += kPiece) memcpy(out + j, q + i + j, kPiece);
  }
}

inline void quantize_token(const QuantizeTask& task) {
  const int64_t cols = task.cols;
  const int64_t padded = round_up(cols, kLanes);
  const float* v = task.scratch;
  if (task.dtype == BD_FLOAT32 && cols == padded && task.norm_weight == nullptr &&
      reinterpret_cast<uintptr_t>(task.x) % alignof(float) == 0) {
    v = static_cast<const float*>(task.x);  // as it is
  } else {
    load_token(task, padded, task.scratch);
  }

  const uint32_t bits = max_magnitude_bits(v, padded);
  if (bits >= kInfinityBits) {
    int8_t* out = task.x_q;
    for (int64_t i = 0; i < padded; i += task.chunk_cols, out += task.chunk_stride) {
      memset(out, 0, static_cast<size_t>(task.chunk_cols));
    }
    memset(task.sums, 0, static_cast<size_t>(div_up(cols, kSumCols)) * sizeof(int32_t));
    *task.scale = __builtin_nanf("");
    return;
  }
  float largest;
  memcpy(&largest, &bits, sizeof largest);
  largest = largest > 1e-5f ? largest : 1e-5f;
  const float s = (1.0f / largest) * 127.0f;
  *task.scale = s;

  // Adding and subtracting 1.5 * 2^23 rounds half to even. The products are at most 127 plus a rounding error, so the clip
  // of the definition never acts. Long plain loops, because compilers narrow and add bytes best in those.
  constexpr float kRound = 12582912.0f;
  const bool contiguous = task.chunk_stride == task.chunk_cols;
  int8_t* q = contiguous ? task.x_q : reinterpret_cast<int8_t*>(task.scratch + padded);
  for (int64_t i = 0; i < padded; ++i) q[i] = static_cast<int8_t>(static_cast<int32_t>((v[i] * s + kRound) - kRound));
  if (!contiguous) memset(q + padded, 0, kMostChunkCols);
  for (int64_t i = 0; i < cols; i += kSumCols) {
    int32_t sum = 0;
    for (int j = 0; j < kSumCols; ++j) sum += q[i + j];
    task.sums[i / kSumCols] = sum;
  }
  if (contiguous) return;
  task.chunk_cols < kChunkCols ? store_chunks<8>(task, q, padded) : store_chunks<kChunkCols>(task, q, padded);
}

// ---- Codes -----------------------------------------------------------------------------------------------------------

// Code of one weight: `byte` of `step` of a packed panel.
inline int code_of(const uint8_t* panel, bd_format format, int64_t step, int byte) {
  switch (format) {
    case BD_TERNARY: return (panel[step / 4 * kVectorBytes + byte] >> (2 * (step % 4))) & 3;
    case BD_INT4: return (panel[step / 2 * kVectorBytes + byte] >> (4 * (step % 2))) & 15;
    case BD_INT8:
    case BD_TERNARY_DENSE: break;  // (see dense_code_of)
  }
  return static_cast<int8_t>(panel[step * kVectorBytes + byte]);
}

// ---- From integer sums to outputs ------------------------------------------------------------------------------------

inline int64_t chunks_of_group(const Tile& tile, int64_t group) {
  const int64_t left = tile.chunks - group * tile.group_chunks;
  return left < tile.group_chunks ? left : tile.group_chunks;
}

// Finite halves, each in the lower 16 bits of a lane, as floats: shifted to the fraction and exponent of a float, a half is its value
// times 2^-112.
template <class Float, class Integer>
inline Float widen_halves(const Integer& halves) {
  const Integer shifted = (halves & 0x7fffu) << 13;
  const Float magnitude = load_vector<Float>(&shifted) * 0x1p112f;
  const Integer bits = load_vector<Integer>(&magnitude) | (halves & 0x8000u) << 16;
  return load_vector<Float>(&bits);
}

inline Floats load_scales(const Tile& tile, int panel, int64_t group) {
  const int64_t at = panel * tile.scale_panel_stride + group * tile.scale_group_stride;
  if (!tile.scale_is_f16) return load_vector<Floats>(static_cast<const float*>(tile.scales) + at);
  Bits halves;
  for (int i = 0; i < kLanes; ++i) halves[i] = static_cast<const uint16_t*>(tile.scales)[at + i];
  return widen_halves<Floats>(halves);
}

// Where the sums of codes times activations start. It may wrap around 2^32; so do the sums, and the result is exact.
inline int32_t start_sum(const Tile& tile, int token, int64_t group) {
  const uint32_t sum = static_cast<uint32_t>(tile.group_sums[token * tile.groups + group]);
  return static_cast<int32_t>(0u - static_cast<uint32_t>(tile.zero_point) * sum);
}

// Sums of one panel, token and group, zero point taken off, go into `total` (or out, if sums were asked for).
inline void finish_group(const Tile& tile, int panel, int token, int64_t group, const Ints& sums, const Floats& scale,
                         Floats* total) {
  if (tile.acc != nullptr) {
    const int first = panel * kPanelRows;
    const int rows = tile.rows - first < kPanelRows ? tile.rows - first : kPanelRows;
    int32_t* acc = tile.acc + token * tile.acc_stride + first * tile.groups + group;
    if (rows == kPanelRows && tile.groups == 1) {
      store_vector(acc, sums);  // at once: lane by lane it takes as long as a panel of few columns
    } else {
      for (int i = 0; i < rows; ++i) acc[i * tile.groups] = sums[i];
    }
    return;
  }
  *total += __builtin_convertvector(sums, Floats) * scale;
}

// The last step, for one panel and token.
inline void finish_output(const Tile& tile, int panel, int token, const Floats& total) {
  if (tile.acc != nullptr) return;
  const int first = panel * kPanelRows;
  Floats y = total;
  y *= tile.act_scale[token];
  float* out = tile.out + token * tile.out_stride + first;
  if (tile.rows - first >= kPanelRows) {
    if (tile.bias != nullptr) y += load_vector<Floats>(tile.bias + first);
    store_vector(out, y);
  } else {
    for (int i = 0; i < tile.rows - first; ++i) out[i] = tile.bias != nullptr ? y[i] + tile.bias[first + i] : y[i];
  }
}

}  // namespace
}  // namespace bitdistill
