// The definition, in plain C++. It is the reference of the other implementations and runs on any CPU.
#include "kernels/portable.h"

namespace bitdistill {
namespace {

constexpr int kTokens = 4;

void multiply(const Tile& tile) {
  for (int p = 0; p < tile.panels; ++p) {
    const uint8_t* panel = tile.weights + p * tile.panel_bytes;
    for (int t = 0; t < tile.tokens; ++t) {
      Floats total = {};
      for (int64_t g = 0; g < tile.groups; ++g) {
        uint32_t sums[kPanelRows];  // unsigned: wraps where int32 would be undefined, for damaged weights
        for (uint32_t& sum : sums) sum = static_cast<uint32_t>(start_sum(tile, t, g));
        const int64_t first = g * tile.group_chunks;
        for (int64_t chunk = first; chunk < first + chunks_of_group(tile, g); ++chunk) {
          const int8_t* x = tile.x + (chunk * tile.tokens + t) * kChunkCols;
          for (int step = 0; step < kChunkSteps; ++step) {
            for (int byte = 0; byte < kVectorBytes; ++byte) {
              const int code = code_of(panel, tile.format, chunk * kChunkSteps + step, byte);
              sums[byte / kStepCols] += static_cast<uint32_t>(code * x[step * kStepCols + byte % kStepCols]);
            }
          }
        }
        finish_group(tile, p, t, g, load_vector<Ints>(sums), load_scales(tile, p, g), &total);
      }
      finish_output(tile, p, t, total);
    }
  }
}

double multiply_add_loop(int64_t iterations) {
  int8_t x[256], w[256];
  for (int i = 0; i < 256; ++i) x[i] = static_cast<int8_t>(i), w[i] = static_cast<int8_t>(i % 3);
  volatile int32_t sink = 0;
  for (int64_t n = 0; n < iterations; ++n) {
    int32_t sum = sink;
    for (int i = 0; i < 256; ++i) sum += x[i] * w[i];
    sink = sum & 0xff;
  }
  return static_cast<double>(iterations) * 256;
}

uint64_t read_loop(const uint8_t* data, int64_t bytes) {
  uint64_t sum[4] = {};
  for (int64_t i = 0; i + 32 <= bytes; i += 32) {
    uint64_t words[4];
    memcpy(words, data + i, sizeof words);
    for (int j = 0; j < 4; ++j) sum[j] += words[j];
  }
  return sum[0] + sum[1] + sum[2] + sum[3];
}

constexpr Kernels kScalar = {"scalar", kTokens,           0,         quantize_token,
                             multiply, multiply_add_loop, read_loop, scalar_float_kernels};

}  // namespace
}  // namespace bitdistill

BITDISTILL_GIVES(scalar_kernels, &kScalar)
