#include "kernels/dense_storage.h"

#include <cstring>

#include "core/thread_pool.h"
#include "kernels/matrix.h"

namespace bitdistill {
namespace {

constexpr int kWeightsPerByte = 5, kFields = 4;
constexpr int kNumbers = 243;
constexpr int64_t kTaskBytes = 1 << 16;

// Digit `factor = 3^k` of each byte into bits `shift`, `shift + 1` of `out`. Plain loops, which compilers vectorise.
void add_digits(const uint8_t* __restrict dense, int64_t count, unsigned factor, int shift, uint8_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t rest = static_cast<uint8_t>(dense[i] * factor);
    out[i] = static_cast<uint8_t>(out[i] | (rest * 3 >> 8) << shift);
  }
}

// The same of the first digit, 3 where the byte stands for no weights: there 243 or more remains after five digits.
void add_first_digits(const uint8_t* __restrict dense, int64_t count, int shift, uint8_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t byte = dense[i];
    const bool wrong = static_cast<uint8_t>(byte * kNumbers) >= kNumbers;
    out[i] = static_cast<uint8_t>(out[i] | (wrong ? 3 : byte * 3 >> 8) << shift);
  }
}

}  // namespace

int64_t stored_dense_bytes(int64_t rows, int64_t cols) { return div_up(rows * cols, kWeightsPerByte); }

void unpack_stored_dense(const uint8_t* dense, int64_t rows, int64_t cols, uint8_t* weight) {
  const int64_t size = rows * cols, length = stored_dense_bytes(rows, cols), stride = div_up(rows, kFields) * cols;
  parallel_for(div_up(stride, kTaskBytes), [&](int64_t task) {
    const int64_t first = task * kTaskBytes;
    const int64_t last = first + kTaskBytes < stride ? first + kTaskBytes : stride;
    std::memset(weight + first, 0, static_cast<size_t>(last - first));
    for (int field = 0; field < kFields; ++field) {
      // Weights [start, stop) are in as many runs of bytes as they have digits.
      const int64_t start = field * stride + first;
      const int64_t stop = field * stride + last < size ? field * stride + last : size;
      for (int64_t at = start; at < stop;) {
        const int64_t digit = at / length, byte = at % length;
        const int64_t count = length - byte < stop - at ? length - byte : stop - at;
        uint8_t* out = weight + first + (at - start);
        constexpr unsigned kPowers[kWeightsPerByte] = {1, 3, 9, 27, 81};
        if (digit == 0) add_first_digits(dense + byte, count, 2 * field, out);
        else add_digits(dense + byte, count, kPowers[digit], 2 * field, out);
        at += count;
      }
    }
  });
}

}  // namespace bitdistill
