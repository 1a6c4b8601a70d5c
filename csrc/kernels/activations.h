// A batch of activations as the matrix products take them: int8, in blocks of tokens, with scales and sums. Quantised
// once, it serves any number of matrices with the same input (query, key and value projections; gate and up).
#pragma once

#include <cstdint>

#include "core/aligned_buffer.h"
#include "kernels/kernels.h"

namespace bitdistill {

struct Norm {
  const float* weight = nullptr;  // null: none
  float eps = 0.0f;
};

class QuantizedActivations {
 public:
  // x [tokens, cols], contiguous. A status; on failure the content is unspecified. Shapes must have been checked. Done by,
  // and laid out for, the kernels_for() so many tokens.
  int quantize(const Kernels& kernels, const void* x, bd_dtype dtype, int64_t tokens, int64_t cols, Norm norm);
  // The same from integers, with scale 1.
  int assign(const Kernels& kernels, const int8_t* x_q, int64_t tokens, int64_t cols);

  int64_t tokens() const { return tokens_; }
  int64_t cols() const { return cols_; }
  int64_t blocks() const { return div_up(tokens_, block_tokens_); }
  int64_t first_token(int64_t block) const { return block * block_tokens_; }
  int tokens_in(int64_t block) const {
    const int64_t left = tokens_ - first_token(block);
    return static_cast<int>(left < block_tokens_ ? left : block_tokens_);
  }
  // [chunks][tokens_in(block)][16], or the strips of the kernels
  const int8_t* block(int64_t block) const { return values_.as<int8_t>() + first_token(block) * padded_cols_; }
  const float* scale(int64_t token) const { return scales_.as<float>() + token; }                 // s
  const float* inverse_scale(int64_t token) const { return scales_.as<float>() + tokens_ + token; }  // 1 / s
  const int32_t* token_sums(int64_t token) const { return token_sums_.as<int32_t>() + token; }
  void copy_token(int64_t token, int8_t* x_q) const;

  // Sums of x_q per group of columns (0: all), [tokens][groups]. Null: out of memory. Not for concurrent callers.
  const int32_t* group_sums(int64_t group_size);

 private:
  int prepare(const Kernels& kernels, int64_t tokens, int64_t cols);
  // Where the first columns of a token are, and how far it is from chunk to chunk of columns.
  int8_t* token_start(int64_t token, int64_t* chunk_stride) const;
  void finish_sums();

  int64_t tokens_ = 0, cols_ = 0, padded_cols_ = 0, sum_count_ = 0, block_tokens_ = 1;
  Strips strips_;
  int64_t cached_group_size_ = 0;
  AlignedBuffer values_, scales_, sums_, token_sums_, group_sums_;
};

}  // namespace bitdistill
