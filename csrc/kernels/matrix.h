// A weight matrix in the library's own layout.
//
// Rows are cut into panels of 16. Within a panel the columns are cut into steps of 4, and one step is a vector of 64
// bytes: byte 4 * i + j belongs to row i and column j of the step. So a 32-bit lane of a vector register is one row, an
// 8-bit dot-product instruction adds 4 columns to each of 16 rows, an activation is used by broadcasting 4 of its bytes,
// and no sum ever has to be gathered across lanes. The same layout serves every vector width.
//
//   TERNARY  64 bytes hold 4 steps (16 columns): step p is bits 2p, 2p + 1 of every byte; value + 1.
//   INT8     64 bytes hold 1 step; the value itself.
//   INT4     64 bytes hold 2 steps, the first in the low nibbles; value + 8.
//
//   TERNARY_DENSE  256 bytes hold 20 steps (80 columns): dense.h. Only AVX-512 VBMI decodes it as fast as it reads.
//
// A packed weight is one buffer: header | scales | panels, each part aligned to 64 bytes. Scales are [panels, groups, 16]
// floats (INT4: halves), or 16 equal floats for a tensor scale.
// Padding holds arbitrary codes: activations of padding columns are zero, outputs of padding rows are not stored.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bitdistill.h"

namespace bitdistill {

constexpr int kPanelRows = 16;
constexpr int kStepCols = 4;
constexpr int kVectorBytes = kPanelRows * kStepCols;
constexpr int kChunkCols = 16;  // activations are laid out, and groups are padded, in chunks of 4 steps
constexpr int kChunkSteps = kChunkCols / kStepCols;
constexpr int kInt4Group = 32;

constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

struct Matrix {
  bd_format format;
  bool tensor_scale;
  int64_t rows, cols;
  int64_t group_size;  // columns that share a scale; 0: all
  int64_t groups;
  int64_t panels;
  int64_t panel_bytes;
  // Null in a matrix that only describes sizes.
  const void* scales;
  const uint8_t* panel_data;

  bool half_scales() const { return format == BD_INT4; }
  size_t scale_bytes() const { return half_scales() ? sizeof(uint16_t) : sizeof(float); }
  int64_t chunks() const { return div_up(cols, kChunkCols); }
  int64_t group_chunks() const { return group_size == 0 ? chunks() : group_size / kChunkCols; }
};

// Byte positions of the parts of a packed weight.
struct Layout {
  size_t scales, panel_data, total;
};

// Fills sizes and the layout; BD_ERROR_SHAPE / BD_ERROR_ARGUMENT if there is no such matrix. `scale_count` is the
// number of scales in storage; it decides between tensor and row scale.
int describe_matrix(int format, int64_t rows, int64_t cols, int64_t group_size, size_t scale_count, Matrix* matrix,
                    Layout* layout);

void write_header(const Matrix& matrix, void* packed);

// Checks a packed weight and points into it. Afterwards every address that the kernels derive lies inside the buffer.
int open_matrix(const void* packed, size_t packed_bytes, Matrix* matrix);

float half_to_float(uint16_t half);

}  // namespace bitdistill
