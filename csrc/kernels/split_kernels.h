// What is done with the sums of a split table (split.h), one implementation an instruction set.
#pragma once

#include <cstdint>

namespace bitdistill {

// Some panels times one token.
struct SplitSums {
  int64_t panels;
  int32_t* sums;       // [panels, 16]: over the kept columns
  const int32_t* high; // [panels, 16]: of h - 8 over the rest
  const uint8_t* steps;
  const float* scales;
  const float* norms;
  float sum;           // of x over the rest
  float norm;          // of x over the rest, rounded up
  float act_scale;
};

struct SplitKernels {
  // sums += steps * high, the sums that lack l.
  void (*add_high)(const SplitSums& task);

  // out [panels, 16]: no output is greater. Returns a row whose output may be the greatest.
  int64_t (*bound)(const SplitSums& task, float* out);

  // out [panels, 16] from the sums, and those of l.
  void (*finish)(const SplitSums& task, const int32_t* low, float* out);

  // One panel: `chunks` of 16 columns of h and l to int8.
  void (*join)(const uint8_t* high, const uint8_t* low, const uint8_t* steps, int64_t chunks, uint8_t* out);
};

}  // namespace bitdistill
