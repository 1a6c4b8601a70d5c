// Split tables: equal to the int8 table they come from, in every output, and in the greatest one when that alone is asked for.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "bitdistill.h"
#include "check.h"
#include "reference.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Buffer {
  explicit Buffer(size_t size) : bytes(size), packed(size), data(static_cast<uint8_t*>(packed.data())) {}
  size_t bytes;
  test::Packed packed;  // of exactly that size, so that a sanitizer sees a byte too many
  uint8_t* data;
};

struct Table {
  Table(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), codes(static_cast<size_t>(rows * cols)), scales(static_cast<size_t>(rows), 0.01f) {}

  int8_t& code(int64_t row, int64_t col) { return codes[static_cast<size_t>(row * cols + col)]; }

  Buffer int8() const { return int8(0, rows); }

  // Rows `from` to `to` alone.
  Buffer int8(int64_t from, int64_t to) const {
    size_t bytes;
    CHECK_OK(bd_int8_packed_size(to - from, cols, &bytes));
    Buffer packed(bytes);
    const size_t count = static_cast<size_t>(to - from);
    CHECK_OK(bd_int8_pack(codes.data() + from * cols, count * static_cast<size_t>(cols), to - from, cols, scales.data() + from, count,
                          packed.data, packed.bytes));
    return packed;
  }

  Buffer split(const Buffer& packed, const std::vector<float>& norm = {}) const {
    size_t bytes;
    CHECK_OK(bd_split_size(rows, cols, &bytes));
    Buffer out(bytes);
    CHECK_OK(begin(packed, norm, out));
    CHECK_OK(bd_split_pack_rows(packed.data, packed.bytes, 0, out.data, out.bytes));
    return out;
  }

  int begin(const Buffer& sample, const std::vector<float>& norm, Buffer& out) const {
    return bd_split_begin(rows, sample.data, sample.bytes, norm.empty() ? nullptr : norm.data(), norm.size(), out.data, out.bytes);
  }

  int64_t rows, cols;
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

// Rows that are much alike, so that the greatest are near each other, with some columns of large values.
Table random_table(std::mt19937& random, int64_t rows, int64_t cols, int spread) {
  Table table(rows, cols);
  std::uniform_int_distribution<int> value(-spread, spread), large(-127, 127);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) table.code(r, c) = static_cast<int8_t>(c % 37 == 5 ? large(random) : value(random));
    table.scales[static_cast<size_t>(r)] = std::uniform_real_distribution<float>(0.0f, 0.02f)(random);
  }
  return table;
}

int64_t first_greatest(const float* values, int64_t count) { return std::max_element(values, values + count) - values; }

// The share of outputs that were left out.
double compare(const Table& table, const std::vector<float>& x, int64_t tokens, const std::vector<float>& norm = {}) {
  const Buffer packed = table.int8(), split = table.split(packed, norm);
  const size_t count = static_cast<size_t>(tokens * table.rows);
  std::vector<float> expected(count), all(count, 7.0f), greatest(count, 7.0f);
  CHECK_OK(bd_linear(packed.data, packed.bytes, x.data(), x.size(), BD_FLOAT32, tokens, nullptr, 0, 0.0f, nullptr, 0, expected.data(), count));
  CHECK_OK(bd_split_linear(split.data, split.bytes, x.data(), x.size(), tokens, 0, all.data(), count));
  CHECK_OK(bd_split_linear(split.data, split.bytes, x.data(), x.size(), tokens, 1, greatest.data(), count));
  CHECK(std::memcmp(expected.data(), all.data(), count * sizeof(float)) == 0);
  size_t left_out = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* const e = expected.data() + t * table.rows;
    const float* const g = greatest.data() + t * table.rows;
    if (!std::isnan(e[0])) CHECK(first_greatest(e, table.rows) == first_greatest(g, table.rows));
    for (int64_t r = 0; r < table.rows; ++r) {
      const bool same = std::memcmp(e + r, g + r, sizeof(float)) == 0;
      CHECK(same || g[r] == -kInfinity);
      left_out += !same;
    }
  }
  return static_cast<double>(left_out) / static_cast<double>(count);
}

std::vector<float> random_tokens(std::mt19937& random, int64_t tokens, int64_t cols) {
  std::vector<float> x(static_cast<size_t>(tokens * cols));
  for (float& v : x) v = std::normal_distribution<float>()(random);
  return x;
}

void test_shapes() {
  std::mt19937 random(1);
  for (const int64_t rows : {1, 15, 16, 17, 300, 4100}) {
    for (const int64_t cols : {1, 16, 33, 127, 128, 200, 576}) {
      for (const int64_t tokens : {1, 2, 4, 5, 11, 17}) {
        if (rows * cols * tokens > 1'000'000) continue;
        compare(random_table(random, rows, cols, 40), random_tokens(random, tokens, cols), tokens);
      }
    }
  }
}

void test_what_is_left_out() {
  std::mt19937 random(2);
  Table table = random_table(random, 2000, 256, 30);
  std::vector<float> x = random_tokens(random, 1, 256), norm(256, 1.0f);
  for (int64_t c = 0; c < 256; ++c) table.code(777, c) = static_cast<int8_t>(std::clamp(x[static_cast<size_t>(c)] * 30.0f, -127.0f, 127.0f));
  table.scales[777] = 0.02f;
  CHECK(compare(table, x, 1) > 0.9);
  // The columns of large activations are kept whole when the norm tells: less is read.
  for (size_t c = 0; c < 256; c += 16) x[c] *= 12.0f, norm[c] = 12.0f;
  CHECK(compare(table, x, 1, norm) > 0.5);
}

void test_equal_outputs() {
  std::mt19937 random(3);
  // All rows equal; the same in pairs; sums that differ and round to one float.
  Table equal(500, 200);
  for (int64_t r = 0; r < 500; ++r) {
    for (int64_t c = 0; c < 200; ++c) equal.code(r, c) = static_cast<int8_t>(c % 50 - 25);
  }
  compare(equal, random_tokens(random, 3, 200), 3);
  compare(equal, std::vector<float>(200, 0.0f), 1);
  Table pairs = random_table(random, 640, 200, 60);
  for (int64_t r = 1; r < 640; r += 2) {
    for (int64_t c = 0; c < 200; ++c) pairs.code(r, c) = pairs.code(r - 1, c);
    pairs.scales[static_cast<size_t>(r)] = pairs.scales[static_cast<size_t>(r - 1)];
  }
  compare(pairs, random_tokens(random, 4, 200), 4);
  Table near(64, 8192);
  for (int64_t r = 0; r < 64; ++r) {
    for (int64_t c = 0; c < 8192; ++c) near.code(r, c) = 127;
    near.code(r, r) = static_cast<int8_t>(127 - r % 3);
  }
  compare(near, std::vector<float>(8192, 1.0f), 1);
  compare(near, std::vector<float>(8192, -1.0f), 1);
}

void test_extremes() {
  std::mt19937 random(4);
  Table table = random_table(random, 400, 160, 127);
  const std::vector<float> x = random_tokens(random, 2, 160);
  table.scales[3] = 0.0f;
  table.scales[4] = 1e38f, table.scales[5] = 2e38f, table.scales[6] = 1e-44f;  // overflow; no normal number
  compare(table, x, 2);
  std::fill(table.scales.begin(), table.scales.end(), 1e38f);
  compare(table, x, 2);
  std::fill(table.scales.begin(), table.scales.end(), 0.0f);
  compare(table, x, 2);
  std::fill(table.scales.begin(), table.scales.end(), 0.01f);
  std::vector<float> odd = x;
  odd[5] = std::numeric_limits<float>::quiet_NaN();
  compare(table, odd, 2);
  odd[5] = kInfinity;
  compare(table, odd, 2);
  odd[5] = 3e38f;
  compare(table, odd, 2);
  std::fill(odd.begin(), odd.end(), 1e-30f);
  compare(table, odd, 2);
  // Steps of every size, and columns alike in all rows but one.
  for (int64_t r = 0; r < 400; ++r) {
    for (int64_t c = 0; c < 160; ++c) table.code(r, c) = static_cast<int8_t>(std::uniform_int_distribution<int>(-r % 128, (2 * r) % 128)(random));
  }
  compare(table, x, 2);
  Table wide(3, BD_MAX_COLS);
  for (int64_t c = 0; c < BD_MAX_COLS; ++c) wide.code(0, c) = 127, wide.code(1, c) = -127, wide.code(2, c) = static_cast<int8_t>(c % 2 ? 127 : 126);
  compare(wide, std::vector<float>(static_cast<size_t>(BD_MAX_COLS), 1.0f), 1);
}

void test_rows_in_stretches() {
  std::mt19937 random(7);
  for (const int64_t rows : {1, 16, 40, 100}) {
    const Table table = random_table(random, rows, 150, 50);
    const Buffer whole = table.split(table.int8());
    for (const int64_t step : {16, 48, 112}) {
      Buffer split(whole.bytes);
      CHECK_OK(table.begin(table.int8(), {}, split));
      // In any order.
      for (int64_t from = (rows - 1) / step * step; from >= 0; from -= step) {
        const Buffer stretch = table.int8(from, std::min(rows, from + step));
        CHECK_OK(bd_split_pack_rows(stretch.data, stretch.bytes, from, split.data, split.bytes));
      }
      CHECK(std::memcmp(split.data, whole.data, whole.bytes) == 0);
    }
  }
  // Another sample chooses other columns, and changes no output.
  const Table table = random_table(random, 64, 150, 50);
  const Buffer packed = table.int8();
  const std::vector<float> x = random_tokens(random, 3, 150);
  std::vector<float> expected(3 * 64), out(3 * 64);
  CHECK_OK(bd_linear(packed.data, packed.bytes, x.data(), x.size(), BD_FLOAT32, 3, nullptr, 0, 0.0f, nullptr, 0, expected.data(), expected.size()));
  Buffer split(table.split(packed).bytes);
  CHECK_OK(table.begin(table.int8(5, 6), {}, split));
  CHECK_OK(bd_split_pack_rows(packed.data, packed.bytes, 0, split.data, split.bytes));
  CHECK_OK(bd_split_linear(split.data, split.bytes, x.data(), x.size(), 3, 0, out.data(), out.size()));
  CHECK(std::memcmp(expected.data(), out.data(), out.size() * sizeof(float)) == 0);
}

void test_arguments() {
  std::mt19937 random(5);
  const Table table = random_table(random, 20, 130, 50);
  const Buffer packed = table.int8();
  Buffer split = table.split(packed);
  const std::vector<float> x = random_tokens(random, 1, 130);
  std::vector<float> out(20), norm(130, 1.0f);
  size_t bytes;
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    CHECK_STATUS(bd_split_size(bad, 4, &bytes), BD_ERROR_SHAPE);
    CHECK_STATUS(bd_split_size(4, bad, &bytes), BD_ERROR_SHAPE);
  }
  CHECK_STATUS(bd_split_size(4, 4, nullptr), BD_ERROR_NULL_POINTER);
  const auto begin = [&](const Buffer& sample, size_t sample_bytes, const float* weight, size_t count, uint8_t* data, size_t size) {
    return bd_split_begin(20, sample.data, sample_bytes, weight, count, data, size);
  };
  Buffer begun(split.bytes);
  CHECK_OK(begin(packed, packed.bytes, norm.data(), 130, begun.data, begun.bytes));
  CHECK_STATUS(bd_split_begin(20, nullptr, packed.bytes, nullptr, 0, begun.data, begun.bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_split_begin(0, packed.data, packed.bytes, nullptr, 0, begun.data, begun.bytes), BD_ERROR_SHAPE);
  CHECK_STATUS(begin(packed, packed.bytes - 1, nullptr, 0, begun.data, begun.bytes), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(begin(packed, packed.bytes, norm.data(), 129, begun.data, begun.bytes), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(begin(packed, packed.bytes, nullptr, 130, begun.data, begun.bytes), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(begin(packed, packed.bytes, nullptr, 0, nullptr, begun.bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(begin(packed, packed.bytes, nullptr, 0, begun.data + 1, begun.bytes), BD_ERROR_ALIGNMENT);
  CHECK_STATUS(begin(packed, packed.bytes, nullptr, 0, begun.data, begun.bytes - 64), BD_ERROR_BUFFER_SIZE);
  norm[3] = kInfinity;
  CHECK_STATUS(begin(packed, packed.bytes, norm.data(), 130, begun.data, begun.bytes), BD_ERROR_SCALE);
  const auto rows = [&](const Buffer& stretch, int64_t first) {
    return bd_split_pack_rows(stretch.data, stretch.bytes, first, begun.data, begun.bytes);
  };
  CHECK_STATUS(rows(table.int8(16, 20), 0), BD_ERROR_SHAPE);  // four rows in the middle
  CHECK_STATUS(rows(table.int8(4, 20), 4), BD_ERROR_SHAPE);
  CHECK_STATUS(rows(table.int8(0, 16), 16), BD_ERROR_SHAPE);
  CHECK_STATUS(rows(packed, -16), BD_ERROR_SHAPE);
  CHECK_STATUS(rows(random_table(random, 16, 129, 50).int8(), 0), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_split_pack_rows(packed.data, packed.bytes, 0, nullptr, begun.bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_split_pack_rows(packed.data, packed.bytes, 0, begun.data, begun.bytes - 64), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(bd_split_pack_rows(begun.data, begun.bytes, 0, begun.data, begun.bytes), BD_ERROR_HEADER);
  Table negative = table;
  negative.scales[7] = -0.01f;
  CHECK_STATUS(rows(negative.int8(), 0), BD_ERROR_SCALE);
  const auto linear = [&](size_t x_count, int64_t tokens, size_t out_count) {
    return bd_split_linear(split.data, split.bytes, x.data(), x_count, tokens, 1, out.data(), out_count);
  };
  CHECK_OK(linear(130, 1, 20));
  CHECK_STATUS(linear(129, 1, 20), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(linear(130, 0, 20), BD_ERROR_SHAPE);
  CHECK_STATUS(linear(130, 1, 21), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(bd_split_linear(split.data, split.bytes, nullptr, 130, 1, 1, out.data(), 20), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_split_linear(split.data, split.bytes, x.data(), 130, 1, 1, nullptr, 20), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_split_linear(packed.data, packed.bytes, x.data(), 130, 1, 1, out.data(), 20), BD_ERROR_HEADER);
  CHECK_STATUS(bd_split_linear(split.data, 63, x.data(), 130, 1, 1, out.data(), 20), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(bd_split_linear(split.data, split.bytes - 64, x.data(), 130, 1, 1, out.data(), 20), BD_ERROR_BUFFER_SIZE);
  int32_t column = 130;
  std::memcpy(split.data + BD_ALIGNMENT, &column, sizeof column);
  CHECK_STATUS(linear(130, 1, 20), BD_ERROR_INDEX);
}

// Damage changes results; a sanitizer says whether it does more.
void test_damage() {
  std::mt19937 random(6);
  const Table table = random_table(random, 70, 150, 50);
  const std::vector<float> x = random_tokens(random, 6, 150);
  std::vector<float> out(6 * 70);
  const Buffer packed = table.int8();
  for (int i = 0; i < 100; ++i) {
    Buffer split = table.split(packed);
    for (int n = 0; n < 8; ++n) split.data[random() % (i % 2 ? split.bytes : 2048)] = static_cast<uint8_t>(random());
    const int64_t tokens = i % 6 + 1;
    bd_split_linear(split.data, split.bytes, x.data(), static_cast<size_t>(150 * tokens), tokens, i % 3 != 0, out.data(), static_cast<size_t>(70 * tokens));
  }
}

}  // namespace

int main() {
  for (const char* const* isa = bd_supported_isas(); *isa != nullptr; ++isa) {
    CHECK_OK(bd_set_isa(*isa));
    for (const int threads : {1, 3}) {
      CHECK_OK(bd_set_num_threads(threads));
      test_equal_outputs();
      test_extremes();
      test_what_is_left_out();
    }
    test_shapes();
    test_damage();
  }
  test_rows_in_stretches();
  test_arguments();
  std::printf("split: ok\n");
}
