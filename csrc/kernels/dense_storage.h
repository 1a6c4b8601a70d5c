// Ternary weights as the files of a checkpoint with weight_bits=1.6 hold them, five in a byte: see bd_ternary_from_dense. (The
// dense form in memory is another one: dense.h.)
#pragma once

#include <cstdint>

namespace bitdistill {

int64_t stored_dense_bytes(int64_t rows, int64_t cols);

// To uint8 [ceil(rows / 4), cols], on all threads. Shapes and sizes must have been checked.
void unpack_stored_dense(const uint8_t* dense, int64_t rows, int64_t cols, uint8_t* weight);
// The inverse; BD_ERROR_CODE if a weight has code 3.
int pack_stored_dense(const uint8_t* weight, int64_t rows, int64_t cols, uint8_t* dense);

}  // namespace bitdistill
