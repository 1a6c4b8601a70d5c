#include "kernels/activations.h"

#include <atomic>
#include <cstring>

#include "core/status.h"
#include "core/thread_pool.h"

namespace bitdistill {
namespace {

// Below this many values threads cost more than they save.
constexpr int64_t kValuesPerTask = 16384;

// quantize() sums in steps of 32 columns and so may read 16 zeros beyond the last token.
constexpr size_t kTail = kSumCols - kChunkCols;

thread_local AlignedBuffer t_scratch;

}  // namespace

int QuantizedActivations::prepare(const Kernels& kernels, int64_t tokens, int64_t cols) {
  tokens_ = tokens;
  cols_ = cols;
  strips_ = kernels.strips;
  padded_cols_ = round_up(cols, strips_.cols > kChunkCols ? strips_.cols : kChunkCols);
  sum_count_ = div_up(cols, kSumCols);
  // Blocks of nearly equal size: a last one of a token or two would use the registers badly.
  block_tokens_ = div_up(tokens, div_up(tokens, kernels.token_block));
  if (strips_.tokens != 0) block_tokens_ = round_up(block_tokens_, strips_.tokens);
  cached_group_size_ = 0;
  const int64_t in_strips = strips_.tokens != 0 ? round_up(tokens, strips_.tokens) : tokens;
  const size_t values = static_cast<size_t>(in_strips * padded_cols_);
  if (!values_.reserve(values + kTail) || !scales_.reserve(static_cast<size_t>(2 * tokens) * sizeof(float)) ||
      !sums_.reserve(static_cast<size_t>(tokens * sum_count_) * sizeof(int32_t)) ||
      !token_sums_.reserve(static_cast<size_t>(tokens) * sizeof(int32_t))) {
    return BD_ERROR_OUT_OF_MEMORY;
  }
  std::memset(values_.as<int8_t>() + values, 0, kTail);
  if (in_strips != tokens) {
    const size_t strip = static_cast<size_t>(strips_.tokens * padded_cols_);
    std::memset(values_.as<int8_t>() + values - strip, 0, strip);
  }
  return BD_OK;
}

int8_t* QuantizedActivations::token_start(int64_t token, int64_t* chunk_stride) const {
  if (strips_.tokens != 0) {
    *chunk_stride = int64_t{strips_.tokens} * strips_.cols;
    const int64_t of_strip = token % strips_.tokens;
    return values_.as<int8_t>() + (token - of_strip) * padded_cols_ + of_strip * strips_.cols;
  }
  const int64_t block = token / block_tokens_;
  *chunk_stride = int64_t{tokens_in(block)} * kChunkCols;
  return values_.as<int8_t>() + first_token(block) * padded_cols_ + (token - first_token(block)) * kChunkCols;
}

void QuantizedActivations::finish_sums() {
  for (int64_t t = 0; t < tokens_; ++t) {
    const int32_t* sums = sums_.as<int32_t>() + t * sum_count_;
    int32_t total = 0;
    for (int64_t i = 0; i < sum_count_; ++i) total += sums[i];
    token_sums_.as<int32_t>()[t] = total;
    scales_.as<float>()[tokens_ + t] = 1.0f / scales_.as<float>()[t];
  }
}

int QuantizedActivations::quantize(const Kernels& all, const void* x, bd_dtype dtype, int64_t tokens, int64_t cols, Norm norm) {
  const Kernels& kernels = kernels_for(all, tokens);
  BD_RETURN_IF_ERROR(prepare(kernels, tokens, cols));
  const size_t row_bytes = static_cast<size_t>(cols) * (dtype == BD_BFLOAT16 ? sizeof(uint16_t) : sizeof(float));
  const int64_t per_task = div_up(kValuesPerTask, cols);
  std::atomic<bool> failed{false};
  parallel_for(div_up(tokens, per_task), [&](int64_t task) {
    if (!t_scratch.reserve(static_cast<size_t>(padded_cols_) * (sizeof(float) + 1) + kMostChunkCols)) {
      failed = true;
      return;
    }
    const int64_t stop = (task + 1) * per_task < tokens ? (task + 1) * per_task : tokens;
    for (int64_t t = task * per_task; t < stop; ++t) {
      QuantizeTask q;
      q.x = static_cast<const uint8_t*>(x) + static_cast<size_t>(t) * row_bytes;
      q.dtype = dtype;
      q.cols = cols;
      q.norm_weight = norm.weight;
      q.norm_eps = norm.eps;
      q.scratch = t_scratch.as<float>();
      q.x_q = token_start(t, &q.chunk_stride);
      q.chunk_cols = strips_.cols;
      q.sums = sums_.as<int32_t>() + t * sum_count_;
      q.scale = scales_.as<float>() + t;
      kernels.quantize(q);
    }
  });
  if (failed) return BD_ERROR_OUT_OF_MEMORY;
  finish_sums();
  return BD_OK;
}

int QuantizedActivations::assign(const Kernels& kernels, const int8_t* x_q, int64_t tokens, int64_t cols) {
  BD_RETURN_IF_ERROR(prepare(kernels_for(kernels, tokens), tokens, cols));
  for (int64_t t = 0; t < tokens; ++t) {
    int64_t stride;
    int8_t* out = token_start(t, &stride);
    const int8_t* in = x_q + t * cols;
    int32_t* sums = sums_.as<int32_t>() + t * sum_count_;
    std::memset(sums, 0, static_cast<size_t>(sum_count_) * sizeof(int32_t));
    for (int64_t i = 0; i < cols; ++i) sums[i / kSumCols] += in[i];
    for (int64_t i = 0; i < padded_cols_; i += strips_.cols, out += stride) {
      const int64_t left = cols - i < strips_.cols ? cols - i : strips_.cols;
      const size_t n = left > 0 ? static_cast<size_t>(left) : 0;
      std::memset(out, 0, static_cast<size_t>(strips_.cols));
      if (n > 0) std::memcpy(out, in + i, n);
    }
    scales_.as<float>()[t] = 1.0f;
  }
  finish_sums();
  return BD_OK;
}

void QuantizedActivations::copy_token(int64_t token, int8_t* x_q) const {
  int64_t stride;
  const int8_t* in = token_start(token, &stride);
  for (int64_t i = 0; i < cols_; i += strips_.cols, in += stride) {
    std::memcpy(x_q + i, in, static_cast<size_t>(cols_ - i < strips_.cols ? cols_ - i : strips_.cols));
  }
}

const int32_t* QuantizedActivations::group_sums(int64_t group_size) {
  if (group_size == 0) return token_sums(0);
  if (group_size == kSumCols) return sums_.as<int32_t>();
  if (cached_group_size_ == group_size) return group_sums_.as<int32_t>();
  const int64_t groups = div_up(cols_, group_size);
  const int64_t per_group = group_size / kSumCols;
  if (!group_sums_.reserve(static_cast<size_t>(tokens_ * groups) * sizeof(int32_t))) return nullptr;
  for (int64_t t = 0; t < tokens_; ++t) {
    const int32_t* sums = sums_.as<int32_t>() + t * sum_count_;
    int32_t* out = group_sums_.as<int32_t>() + t * groups;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t stop = (g + 1) * per_group < sum_count_ ? (g + 1) * per_group : sum_count_;
      out[g] = 0;
      for (int64_t i = g * per_group; i < stop; ++i) out[g] += sums[i];
    }
  }
  cached_group_size_ = group_size;
  return group_sums_.as<int32_t>();
}

}  // namespace bitdistill
