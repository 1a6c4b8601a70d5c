// Matrices made at random, their storage forms, and the arithmetic of bitdistill.h written down plainly.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "bitdistill.h"
#include "check.h"

namespace test {

using Random = std::mt19937;

inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t uniform(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

// A packed weight at an aligned address, exactly as large as it is: a read beyond it is seen by the sanitizer.
class Packed {
 public:
  explicit Packed(size_t bytes) : size_(bytes) {
    CHECK(posix_memalign(&data_, BD_ALIGNMENT, bytes == 0 ? 1 : bytes) == 0);
  }
  Packed(Packed&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  ~Packed() { std::free(data_); }
  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_;
};

struct Case {
  bd_format format = BD_TERNARY;
  int64_t rows = 1, cols = 1, group_size = 0, groups = 1;
  std::vector<int8_t> values;       // [rows, cols]
  std::vector<float> scale;         // 1, rows or rows * groups
  std::vector<uint16_t> half_scale; // int4: the same as halves

  float scale_of(int64_t row, int64_t group) const {
    const size_t at = scale.size() == 1 ? 0 : static_cast<size_t>(row * groups + group);
    return scale[at];
  }

  std::vector<uint8_t> ternary_storage() const {
    const int64_t stored = up(rows, 4);
    std::vector<uint8_t> out(static_cast<size_t>(stored * cols));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        out[static_cast<size_t>(r % stored * cols + c)] |=
            static_cast<uint8_t>((values[static_cast<size_t>(r * cols + c)] + 1) << (2 * (r / stored)));
      }
    }
    return out;
  }

  std::vector<uint8_t> int4_storage() const {
    const int64_t bytes = up(cols, 2);
    std::vector<uint8_t> out(static_cast<size_t>(rows * bytes));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        out[static_cast<size_t>(r * bytes + c / 2)] |=
            static_cast<uint8_t>((values[static_cast<size_t>(r * cols + c)] + 8) << (4 * (c % 2)));
      }
    }
    return out;
  }

  Packed pack() const {
    size_t bytes = 0;
    if (format == BD_INT8) {
      CHECK_OK(bd_int8_packed_size(rows, cols, &bytes));
      Packed packed(bytes);
      CHECK_OK(bd_int8_pack(values.data(), values.size(), rows, cols, scale.data(), scale.size(), packed.data(), bytes));
      return packed;
    }
    if (format == BD_INT4) {
      const std::vector<uint8_t> storage = int4_storage();
      CHECK_OK(bd_int4_packed_size(rows, cols, &bytes));
      Packed packed(bytes);
      CHECK_OK(bd_int4_pack(storage.data(), storage.size(), rows, cols, half_scale.data(), half_scale.size(), packed.data(), bytes));
      return packed;
    }
    const std::vector<uint8_t> storage = ternary_storage();
    CHECK_OK(bd_ternary_packed_size(rows, cols, group_size, scale.size(), &bytes));
    Packed packed(bytes);
    CHECK_OK(bd_ternary_pack(storage.data(), storage.size(), rows, cols, scale.data(), scale.size(), group_size,
                             packed.data(), bytes));
    if (format == BD_TERNARY_DENSE) return densify(packed);
    return packed;
  }

  static Packed densify(const Packed& packed) {
    size_t bytes = 0;
    CHECK_OK(bd_ternary_dense_size(packed.data(), packed.size(), &bytes));
    if (bytes == 0) {  // nothing gained: small ones have the form all the same
      bytes = packed.size();
    } else {
      CHECK(bytes < packed.size());
    }
    Packed dense(bytes);
    CHECK_OK(bd_ternary_dense_pack(packed.data(), packed.size(), dense.data(), bytes));
    return dense;
  }

  // [tokens, rows, groups]
  std::vector<int32_t> accumulate(const std::vector<int8_t>& x, int64_t tokens) const {
    const int64_t width = group_size == 0 ? cols : group_size;
    std::vector<int32_t> acc(static_cast<size_t>(tokens * rows * groups));
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          acc[static_cast<size_t>((t * rows + r) * groups + c / width)] +=
              int32_t{values[static_cast<size_t>(r * cols + c)]} * x[static_cast<size_t>(t * cols + c)];
        }
      }
    }
    return acc;
  }
};

inline Case random_case(Random& random, bd_format format, int64_t rows, int64_t cols, int scale_kind) {
  Case made;
  made.format = format;
  made.rows = rows;
  made.cols = cols;
  made.group_size = format == BD_INT4 ? 32 : format == BD_TERNARY && scale_kind >= 2 ? 64 * (scale_kind - 1) : 0;
  made.groups = made.group_size == 0 ? 1 : up(cols, made.group_size);
  const int low = format == BD_INT8 ? -127 : format == BD_INT4 ? -8 : -1;
  const int high = format == BD_INT8 ? 127 : format == BD_INT4 ? 7 : 1;
  made.values.resize(static_cast<size_t>(rows * cols));
  for (int8_t& v : made.values) v = static_cast<int8_t>(low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1)));
  const bool ternary = format == BD_TERNARY || format == BD_TERNARY_DENSE;
  const bool tensor = scale_kind == 0 && ternary;
  made.scale.resize(tensor ? 1 : static_cast<size_t>(rows * made.groups));
  std::uniform_real_distribution<float> positive(0.01f, 2.0f);
  for (float& s : made.scale) s = positive(random);
  if (format == BD_INT4) {
    // From 2^-10 to 2^5, negative ones too: the same value in both types.
    for (float& s : made.scale) {
      const int exponent = static_cast<int>(uniform(random, -10, 4)), fraction = static_cast<int>(uniform(random, 0, 1023));
      const bool negative = random() % 2 != 0;
      s = std::ldexp(static_cast<float>(negative ? -1024 - fraction : 1024 + fraction), exponent - 10);
      made.half_scale.push_back(static_cast<uint16_t>((negative ? 0x8000 : 0) | (exponent + 15) << 10 | fraction));
    }
  }
  return made;
}

}  // namespace test
