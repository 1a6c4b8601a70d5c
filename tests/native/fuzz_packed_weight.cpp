// Fuzz target: whatever bytes stand where a weight should be, no function reads or writes out of bounds. Built for
// libFuzzer with clang, or with the driver below for a fixed number of deterministic inputs: fuzz_packed_weight [count].
#include "reference.h"

namespace {

// Takes values off the front of the input; zeros when it is used up.
struct Input {
  const uint8_t* data;
  size_t size;

  template <typename T>
  T take() {
    T value{};
    const size_t n = size < sizeof value ? size : sizeof value;
    if (n > 0) std::memcpy(&value, data, n);
    data += n;
    size -= n;
    return value;
  }
  // Mostly small, sometimes anything.
  int64_t take_size() {
    const uint8_t kind = take<uint8_t>();
    return kind < 250 ? kind % 70 : take<int64_t>();
  }
};

void use(const test::Packed& packed) {
  bd_weight_info info;
  if (bd_weight_describe(packed.data(), packed.size(), &info) != BD_OK) return;
  // A header that was accepted fits the buffer, so the sizes below are small too.
  for (const int64_t tokens : {1, 7}) {
    std::vector<float> x(static_cast<size_t>(tokens * info.cols), 1.5f), out(static_cast<size_t>(tokens * info.rows));
    std::vector<int8_t> x_q(x.size(), -128);
    std::vector<int32_t> acc(out.size() * static_cast<size_t>(info.groups));
    for (const char* const* isa = bd_supported_isas(); *isa != nullptr; ++isa) {
      CHECK_OK(bd_set_isa(*isa));
      CHECK_OK(bd_linear(packed.data(), packed.size(), x.data(), x.size(), BD_FLOAT32, tokens, nullptr, 0, 0.0f, nullptr,
                         0, out.data(), out.size()));
      CHECK_OK(bd_matmul_int32(packed.data(), packed.size(), x_q.data(), x_q.size(), tokens, acc.data(), acc.size()));
    }
  }
  const int64_t last = info.rows - 1;
  std::vector<float> row(static_cast<size_t>(info.cols));
  CHECK_OK(bd_embedding(packed.data(), packed.size(), &last, 1, row.data(), row.size()));
}

// Storage bytes through the packing functions.
void fuzz_pack(Input input) {
  const int format = input.take<uint8_t>() % 3;
  const int64_t rows = input.take_size(), cols = input.take_size();
  const int64_t group_size = std::vector<int64_t>{0, 64, 128, input.take_size()}[input.take<uint8_t>() % 4];
  const auto at_most = [](int64_t n) { return static_cast<size_t>(n < 0 ? 0 : n > 100000 ? 100000 : n); };
  const bool sane = rows > 0 && rows < 1000 && cols > 0 && cols < 1000;
  const int64_t width = format == BD_INT4 ? 32 : group_size > 0 ? group_size : cols;
  const size_t scale_count = !sane ? 3 : input.take<uint8_t>() % 4 == 0 ? 1 : at_most(rows * ((cols - 1) / width + 1));
  size_t storage_bytes = !sane ? 5 : at_most(format == BD_INT8 ? rows * cols
                                             : format == BD_INT4 ? rows * ((cols + 1) / 2) : (rows + 3) / 4 * cols);
  if (input.take<uint8_t>() % 16 == 0) ++storage_bytes;
  std::vector<uint8_t> storage(storage_bytes);
  const bool valid = input.take<uint8_t>() % 4 != 0;  // otherwise codes 3 and -128 occur
  for (uint8_t& byte : storage) {
    byte = input.take<uint8_t>();
    if (valid && format == BD_TERNARY) byte = static_cast<uint8_t>(byte & ~((byte >> 1) & 0x55));
    if (valid && format == BD_INT8 && byte == 0x80) byte = 0;
  }
  std::vector<float> scale(scale_count);
  for (float& s : scale) s = static_cast<float>(input.take<int8_t>());
  size_t bytes = 0;
  int status;
  if (format == BD_INT8) status = bd_int8_packed_size(rows, cols, &bytes);
  else if (format == BD_INT4) status = bd_int4_packed_size(rows, cols, &bytes);
  else status = bd_ternary_packed_size(rows, cols, group_size, scale_count, &bytes);
  if (status != BD_OK || bytes > (size_t{1} << 24)) bytes = 1024;
  const test::Packed packed(bytes);
  std::memset(packed.data(), 0, bytes);
  if (format == BD_INT8) {
    status = bd_int8_pack(reinterpret_cast<const int8_t*>(storage.data()), storage.size(), rows, cols, scale.data(),
                          scale.size(), packed.data(), bytes);
  } else if (format == BD_INT4) {
    std::vector<uint16_t> halves(scale_count);  // any bits: infinities too
    for (uint16_t& half : halves) half = input.take<uint16_t>();
    status = bd_int4_pack(storage.data(), storage.size(), rows, cols, halves.data(), halves.size(), packed.data(), bytes);
  } else {
    status = bd_ternary_pack(storage.data(), storage.size(), rows, cols, scale.data(), scale.size(), group_size,
                             packed.data(), bytes);
  }
  bd_weight_info info;
  if (status == BD_OK) CHECK_OK(bd_weight_describe(packed.data(), bytes, &info));
  use(packed);
}

// A packed weight that was damaged in memory, or bytes that never were one.
void fuzz_header(Input input) {
  test::Random random(input.take<uint8_t>());
  const bd_format format = static_cast<bd_format>(input.take<uint8_t>() % 4);
  const int64_t rows = 1 + input.take<uint8_t>() % 40, cols = 1 + input.take<uint8_t>() % 200;
  const test::Packed packed = test::random_case(random, format, rows, cols, input.take<uint8_t>() % 4).pack();
  uint8_t* bytes = static_cast<uint8_t*>(packed.data());
  while (input.size > 2) {
    const uint8_t where = input.take<uint8_t>();
    const size_t at = where % 2 == 0 ? where / 2 % 64 : input.take<uint16_t>() % packed.size();
    bytes[at] = input.take<uint8_t>();
  }
  use(packed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bd_set_num_threads(1);
  Input input{data, size};
  if (input.take<uint8_t>() % 2 == 0) fuzz_pack(input);
  else fuzz_header(input);
  return 0;
}

#if !defined(BITDISTILL_LIBFUZZER)
int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 5000;
  test::Random random(7);
  for (int i = 0; i < count; ++i) {
    // Short inputs for damaged headers (few bytes changed), long ones for storage.
    std::vector<uint8_t> input(random() % (i % 2 == 0 ? 2000 : 24));
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    if (!input.empty()) input[0] = static_cast<uint8_t>(i);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("fuzz: ok, %d inputs\n", count);
  return 0;
}
#endif
