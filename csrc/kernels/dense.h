// The dense ternary form: five weights in a byte, 1.6 bits each, in the panels of matrix.h.
//
// Four vectors of a panel are five chunks of 16 columns: the five digits (value + 1) of a byte of vector j are the four
// steps of chunk j and step j of the fifth chunk. What is left at the end of a row, up to four chunks, has two bits a weight.
//
// The code is made for a lookup of 64 bytes by six bits. A byte has digit e (of the fifth chunk) in its two high bits and a
// place of a table in the six low ones, which tells the other digits of 64 of the 81 combinations there are. For the other
// 17 the high bits are 3, and the low ones tell e too. Their places are chosen so that d0 and d1 are those of the first
// table all the same: a second lookup mends d2, d3 and e. Measured against two bits: benchmarks/bench_dense.py.
#pragma once

#include "kernels/kernels.h"
#include "kernels/matrix.h"

namespace bitdistill {

constexpr int kDenseChunks = 5;   // of a group
constexpr int kDenseVectors = 4;  // that hold them

struct DenseCode {
  // By place: d0, d1 at bits 4, 6 of `first`; d2, d3 at bits 0, 2 of both; e at bit 6 of `second`. Places that nothing has
  // are zero: every byte decodes to digits.
  uint8_t first[64] = {}, second[64] = {};
  uint8_t bytes[3][81] = {};         // [e][d0 + 3 d1 + 9 d2 + 27 d3]
  uint8_t steps[256] = {};           // d0 .. d3 as a byte of two bits each
  uint8_t fifth[256] = {};           // e

  constexpr DenseCode() {
    int next = 0, missing = 0;
    for (int pair = 0; pair < 9; ++pair) {  // d0 + 3 d1
      // Of nine (d2, d3) at most two have no place: each needs three places of the same d0, d1 for its three e.
      const int without = missing < 17 ? (17 - missing < 2 ? 17 - missing : 2) : 0;
      const int with = 9 - without, base = next;
      missing += without;
      next += with;
      for (int rest = 0; rest < 9; ++rest) {  // d2 + 3 d3
        for (int e = 0; e < 3; ++e) {
          const bool has_place = rest < with;
          const int place = has_place ? base + rest : base + (rest - with) * 3 + e;
          const int byte = (has_place ? e : 3) << 6 | place;
          const int low = rest % 3 | rest / 3 << 2, high = pair % 3 << 4 | pair / 3 << 6;
          if (has_place) first[place] = static_cast<uint8_t>(high | low);
          else second[place] = static_cast<uint8_t>(low | e << 6);
          bytes[e][pair + 9 * rest] = static_cast<uint8_t>(byte);
          steps[byte] = static_cast<uint8_t>(high >> 4 | low << 4);
          fifth[byte] = static_cast<uint8_t>(e);
        }
      }
    }
    for (int place = 0; place < 64; ++place) {  // bytes that stand for nothing, as the kernels decode them
      const int byte = 3 << 6 | place;
      steps[byte] = static_cast<uint8_t>(first[place] >> 4 | (second[place] & 15) << 4);
      fifth[byte] = static_cast<uint8_t>(second[place] >> 6);
    }
  }
};

inline constexpr DenseCode kDenseCode;

constexpr int64_t dense_panel_bytes(int64_t chunks) {
  return (chunks / kDenseChunks * kDenseVectors + chunks % kDenseChunks) * kVectorBytes;
}

// Code of one weight: `byte` of `step` of a packed panel.
inline int dense_code_of(const uint8_t* panel, int64_t chunks, int64_t step, int byte) {
  const int64_t chunk = step / kChunkSteps, group = chunk / kDenseChunks, within = chunk % kDenseChunks;
  const int shift = static_cast<int>(2 * (step % kChunkSteps));
  const uint8_t* vectors = panel + group * kDenseVectors * kVectorBytes;
  if (group == chunks / kDenseChunks) return vectors[within * kVectorBytes + byte] >> shift & 3;
  if (within < kDenseVectors) return kDenseCode.steps[vectors[within * kVectorBytes + byte]] >> shift & 3;
  return kDenseCode.fifth[vectors[step % kChunkSteps * kVectorBytes + byte]];
}

// Describes a ternary matrix in the other form: sizes and layout, no data. A status.
int describe_in_form(const Matrix& matrix, bd_format form, Matrix* other, Layout* layout);

// Panels of a ternary matrix with two bits to those of `dense`, the same in the dense form; on all threads.
void pack_dense(const Matrix& matrix, const Matrix& dense, uint8_t* panel_data);
// A panel back, on any CPU.
void widen_panel(const uint8_t* panel, int64_t chunks, uint8_t* wide);

// What knows the form in registers, for activations of the kernels that it stands beside.
struct DenseKernels {
  void (*multiply)(const Tile& tile);
  void (*widen)(const uint8_t* panel, int64_t chunks, uint8_t* wide);  // widen_panel
};

// Null: nothing here does for `kernels`.
const DenseKernels* dense_kernels(const Kernels& kernels);
// Null if this build has no such code.
const DenseKernels* avx512vbmi_dense_kernels();
bool can_run_avx512vbmi();

// Whether the dense form gains here what it is for: one token is faster with weights from memory, a few and a prompt are as fast with
// weights from the cache. Measured once a process, in a tenth of a second.
bool dense_is_fast(const Kernels& kernels);

}  // namespace bitdistill
