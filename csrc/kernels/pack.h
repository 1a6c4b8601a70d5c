// From storage layouts to the library's own (matrix.h). Shapes and buffer sizes must have been checked against `matrix`.
#pragma once

#include "kernels/kernels.h"
#include "kernels/matrix.h"

namespace bitdistill {

// Destination of the parts of a packed weight.
struct PackedParts {
  void* scales;
  uint8_t* panel_data;
};

// BD_ERROR_CODE if a row of the matrix holds a code that no weight has.
int pack_ternary(const Matrix& matrix, const uint8_t* weight, const PackedParts& packed);
int pack_int8(const Matrix& matrix, const int8_t* weight, const PackedParts& packed);
int pack_int4(const Matrix& matrix, const uint8_t* weight, const PackedParts& packed);

// BD_ERROR_CODE if a field of these bytes is 3, on all threads.
int check_ternary(const uint8_t* weight, size_t bytes);

// BD_ERROR_SCALE if one is not finite. `scales`: floats, or halves if matrix.half_scales().
int pack_scales(const Matrix& matrix, const void* scales, const PackedParts& packed);

// Rows [first_row, first_row + rows) of an int8 or int4 matrix from floats: `table` starts with the first of them, which
// is the first of a panel. BD_ERROR_SCALE if one is not finite, BD_ERROR_ARGUMENT if one is too large for a half scale.
int pack_table_rows(const Matrix& matrix, const Kernels& kernels, const void* table, bd_table_kind kind, int64_t first_row,
                    int64_t rows, const PackedParts& packed);

}  // namespace bitdistill
