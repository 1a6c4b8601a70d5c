// The forward pass of a decoder.
#pragma once

#include "decoder/cache.h"
#include "decoder/model.h"

namespace bitdistill {

struct ForwardTask {
  const int64_t* tokens;
  const int64_t* sequences;     // not decreasing
  int64_t token_count;
  const int64_t* output_index;
  int64_t output_count;
  bd_output output;
  float* out;
};

// Everything has been checked but the length of sequences. Throws std::bad_alloc; the sequences are then as before.
int forward(const Model& model, bd_cache& cache, const ForwardTask& task);

}  // namespace bitdistill
