// The float32 half of a decoder, one implementation an instruction set: attention, norms, activations, 16-bit tables.
// On one instruction set a row's result is the same bit for bit whatever other rows are computed with it, and on however many
// threads. Between instruction sets results may differ, unlike those of the integer kernels, by what float32 rounding explains.
#pragma once

#include <cstdint>

#include "bitdistill.h"
#include "kernels/isa_file.h"
#include "kernels/matrix.h"
#include "kernels/split_kernels.h"
#include "kernels/training_kernels.h"

namespace bitdistill {

// Keys and values lie in pages of 64 positions. For one layer and one key-value head a page of floats holds
//   keys   [kPagePositions / 16][head_dim][16]   16 positions side by side: a query needs no sum across lanes
//   values [kPagePositions][round_up(head_dim, 16)]
// and one of 8-bit integers, where four neighbours are multiplied together (keys with 128 added on some instruction sets),
//   keys   [kPagePositions / 16][div_up(head_dim, 4)][16][4], float scales [kPagePositions]
//   values [kPagePositions / 4][round_up(head_dim, 16)][4], float scales [kPagePositions]
constexpr int kPagePositions = 64;
constexpr int kKeyBlock = 16;

// A row sees its positions in stretches of this many, aligned, whoever computes them; what it has seen in one is merged into
// what it has seen before.
constexpr int64_t kStretchPositions = 512;

constexpr int kAttendRows = 32;  // the most rows of an AttendTask

// What a row has seen: the weighted values, the sum of the weights, and the greatest score.
inline int64_t attend_greatest(int64_t head_dim) { return round_up(head_dim, kKeyBlock) + kKeyBlock; }
inline int64_t attend_row_floats(int64_t head_dim) { return attend_greatest(head_dim) + kKeyBlock; }

// Floats of scratch for a task.
inline int64_t attend_scratch(int64_t head_dim) { return kAttendRows * 2 * div_up(head_dim, 4); }

struct AttendTask {
  const uint8_t* const* pages;  // of the sequence, first position first
  int64_t key_offset;  // bytes from the start of a page to the keys of this layer and head
  int64_t value_offset;
  bd_dtype dtype;  // of keys and values: BD_FLOAT32, BD_FLOAT16 or BD_SCALED_INT8
  int64_t head_dim;
  int64_t from, to;  // positions to look at, within one stretch
  int rows;  // (token, query head) pairs that share this key-value head
  const float* q[kAttendRows];  // [head_dim]
  int64_t first[kAttendRows];  // positions [first, last) are visible
  int64_t last[kAttendRows];
  float scale;
  float softcap;  // 0: none
  float* rows_seen;  // [rows][attend_row_floats()], written
  float* scratch;  // attend_scratch() floats, aligned to BD_ALIGNMENT
};

struct FloatKernels {
  void (*attend)(const AttendTask& task);
  // A row that has seen `more` besides, of a later stretch.
  void (*merge_attended)(const float* more, int64_t head_dim, float* seen);
  void (*finish_attended)(const float* seen, int64_t head_dim, float* out);  // [head_dim]

  // Writes one head's key and value to position `position` of a page (see above); `page_keys` and `page_values` are
  // those of its layer and head.
  void (*store_key_value)(const float* key, const float* value, int64_t head_dim, bd_dtype dtype, int64_t position,
                          void* page_keys, void* page_values);

  // out = x / sqrt(mean(x^2) + eps) * weight; `out` may be `x`.
  void (*rms_norm)(const float* x, int64_t n, const float* weight, float eps, float* out);

  // Rotates the first 2 * half elements of a head; cos and sin have `half` elements.
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t half);

  // out[i] = act(gate[i]) * up[i].
  void (*activate)(bd_activation activation, const float* gate, const float* up, int64_t n, float* out);

  void (*add)(const float* x, int64_t n, float* sum);  // sum += x
  void (*softcap)(float cap, int64_t n, float* x);  // x = cap * tanh(x / cap)

  // out[t * out_stride + r] = x[t] . weight[r] for rows [0, rows) of a contiguous [rows, cols] matrix of `kind`.
  void (*dense)(bd_table_kind kind, const void* weight, int64_t rows, int64_t cols, const float* x, int64_t tokens, float* out,
                int64_t out_stride);
  // One row of such a matrix as floats.
  void (*widen)(bd_table_kind kind, const void* row, int64_t cols, float* out);

  // out[r] += x . column r of a contiguous [rank, rows] matrix.
  void (*expand)(const float* x, int64_t rank, const float* weight, int64_t rows, float* out);

  uint16_t (*to_half)(float value);  // half to even

  SplitKernels split;

  TrainingKernels training;
};

const FloatKernels* scalar_float_kernels();
const FloatKernels* avx2_float_kernels();
const FloatKernels* avxvnni_float_kernels();
const FloatKernels* avx512_float_kernels();
const FloatKernels* neon_float_kernels();

}  // namespace bitdistill
