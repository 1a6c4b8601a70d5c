#include "kernels/dense_storage.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/matrix.h"

namespace bitdistill {
namespace {

constexpr int kWeightsPerByte = 5, kFields = 4;
constexpr int64_t kTaskBytes = 1 << 16;

// ---- Vectors of bytes: a language extension of GCC and Clang ---------------------------------------------------------
// No instruction set multiplies bytes, and all add and compare them: 3^k times a byte is a few additions, and a digit is the
// number of the two limits that what remains of the byte reaches.

constexpr int kVector = 16;
typedef uint8_t Bytes __attribute__((vector_size(kVector)));
typedef int8_t Signed __attribute__((vector_size(kVector)));
typedef uint16_t Pairs __attribute__((vector_size(kVector)));

inline Bytes load_bytes(const uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Bytes triple(Bytes x) { return x + x + x; }

// Where an unsigned byte is at least `limit`, all bits. (Signed comparisons are what SSE2 has.)
inline Bytes reaches(Bytes x, int limit) { return (Bytes)((Signed)(x ^ 0x80) > static_cast<int8_t>(limit - 1 - 128)); }

// ---- Unpacking -------------------------------------------------------------------------------------------------------

constexpr int kNone = -1;

// Digit K of each byte behind the bits of `out`.
template <int K>
inline Bytes add_digit(Bytes out, Bytes x) {
  out += out;
  out += out;
  if (K == kNone) return out;
  Bytes rest = x;
  for (int k = 0; k < K; ++k) rest = triple(rest);
  out = out - reaches(rest, 86) - reaches(rest, 171);  // (a mask is -1)
  if (K > 0) return out;
  // 3 where the byte stands for no weights: 243 or more remains of it after five digits. 243 x is -13 x, modulo 256.
  const Bytes two = x + x, four = two + two;
  const Bytes thirteen = x + four + four + four;
  return out | ((Bytes)((Signed)(thirteen + 127) < static_cast<int8_t>(13 - 128)) & 3);
}

// The digits of four fields, from runs of bytes, to `count` bytes.
template <int K0, int K1, int K2, int K3>
void unpack_run(const uint8_t* const in[kFields], int64_t count, uint8_t* out) {
  const auto unpack = [](Bytes a, Bytes b, Bytes c, Bytes d) {
    return add_digit<K0>(add_digit<K1>(add_digit<K2>(add_digit<K3>(Bytes{}, d), c), b), a);
  };
  const uint8_t *const a = in[0], *const b = in[1], *const c = in[2], *const d = in[3];
  int64_t i = 0;
  for (; i + kVector <= count; i += kVector) {
    const Bytes v = unpack(load_bytes(a + i), load_bytes(b + i), load_bytes(c + i), load_bytes(d + i));
    std::memcpy(out + i, &v, sizeof v);
  }
  if (i == count) return;
  uint8_t rest[kFields][kVector] = {};
  const size_t size = static_cast<size_t>(count - i);
  for (int field = 0; field < kFields; ++field) std::memcpy(rest[field], in[field] + i, size);
  const Bytes v = unpack(load_bytes(rest[0]), load_bytes(rest[1]), load_bytes(rest[2]), load_bytes(rest[3]));
  std::memcpy(out + i, &v, size);
}

using UnpackFunction = void (*)(const uint8_t* const[kFields], int64_t, uint8_t*);

// One field at a time, for small matrices and the last bytes of a large one.
template <int K>
constexpr UnpackFunction kAlone[kFields] = {unpack_run<K, kNone, kNone, kNone>, unpack_run<kNone, K, kNone, kNone>,
                                            unpack_run<kNone, kNone, K, kNone>, unpack_run<kNone, kNone, kNone, K>};

UnpackFunction alone(int field, int digit) {
  switch (digit) {
    case 0: return kAlone<0>[field];
    case 1: return kAlone<1>[field];
    case 2: return kAlone<2>[field];
    case 3: return kAlone<3>[field];
    default: return kAlone<4>[field];
  }
}

// Four fields have four of the five digits, in order.
UnpackFunction together(const int digits[kFields]) {
  constexpr UnpackFunction kWithout[kWeightsPerByte] = {unpack_run<1, 2, 3, 4>, unpack_run<0, 2, 3, 4>, unpack_run<0, 1, 3, 4>,
                                                        unpack_run<0, 1, 2, 4>, unpack_run<0, 1, 2, 3>};
  for (int without = 0; without < kWeightsPerByte; ++without) {
    bool equal = true;
    for (int field = 0; field < kFields; ++field) equal &= digits[field] == field + (field >= without ? 1 : 0);
    if (equal) return kWithout[without];
  }
  return nullptr;
}

// Bytes [first, last) of the packed form.
void unpack_bytes(const uint8_t* dense, int64_t length, int64_t stride, int64_t size, int64_t first, int64_t last,
                  uint8_t* weight) {
  for (int64_t at = first; at < last;) {
    // As far as every field stays in its run of bytes, in which it has one digit.
    int64_t stop = last;
    const uint8_t* in[kFields];
    int digits[kFields];
    for (int field = 0; field < kFields; ++field) {
      const int64_t place = field * stride + at;
      digits[field] = place < size ? static_cast<int>(place / length) : kNone;
      in[field] = dense + (place < size ? place % length : 0);
      if (place < size) stop = std::min(stop, at + std::min(length - place % length, size - place));
    }
    const UnpackFunction unpack = together(digits);
    if (unpack != nullptr) {
      unpack(in, stop - at, weight + at);
    } else {
      std::memset(weight + at, 0, static_cast<size_t>(stop - at));
      for (int field = 0; field < kFields; ++field) {
        if (digits[field] == kNone) continue;
        const uint8_t* const same[kFields] = {in[field], in[field], in[field], in[field]};
        uint8_t part[kTaskBytes];
        alone(field, digits[field])(same, stop - at, part);
        for (int64_t i = 0; i < stop - at; ++i) weight[at + i] = static_cast<uint8_t>(weight[at + i] | part[i]);
      }
    }
    at = stop;
  }
}

// ---- Packing ---------------------------------------------------------------------------------------------------------

// ceil(v * 256 / 243) of a number v of five digits.
struct Fractions {
  uint8_t of[256] = {};
  constexpr Fractions() {
    constexpr int kNumbers = 243;
    for (int v = 0; v < kNumbers; ++v) of[v] = static_cast<uint8_t>((v * 256 + kNumbers - 1) / kNumbers);
  }
};

constexpr Fractions kFractions;

// Where the weights of one digit of a run of bytes are. Null: there are none, and the digit is zero.
struct Digit {
  const uint8_t* in;
  int shift;
};

// `count` numbers of five digits, as they are stored. Whether every digit is one.
bool pack_run(const Digit digits[kWeightsPerByte], int64_t count, uint8_t* out) {
  Bytes invalid = {};
  for (int64_t at = 0; at < count; at += kVector) {
    const size_t size = static_cast<size_t>(std::min<int64_t>(kVector, count - at));
    Bytes number = {};
    for (int k = 0; k < kWeightsPerByte; ++k) {
      number = triple(number);
      if (digits[k].in == nullptr) continue;
      Bytes packed = {};
      if (size == kVector) packed = load_bytes(digits[k].in + at);
      else std::memcpy(&packed, digits[k].in + at, size);
      // (Pairs of bytes are shifted, which every instruction set can.)
      const Bytes digit = (Bytes)((Pairs)packed >> static_cast<uint16_t>(digits[k].shift)) & 3;
      invalid |= (digit + 1) & 4;
      number += digit;
    }
    uint8_t numbers[kVector];
    std::memcpy(numbers, &number, sizeof numbers);
    for (size_t i = 0; i < size; ++i) out[at + static_cast<int64_t>(i)] = kFractions.of[numbers[i]];
  }
  bool valid = true;
  for (int i = 0; i < kVector; ++i) valid &= invalid[i] == 0;
  return valid;
}

// Bytes [first, last) of the dense form.
bool pack_bytes(const uint8_t* weight, int64_t length, int64_t stride, int64_t size, int64_t first, int64_t last,
                uint8_t* dense) {
  bool valid = true;
  for (int64_t at = first; at < last;) {
    int64_t stop = last;  // as far as every digit stays in its field
    Digit digits[kWeightsPerByte];
    for (int k = 0; k < kWeightsPerByte; ++k) {
      const int64_t place = k * length + at;
      digits[k] = {place < size ? weight + place % stride : nullptr, static_cast<int>(2 * (place / stride))};
      if (place < size) stop = std::min(stop, at + std::min(stride - place % stride, size - place));
    }
    valid &= pack_run(digits, stop - at, dense + at);
    at = stop;
  }
  return valid;
}

}  // namespace

int64_t stored_dense_bytes(int64_t rows, int64_t cols) { return div_up(rows * cols, kWeightsPerByte); }

void unpack_stored_dense(const uint8_t* dense, int64_t rows, int64_t cols, uint8_t* weight) {
  const int64_t stride = div_up(rows, kFields) * cols;
  parallel_for(div_up(stride, kTaskBytes), [&](int64_t task) {
    const int64_t first = task * kTaskBytes, last = std::min(first + kTaskBytes, stride);
    unpack_bytes(dense, stored_dense_bytes(rows, cols), stride, rows * cols, first, last, weight);
  });
}

int pack_stored_dense(const uint8_t* weight, int64_t rows, int64_t cols, uint8_t* dense) {
  const int64_t length = stored_dense_bytes(rows, cols), stride = div_up(rows, kFields) * cols;
  std::atomic<bool> valid{true};
  parallel_for(div_up(length, kTaskBytes), [&](int64_t task) {
    const int64_t first = task * kTaskBytes, last = std::min(first + kTaskBytes, length);
    if (!pack_bytes(weight, length, stride, rows * cols, first, last, dense)) valid = false;
  });
  return valid ? BD_OK : BD_ERROR_CODE;
}

}  // namespace bitdistill
