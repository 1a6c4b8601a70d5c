#include "kernels/dense.h"

#include <chrono>
#include <cstring>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/activations.h"
#include "kernels/linear.h"

namespace bitdistill {
namespace {

// Of a byte with four codes of two bits (code 3, which no packed weight has, as 0), the place in DenseCode::bytes.
struct Places {
  uint8_t of[256] = {};
  constexpr Places() {
    for (int byte = 0; byte < 256; ++byte) {
      int place = 0;
      for (int k = 3; k >= 0; --k) place = 3 * place + ((byte >> (2 * k) & 3) == 3 ? 0 : byte >> (2 * k) & 3);
      of[byte] = static_cast<uint8_t>(place);
    }
  }
};

constexpr Places kPlaces;

void pack_panel(const uint8_t* in, int64_t chunks, uint8_t* out) {
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    const uint8_t* fifth = in + kDenseVectors * kVectorBytes;
    for (int j = 0; j < kDenseVectors; ++j, in += kVectorBytes, out += kVectorBytes) {
      for (int i = 0; i < kVectorBytes; ++i) {
        const int e = fifth[i] >> (2 * j) & 3;
        out[i] = kDenseCode.bytes[e == 3 ? 0 : e][kPlaces.of[in[i]]];
      }
    }
    in += kVectorBytes;
  }
  std::memcpy(out, in, static_cast<size_t>(chunks * kVectorBytes));
}

void unpack_panel(const uint8_t* in, int64_t chunks, uint8_t* out) {
  for (; chunks >= kDenseChunks; chunks -= kDenseChunks) {
    uint8_t* fifth = out + kDenseVectors * kVectorBytes;
    std::memset(fifth, 0, kVectorBytes);
    for (int j = 0; j < kDenseVectors; ++j, in += kVectorBytes, out += kVectorBytes) {
      for (int i = 0; i < kVectorBytes; ++i) {
        out[i] = kDenseCode.steps[in[i]];
        fifth[i] = static_cast<uint8_t>(fifth[i] | kDenseCode.fifth[in[i]] << (2 * j));
      }
    }
    out += kVectorBytes;
  }
  std::memcpy(out, in, static_cast<size_t>(chunks * kVectorBytes));
}

// ---- Whether it is fast ----------------------------------------------------------------------------------------------

// As wide as a projection. A stream of 4 MB at two bits for one token, which no second-level cache holds and most others do:
// what is not slower there gains more from memory. For several tokens, where arithmetic is the limit, a small part of it.
constexpr int64_t kRows = 6400, kFewRows = 640, kCols = 2560;
constexpr int kTokens = 10, kRounds = 16;
constexpr double kMostSlower = 1.03;

double seconds(const Kernels& kernels, const Matrix& matrix, QuantizedActivations& x, const Output& output) {
  const auto start = std::chrono::steady_clock::now();
  multiply_here(kernels, matrix, x, output);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool measure(const Kernels& kernels) {
  Matrix matrices[2];
  Layout layout;
  AlignedBuffer panels[2], scales, sums;
  for (int form = 0; form < 2; ++form) {
    if (describe_matrix(form == 0 ? BD_TERNARY : BD_TERNARY_DENSE, kRows, kCols, 0, 1, false, false, &matrices[form],
                        &layout) != BD_OK ||
        !panels[form].reserve(static_cast<size_t>(matrices[form].panels * matrices[form].panel_bytes))) {
      return false;
    }
    matrices[form].panel_data = panels[form].as<uint8_t>();
  }
  if (!scales.reserve(kPanelRows * sizeof(float)) || !sums.reserve(kTokens * kRows * sizeof(int32_t))) return false;
  for (int i = 0; i < kPanelRows; ++i) scales.as<float>()[i] = 1.0f;
  for (Matrix& matrix : matrices) matrix.scales = scales.as<float>();
  std::vector<int8_t> x(static_cast<size_t>(kTokens * kCols));
  uint32_t state = 1;
  const auto random = [&state] { return (state = state * 1664525u + 1013904223u) >> 24; };
  for (int8_t& value : x) value = static_cast<int8_t>(random());
  for (int64_t i = 0; i < matrices[0].panels * matrices[0].panel_bytes; ++i) {
    const uint32_t byte = random();
    panels[0].as<uint8_t>()[i] = static_cast<uint8_t>(byte & ~(byte >> 1 & 0x55u));
  }
  pack_dense(matrices[0], matrices[1], panels[1].as<uint8_t>());

  Output output;
  output.acc = sums.as<int32_t>();
  for (const int tokens : {1, 4, kernels.token_block < kTokens ? kernels.token_block : kTokens}) {
    QuantizedActivations activations;
    if (activations.assign(kernels, x.data(), tokens, kCols) != BD_OK) return false;
    for (Matrix& matrix : matrices) {
      matrix.rows = tokens == 1 ? kRows : kFewRows;
      matrix.panels = matrix.rows / kPanelRows;
    }
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < kRounds; ++round) {
      for (int form = 0; form < 2; ++form) {
        const double time = seconds(kernels, matrices[form], activations, output);
        if (time < best[form]) best[form] = time;
      }
    }
    if (best[1] > kMostSlower * best[0]) return false;
  }
  return true;
}

}  // namespace

void pack_dense(const Matrix& matrix, const Matrix& dense, uint8_t* panel_data) {
  parallel_for(matrix.panels, [&](int64_t p) {
    pack_panel(matrix.panel_data + p * matrix.panel_bytes, matrix.chunks(), panel_data + p * dense.panel_bytes);
  });
}

void unpack_dense(const Matrix& dense, const Matrix& matrix, uint8_t* panel_data) {
  parallel_for(dense.panels, [&](int64_t p) {
    unpack_panel(dense.panel_data + p * dense.panel_bytes, dense.chunks(), panel_data + p * matrix.panel_bytes);
  });
}

int describe_in_form(const Matrix& matrix, bd_format form, Matrix* other, Layout* layout) {
  return describe_matrix(form, matrix.rows, matrix.cols, 0, matrix.tensor_scale ? 1 : static_cast<size_t>(matrix.rows),
                         matrix.row_offset != nullptr, false, other, layout);
}

MultiplyFunction dense_multiply(const Kernels& kernels) {
  static const bool runs = avx512vbmi_dense_multiply() != nullptr && can_run_avx512vbmi();
  // (Its tiles are those of these kernels, and whoever asked for another instruction set gets none of this one.)
  return runs && std::strcmp(kernels.name, "avx512vnni") == 0 ? avx512vbmi_dense_multiply() : nullptr;
}

bool dense_is_fast(const Kernels& kernels) {
  if (dense_multiply(kernels) == nullptr) return false;
  static const bool fast = measure(kernels);
  return fast;
}

}  // namespace bitdistill
