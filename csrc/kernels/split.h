// An 8-bit table in two parts, of which an arg max reads only the first for most rows.
//
// Some columns are kept whole, in 8 bits. Every other weight of row r is  w = step[r] * (h - 8) + l  with 0 <= h < 16 and
// 0 <= l < step[r] <= 16: the first part holds the kept columns and all h, the second all l. Together they have the bytes of
// the 8-bit table and give its sums to the last bit. The first part alone gives every sum up to
//
//   |sum l x - (step - 1) / 2 * sum x|  <=  norm(l - (step - 1) / 2) * norm(x)                        (Cauchy-Schwarz)
//
// over the columns that are not kept; the norm of each row is stored. It is 23 times the error's usual size in a table of 576
// columns, so it has to be small: the columns that are kept are those where the table has its largest weights, which else
// would make `step` 16 in every row, and those where activations are largest.
//
// One buffer: header | order of the columns | scales | norms | steps | kept columns | h | l, each part aligned to 64 bytes. The
// last three are panels as in matrix.h: INT8, INT4 and INT4 without zero point.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/activations.h"
#include "kernels/matrix.h"

namespace bitdistill {

struct Split {
  int64_t rows, cols;
  int64_t kept, rest;  // columns, in this order; `kept` is a multiple of 16
  int64_t panels;
  const int32_t* order;  // [cols]: the column of the table that stands at each place
  const float* scales;  // [panels, 16]
  const float* norms;  // [panels, 16], rounded up
  const uint8_t* steps;  // [panels, 16]
  const uint8_t *kept_panels, *high_panels, *low_panels;

  int64_t kept_bytes() const { return kept * kPanelRows; }  // of a panel
  int64_t nibble_bytes() const { return div_up(rest, kChunkCols) * 2 * kVectorBytes; }
};

// BD_ERROR_SHAPE if there is no such table.
int split_size(int64_t rows, int64_t cols, size_t* bytes);

// The start of a table of `rows` rows: the columns' order, and no rows yet. `sample`: an int8 matrix of some of its rows, or all.
// `weight_of_column`: of the norm in front of the table [cols], or null; any finite values. Throws std::bad_alloc.
int begin_split(int64_t rows, const Matrix& sample, const float* weight_of_column, void* packed, size_t packed_bytes);

// Rows `first_row` and on, from an int8 matrix of them alone with scales that are not negative (else BD_ERROR_SCALE). The first is at a
// multiple of 16, and so is the end unless it is the table's (else BD_ERROR_SHAPE). Throws std::bad_alloc.
int pack_split_rows(const Matrix& int8, int64_t first_row, void* packed, size_t packed_bytes);

// Checks a packed table and points into it. Afterwards every address that is derived lies inside the buffer. Throws std::bad_alloc.
int open_split(const void* packed, size_t packed_bytes, Split* split);

// out [cols]: row `row` of the table in floats, its columns in the table's own order.
void dequantize_row(const Split& split, int64_t row, float* out);

// to [cols] = from in the split's order of columns. `multiply_split` takes activations that were quantised in this order.
void order_columns(const Split& split, const float* from, float* to);

// out [tokens][rows], `stride` from token to token: what the 8-bit matrix gives, bit for bit. With `greatest`, outputs that are
// certainly less than the greatest one of their token may be -inf instead. Throws std::bad_alloc.
void multiply_split(const Kernels& kernels, const Split& split, QuantizedActivations& x, bool greatest, float* out,
                    int64_t stride);

}  // namespace bitdistill
