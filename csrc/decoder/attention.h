// Attention of the tokens of a chunk to the keys and values of their sequences: how the work is cut for threads.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "decoder/cache.h"
#include "decoder/model.h"
#include "kernels/float_kernels.h"

namespace bitdistill {

// Consecutive tokens of one sequence.
struct Run {
  int64_t first, count;      // tokens of the chunk
  Sequence* sequence;
  int64_t position;          // of its first token
  int64_t first_tile;        // of its rows, in a layer
};

class Attention {
 public:
  Attention(const Model& model, const FloatKernels& floats, const PageLayout& layout, std::vector<Run>& runs)
      : model_(model), floats_(floats), layout_(layout), runs_(runs) {}

  // Counts the tiles of the runs: up to kAttendRows rows, (token, query head) pairs that share a key-value head.
  void plan();

  // out [tokens, heads, head_dim] for qkv [tokens, qkv_size]; keys and values are in the cache. Throws std::bad_alloc.
  int attend(int64_t layer_index, const float* qkv, float* out);

 private:
  struct Tile;

  Tile open_tile(int64_t layer_index, int64_t number, const float* qkv, float* out) const;
  bool attend_stretch(const Tile& tile, int64_t stretch, float* rows_seen) const;
  void merge(const Tile& tile, int64_t stretch, const float* more, float* seen) const;
  void finish(const Tile& tile, const float* seen) const;
  bool attend_tile(const Tile& tile) const;
  int attend_in_stretches(int64_t layer_index, const float* qkv, float* out) const;

  const Model& model_;
  const FloatKernels& floats_;
  const PageLayout& layout_;
  std::vector<Run>& runs_;
  int64_t tiles_ = 0, cost_ = 0, longest_ = 0;
};

}  // namespace bitdistill
