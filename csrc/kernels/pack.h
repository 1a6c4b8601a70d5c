// From storage layouts to the library's own (matrix.h). Shapes and buffer sizes must have been checked against `matrix`.
#pragma once

#include "kernels/matrix.h"

namespace bitdistill {

// Destination of the parts of a packed weight.
struct PackedParts {
  void* scales;
  float* row_offset;  // or null
  uint8_t* panel_data;
};

// BD_ERROR_CODE if a row of the matrix holds a code that no weight has.
int pack_ternary(const Matrix& matrix, const uint8_t* weight, const PackedParts& packed);
int pack_int8(const Matrix& matrix, const int8_t* weight, const PackedParts& packed);
int pack_int4(const Matrix& matrix, const uint8_t* weight, const PackedParts& packed);

// BD_ERROR_SCALE if one is not finite. `scales`: floats, or halves if matrix.scale_is_f16.
int pack_scales(const Matrix& matrix, const void* scales, const PackedParts& packed);
int pack_row_offset(const Matrix& matrix, const float* row_offset, const PackedParts& packed);

}  // namespace bitdistill
