// Every argument check of the ABI, each by one wrong argument in an otherwise right call.
#include <limits>

#include "reference.h"

namespace {

using test::Case;
using test::Packed;
using test::random_case;

constexpr int64_t kRows = 20, kCols = 70, kTokens = 2;

void test_strings() {
  CHECK(bd_abi_version() == BD_ABI_VERSION);
  CHECK(bd_version()[0] != '\0');
  for (int status = BD_OK; status <= BD_ERROR_MODEL; ++status) {
    CHECK(std::strcmp(bd_strerror(status), bd_strerror(-1)) != 0);
  }
  CHECK_STATUS(bd_set_isa("no such thing"), BD_ERROR_ISA);
  CHECK_STATUS(bd_set_isa(nullptr), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_get_isa(nullptr), BD_ERROR_NULL_POINTER);
  const char* name = nullptr;
  CHECK_OK(bd_get_isa(&name));
  CHECK(std::strcmp(name, bd_supported_isas()[0]) == 0);
  CHECK_STATUS(bd_set_num_threads(0), BD_ERROR_THREADS);
  CHECK_STATUS(bd_set_num_threads(BD_MAX_THREADS + 1), BD_ERROR_THREADS);
}

void test_sizes() {
  size_t bytes;
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, huge, std::numeric_limits<int64_t>::min()}) {
    CHECK_STATUS(bd_ternary_packed_size(bad, 4, 0, 1, &bytes), BD_ERROR_SHAPE);
    CHECK_STATUS(bd_ternary_packed_size(4, bad, 0, 1, &bytes), BD_ERROR_SHAPE);
    CHECK_STATUS(bd_int8_packed_size(bad, 4, &bytes), BD_ERROR_SHAPE);
    CHECK_STATUS(bd_int8_packed_size(4, bad, &bytes), BD_ERROR_SHAPE);
    CHECK_STATUS(bd_int4_packed_size(bad, 4, &bytes), BD_ERROR_SHAPE);
    CHECK_STATUS(bd_int4_packed_size(4, bad, &bytes), BD_ERROR_SHAPE);
  }
  for (const int64_t group : {int64_t{1}, int64_t{32}, int64_t{63}, int64_t{256}, int64_t{-64}, huge}) {
    CHECK_STATUS(bd_ternary_packed_size(4, 256, group, 4, &bytes), BD_ERROR_ARGUMENT);
  }
  for (const size_t scales : {size_t{0}, size_t{2}, size_t{5}, std::numeric_limits<size_t>::max()}) {
    CHECK_STATUS(bd_ternary_packed_size(4, 256, 0, scales, &bytes), BD_ERROR_SHAPE);
  }
  CHECK_STATUS(bd_ternary_packed_size(4, 256, 64, 1, &bytes), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_ternary_packed_size(4, 256, 0, 1, nullptr), BD_ERROR_NULL_POINTER);
  CHECK_OK(bd_ternary_packed_size(BD_MAX_ROWS, BD_MAX_COLS, 64, static_cast<size_t>(BD_MAX_ROWS * BD_MAX_COLS / 64),
                                  &bytes));
}

// Tables: a right call in two stretches, and each argument wrong once.
void test_table_pack() {
  constexpr int64_t rows = 20, cols = 70;
  std::vector<float> table(rows * cols, 0.5f);
  table[3] = -1.0f;
  size_t bytes;
  CHECK_OK(bd_int4_packed_size(rows, cols, &bytes));
  Packed packed(bytes);
  const auto pack = [&](int format, const void* data, size_t data_bytes, int kind, int64_t first, int64_t count, size_t size) {
    return bd_table_pack_rows(format, data, data_bytes, kind, rows, cols, first, count, packed.data(), size);
  };
  constexpr size_t row = cols * sizeof(float);
  const float* const data = table.data();
  CHECK_STATUS(pack(BD_INT4, data + 16 * cols, 4 * row, BD_TABLE_FLOAT32, 16, 4, bytes), BD_ERROR_HEADER);  // not begun
  CHECK_OK(pack(BD_INT4, data, 16 * row, BD_TABLE_FLOAT32, 0, 16, bytes));
  CHECK_STATUS(pack(BD_INT8, data + 16 * cols, 4 * row, BD_TABLE_FLOAT32, 16, 4, bytes), BD_ERROR_HEADER);  // begun otherwise
  CHECK_OK(pack(BD_INT4, data + 16 * cols, 4 * row, BD_TABLE_FLOAT32, 16, 4, bytes));
  std::vector<float> out(cols);
  const int64_t last = rows - 1;
  CHECK_OK(bd_embedding(packed.data(), bytes, &last, 1, out.data(), out.size()));
  for (const float value : out) CHECK(value == 0.5f);
  CHECK_STATUS(pack(BD_TERNARY, data, 16 * row, BD_TABLE_FLOAT32, 0, 16, bytes), BD_ERROR_ARGUMENT);
  CHECK_STATUS(pack(BD_INT4, data, 16 * row, BD_TABLE_PACKED, 0, 16, bytes), BD_ERROR_ARGUMENT);
  CHECK_STATUS(pack(BD_INT4, nullptr, 16 * row, BD_TABLE_FLOAT32, 0, 16, bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(pack(BD_INT4, data, 16 * row - 1, BD_TABLE_FLOAT32, 0, 16, bytes), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(pack(BD_INT4, data, 16 * row, BD_TABLE_FLOAT32, 0, 16, bytes - 1), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(pack(BD_INT4, reinterpret_cast<const char*>(data) + 1, 16 * row, BD_TABLE_FLOAT32, 0, 16, bytes), BD_ERROR_ALIGNMENT);
  CHECK_STATUS(pack(BD_INT4, data, 8 * row, BD_TABLE_FLOAT32, 8, 8, bytes), BD_ERROR_SHAPE);
  CHECK_STATUS(pack(BD_INT4, data, 10 * row, BD_TABLE_FLOAT32, 0, 10, bytes), BD_ERROR_SHAPE);
  CHECK_STATUS(pack(BD_INT4, data, 20 * row, BD_TABLE_FLOAT32, 16, 20, bytes), BD_ERROR_SHAPE);
  CHECK_STATUS(pack(BD_INT4, data, 16 * row, BD_TABLE_FLOAT32, INT64_MIN, 16, bytes), BD_ERROR_SHAPE);
  table[40] = std::numeric_limits<float>::quiet_NaN();
  CHECK_STATUS(pack(BD_INT4, data, 20 * row, BD_TABLE_FLOAT32, 0, 20, bytes), BD_ERROR_SCALE);
  bd_weight_info info;
  CHECK_STATUS(bd_weight_describe(packed.data(), bytes, &info), BD_ERROR_HEADER);  // what failed is no weight
  table[40] = 1e30f;
  CHECK_STATUS(pack(BD_INT4, data, 20 * row, BD_TABLE_FLOAT32, 0, 20, bytes), BD_ERROR_ARGUMENT);
}

void test_pack(test::Random& random) {
  const Case made = random_case(random, BD_TERNARY, kRows, kCols, 1);
  std::vector<uint8_t> storage = made.ternary_storage();
  size_t bytes;
  CHECK_OK(bd_ternary_packed_size(kRows, kCols, 0, kRows, &bytes));
  Packed packed(bytes + BD_ALIGNMENT);
  const auto pack = [&](const uint8_t* weight, size_t weight_bytes, const std::vector<float>& scale, void* to,
                        size_t size) {
    return bd_ternary_pack(weight, weight_bytes, kRows, kCols, scale.data(), scale.size(), 0, to, size);
  };
  uint8_t* to = static_cast<uint8_t*>(packed.data());
  CHECK_OK(pack(storage.data(), storage.size(), made.scale, to, bytes));
  CHECK_STATUS(pack(nullptr, storage.size(), made.scale, to, bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(pack(storage.data(), storage.size(), made.scale, nullptr, bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(pack(storage.data(), storage.size() - 1, made.scale, to, bytes), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(pack(storage.data(), storage.size(), made.scale, to, bytes - 1), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(pack(storage.data(), storage.size(), made.scale, to + 1, bytes), BD_ERROR_ALIGNMENT);
  const std::vector<float> few(kRows - 1, 1.0f), bad(kRows, NAN), infinite(kRows, INFINITY);
  CHECK_STATUS(pack(storage.data(), storage.size(), few, to, bytes), BD_ERROR_SHAPE);
  CHECK_STATUS(pack(storage.data(), storage.size(), bad, to, bytes), BD_ERROR_SCALE);
  CHECK_STATUS(pack(storage.data(), storage.size(), infinite, to, bytes), BD_ERROR_SCALE);
  // Code 3 anywhere is refused, and what was written is then no weight.
  for (const size_t at : {size_t{0}, size_t{kCols - 1}, storage.size() - 1}) {
    for (const int field : {0, 1, 2, 3}) {
      std::vector<uint8_t> damaged = storage;
      damaged[at] = static_cast<uint8_t>(damaged[at] | 3 << (2 * field));
      CHECK_STATUS(pack(damaged.data(), damaged.size(), made.scale, to, bytes), BD_ERROR_CODE);
      bd_weight_info info;
      CHECK_STATUS(bd_weight_describe(to, bytes, &info), BD_ERROR_HEADER);
    }
  }
  // In padding rows (17 rows are stored as 5 x 4) any code is fine.
  const Case odd = random_case(random, BD_TERNARY, 17, kCols, 0);
  std::vector<uint8_t> padded = odd.ternary_storage();
  padded.back() |= 0xc0;
  CHECK_OK(bd_ternary_packed_size(17, kCols, 0, 1, &bytes));
  CHECK_OK(bd_ternary_pack(padded.data(), padded.size(), 17, kCols, odd.scale.data(), 1, 0, to, bytes));

  const std::vector<int8_t> int8(kRows * kCols, -128);
  CHECK_OK(bd_int8_packed_size(kRows, kCols, &bytes));
  Packed int8_packed(bytes);
  CHECK_STATUS(bd_int8_pack(int8.data(), int8.size(), kRows, kCols, made.scale.data(), kRows, int8_packed.data(), bytes),
               BD_ERROR_CODE);
  const std::vector<uint16_t> half(kRows * 3, 0x7c00);  // infinity
  const std::vector<uint8_t> int4(kRows * kCols / 2);
  CHECK_OK(bd_int4_packed_size(kRows, kCols, &bytes));
  Packed int4_packed(bytes);
  CHECK_STATUS(bd_int4_pack(int4.data(), int4.size(), kRows, kCols, half.data(), half.size(), int4_packed.data(), bytes),
               BD_ERROR_SCALE);
}

void test_dense(test::Random& random) {
  const Packed two_bits = random_case(random, BD_TERNARY, kRows, 200, 1).pack();
  size_t bytes = 0;
  CHECK_OK(bd_ternary_dense_size(two_bits.data(), two_bits.size(), &bytes));
  // 13 chunks of 16 columns in 8 + 3 vectors instead of 13.
  CHECK(two_bits.size() - bytes == size_t{(kRows + 15) / 16} * 2 * 64);
  const Packed dense(bytes);
  const auto pack = [&](const Packed& from, void* to, size_t size) {
    return bd_ternary_dense_pack(from.data(), from.size(), to, size);
  };
  CHECK_OK(pack(two_bits, dense.data(), bytes));
  bd_weight_info info;
  CHECK_OK(bd_weight_describe(dense.data(), bytes, &info));
  CHECK(info.format == BD_TERNARY_DENSE && info.rows == kRows && info.cols == 200);
  CHECK_STATUS(bd_ternary_dense_size(two_bits.data(), two_bits.size(), nullptr), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(bd_ternary_dense_size(dense.data(), bytes, &bytes), BD_ERROR_ARGUMENT);  // it is one already
  CHECK_STATUS(pack(dense, dense.data(), bytes), BD_ERROR_ARGUMENT);
  CHECK_STATUS(pack(two_bits, nullptr, bytes), BD_ERROR_NULL_POINTER);
  CHECK_STATUS(pack(two_bits, dense.data(), bytes - 64), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(pack(two_bits, static_cast<uint8_t*>(dense.data()) + 1, bytes), BD_ERROR_ALIGNMENT);
  // Scales of groups, another format, few columns: nothing to gain, or nothing to do.
  const Packed groups = random_case(random, BD_TERNARY, kRows, 200, 2).pack();
  CHECK_OK(bd_ternary_dense_size(groups.data(), groups.size(), &bytes));
  CHECK(bytes == 0);
  CHECK_STATUS(pack(groups, dense.data(), dense.size()), BD_ERROR_ARGUMENT);
  const Packed narrow = random_case(random, BD_TERNARY, kRows, 64, 1).pack();
  CHECK_OK(bd_ternary_dense_size(narrow.data(), narrow.size(), &bytes));
  CHECK(bytes == 0);
  const Packed int8 = random_case(random, BD_INT8, kRows, 200, 1).pack();
  CHECK_STATUS(bd_ternary_dense_size(int8.data(), int8.size(), &bytes), BD_ERROR_ARGUMENT);
  // As files hold it: weights 2, 1, 0, 2, 1, 0, 2 (plus one) in the digits (2, 0, 1, 2, -) and (1, 2, 0, -, -).
  const uint8_t stored[] = {187, 143};
  uint8_t weight[3] = {};
  CHECK_OK(bd_ternary_from_dense(stored, 2, 7, 1, weight, 2));
  CHECK(weight[0] == 146 && weight[1] == 9 && weight[2] == 0);
  const uint8_t none[] = {1, 143};
  CHECK_OK(bd_ternary_from_dense(none, 2, 7, 1, weight, 2));
  CHECK((weight[0] & 3) == 3);
  CHECK_STATUS(bd_ternary_from_dense(stored, 1, 7, 1, weight, 2), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(bd_ternary_from_dense(stored, 2, 7, 1, weight, 3), BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(bd_ternary_from_dense(stored, 2, 0, 1, weight, 2), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_ternary_from_dense(stored, 2, 7, INT64_MAX, weight, 2), BD_ERROR_SHAPE);
  CHECK_STATUS(bd_ternary_from_dense(nullptr, 2, 7, 1, weight, 2), BD_ERROR_NULL_POINTER);
  int fast = -1;
  CHECK_OK(bd_ternary_dense_is_fast(&fast));
  CHECK(fast == 0 || fast == 1);
  CHECK_STATUS(bd_ternary_dense_is_fast(nullptr), BD_ERROR_NULL_POINTER);
}

struct LinearCall {
  const void* packed;
  size_t packed_bytes;
  const void* x;
  size_t x_count = kTokens * kCols;
  int x_dtype = BD_FLOAT32;
  int64_t tokens = kTokens;
  const float* norm;
  size_t norm_count = kCols;
  float eps = 1e-6f;
  const float* bias;
  size_t bias_count = kRows;
  float* out;
  size_t out_count = kTokens * kRows;

  int operator()() const {
    return bd_linear(packed, packed_bytes, x, x_count, x_dtype, tokens, norm, norm_count, eps, bias, bias_count, out,
                     out_count);
  }
};

void test_linear(test::Random& random) {
  const Packed packed = random_case(random, BD_TERNARY, kRows, kCols, 2).pack();
  const std::vector<float> x(kTokens * kCols, 1.0f), norm(kCols, 1.0f), bias(kRows);
  std::vector<float> out(kTokens * kRows);
  LinearCall good;
  good.packed = packed.data();
  good.packed_bytes = packed.size();
  good.x = x.data();
  good.norm = norm.data();
  good.bias = bias.data();
  good.out = out.data();
  CHECK_OK(good());
  const auto fails = [&](int status, auto change) {
    LinearCall call = good;
    change(call);
    CHECK_STATUS(call(), status);
  };
  fails(BD_ERROR_NULL_POINTER, [](LinearCall& c) { c.packed = nullptr; });
  fails(BD_ERROR_NULL_POINTER, [](LinearCall& c) { c.x = nullptr; });
  fails(BD_ERROR_NULL_POINTER, [](LinearCall& c) { c.out = nullptr; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { --c.packed_bytes; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { c.packed_bytes = 63; });
  fails(BD_ERROR_ALIGNMENT, [](LinearCall& c) { c.packed = static_cast<const uint8_t*>(c.packed) + 4; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { ++c.x_count; });
  fails(BD_ERROR_ARGUMENT, [](LinearCall& c) { c.x_dtype = 2; });
  fails(BD_ERROR_SHAPE, [](LinearCall& c) { c.tokens = 0; });
  fails(BD_ERROR_SHAPE, [](LinearCall& c) { c.tokens = std::numeric_limits<int64_t>::max(); });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { --c.norm_count; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { c.norm = nullptr; });
  fails(BD_ERROR_ARGUMENT, [](LinearCall& c) { c.eps = NAN; });
  fails(BD_ERROR_ARGUMENT, [](LinearCall& c) { c.eps = -1.0f; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { ++c.bias_count; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { c.bias = nullptr; });
  fails(BD_ERROR_BUFFER_SIZE, [](LinearCall& c) { --c.out_count; });

  std::vector<int8_t> x_q(kTokens * kCols);
  std::vector<int32_t> acc(kTokens * kRows * 2);
  CHECK_OK(bd_matmul_int32(packed.data(), packed.size(), x_q.data(), x_q.size(), kTokens, acc.data(), acc.size()));
  CHECK_STATUS(bd_matmul_int32(packed.data(), packed.size(), x_q.data(), x_q.size(), kTokens, acc.data(), acc.size() - 1),
               BD_ERROR_BUFFER_SIZE);
  CHECK_STATUS(bd_matmul_int32(packed.data(), packed.size(), nullptr, x_q.size(), kTokens, acc.data(), acc.size()),
               BD_ERROR_NULL_POINTER);
  std::vector<float> row(kCols);
  for (const int64_t index : {int64_t{-1}, kRows, std::numeric_limits<int64_t>::min()}) {
    CHECK_STATUS(bd_embedding(packed.data(), packed.size(), &index, 1, row.data(), row.size()), BD_ERROR_INDEX);
  }
}

}  // namespace

int main() {
  test::Random random(3);
  test_strings();
  test_sizes();
  test_table_pack();
  test_pack(random);
  test_dense(random);
  test_linear(random);
  std::printf("abi: ok\n");
  return 0;
}
