// What an instruction set implements. Everything else (checks, threads, partition of the work) is written once.
#pragma once

#include <cstdint>

#include "kernels/float_kernels.h"
#include "kernels/matrix.h"

namespace bitdistill {

// Part of a matrix product: some panels times a block of tokens, over all columns.
struct Tile {
  const uint8_t* weights;
  int64_t panel_bytes;  // from one panel to the next
  int panels;
  bd_format format;
  int32_t zero_point;   // a weight is its code minus this
  int64_t chunks;       // of 16 columns
  int64_t group_chunks; // of a group; the last may have fewer
  int64_t groups;

  // Activations, zero beyond the last column: [chunks][tokens][16], or in strips, see Strips.
  const int8_t* x;
  int tokens;
  const int32_t* group_sums;  // [tokens][groups]: sums of x_q
  const float* act_scale;     // [tokens]: 1 / s

  const void* scales;          // of the first panel
  int64_t scale_panel_stride;  // in scales
  int64_t scale_group_stride;
  bool scale_is_f16;
  const float* bias;           // of the first row, or null
  float* out;                  // of the first row and token
  int64_t out_stride;          // from token to token
  int rows;                    // rows of the panels that exist

  int32_t* acc;                // if not null, the sums [tokens][rows][groups] go here and `out` is not written
  int64_t acc_stride;          // from token to token
};

struct QuantizeTask {
  const void* x;  // one token
  bd_dtype dtype;
  int64_t cols;
  const float* norm_weight;  // or null
  float norm_eps;
  float* scratch;            // round_up(cols, 16) floats and as many bytes, and kMostChunkCols bytes more
  // chunk_cols columns at x_q, the next at x_q + chunk_stride, the last filled up with zeros. If both are 16, 16 zeros at
  // the end.
  int8_t* x_q;
  int64_t chunk_stride;
  int chunk_cols;            // 8, or a multiple of 16 up to kMostChunkCols
  int32_t* sums;             // of each 32 columns
  float* scale;              // s
};

constexpr int kSumCols = 32;
constexpr int kMostChunkCols = 64;

// How matrix instructions want the activations: the tokens of a batch are cut into strips, the columns of a strip into
// chunks, [strips][chunks][tokens][cols]. The last strip is filled up with zeros. tokens = 0: blocks as Tile has them.
struct Strips {
  int tokens = 0;
  int cols = kChunkCols;  // 8, or a multiple of 16 up to kMostChunkCols
  int panels = 1;         // that are best multiplied together
};

struct Kernels {
  const char* name;
  int token_block;         // the most tokens of a tile
  int32_t int8_zero_point; // what `multiply` adds to int8 weights, 0 or 128

  void (*quantize)(const QuantizeTask&);
  // Decodes weights in registers, once for all tokens of the tile. Unpacking them to memory first was measured too: for
  // many tokens it gains nothing, and for few it loses. Only matrix instructions want it: see strips.h.
  void (*multiply)(const Tile& tile);
  // For benchmarks. The multiply-adds done by `iterations` of the inner instructions of `multiply`; a sum of bytes.
  double (*multiply_add_loop)(int64_t iterations);
  uint64_t (*read_loop)(const uint8_t* data, int64_t bytes);

  const FloatKernels* (*floats)();

  // An instruction set whose strength are many tokens: where they are fewer, the functions above, except `floats`, are
  // those of another one. Null: none.
  Strips strips = {};
  int fewest_tokens = 1;
  const Kernels* (*for_fewer)() = nullptr;
};

// What quantises and multiplies a batch of `tokens`.
inline const Kernels& kernels_for(const Kernels& kernels, int64_t tokens) {
  return tokens < kernels.fewest_tokens ? *kernels.for_fewer() : kernels;
}

// Null if this build has no such code. Whether the CPU can run it is another question: see active_kernels.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();
const Kernels* i8mm_kernels();

// The chosen ones; BD_ERROR_ISA if HF_BITDISTILL_ISA asks for what is not there.
int active_kernels(const Kernels** kernels);
int set_active_kernels(const char* name);
const char* const* supported_kernels();

}  // namespace bitdistill
