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

// ---- Whether it is fast ----------------------------------------------------------------------------------------------

constexpr int64_t kCols = 2560;  // as wide as a projection
// Several tokens, and a prompt: arithmetic is the limit, and rows that a second-level cache holds are enough. One token: memory is,
// so rows of 130 MB at two bits, on all threads.
constexpr int64_t kFewRows = 640, kManyRows = 208'000;
constexpr int kPromptTokens = 64, kRounds = 16, kRoundsOfPrompt = 8, kRoundsOfMany = 4, kAttempts = 3;
constexpr double kMostSlower = 1.04, kLeastFaster = 1.03;

constexpr double kGreat = 1e9;

// Both forms of a matrix, of zeros: that makes no difference to the time.
struct Forms {
  Matrix matrices[2];
  AlignedBuffer panels, scales, sums;

  bool reserve(int64_t rows, int64_t tokens) {
    Layout layout;
    if (describe_matrix(BD_TERNARY, rows, kCols, 0, 1, &matrices[0], &layout) != BD_OK ||
        describe_in_form(matrices[0], BD_TERNARY_DENSE, &matrices[1], &layout) != BD_OK) {
      return false;
    }
    const size_t bytes = static_cast<size_t>(matrices[0].panels * matrices[0].panel_bytes);
    if (!panels.reserve(bytes) || !scales.reserve(kPanelRows * sizeof(float)) ||
        !sums.reserve(static_cast<size_t>(tokens * rows) * sizeof(int32_t))) {
      return false;
    }
    std::memset(panels.as<uint8_t>(), 0, bytes);
    std::memset(scales.as<uint8_t>(), 0, kPanelRows * sizeof(float));
    for (Matrix& matrix : matrices) {
      matrix.panel_data = panels.as<uint8_t>();
      matrix.scales = scales.as<float>();
    }
    return true;
  }

  // Time of the dense form / of two bits; great if it cannot be measured.
  template <typename F>
  double compare(const Kernels& kernels, int64_t tokens, int rounds, F multiply_by) {
    std::vector<int8_t> x(static_cast<size_t>(tokens * kCols));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int8_t>(i * 37);
    QuantizedActivations activations;
    if (activations.assign(kernels, x.data(), tokens, kCols) != BD_OK) return kGreat;
    Output output;
    output.acc = sums.as<int32_t>();
    double best[2] = {kGreat, kGreat};
    for (int round = 0; round < rounds; ++round) {
      for (int form = 0; form < 2; ++form) {
        const auto start = std::chrono::steady_clock::now();
        if (multiply_by(kernels, matrices[form], activations, output) != BD_OK) return kGreat;
        const double time = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (time < best[form]) best[form] = time;
      }
    }
    return best[1] / best[0];
  }
};

bool measure_once(const Kernels& kernels) {
  Forms few;
  if (!few.reserve(kFewRows, kPromptTokens)) return false;
  for (const int tokens : {4, 10}) {
    if (few.compare(kernels, tokens, kRounds, multiply_here) > kMostSlower) return false;
  }
  if (few.compare(kernels, kPromptTokens, kRoundsOfPrompt, multiply_here) > kMostSlower) return false;
  const auto on_all_threads = [](const Kernels& k, const Matrix& m, QuantizedActivations& x, const Output& o) {
    return multiply(k, m, x, o);
  };
  Forms many;
  return many.reserve(kManyRows, 1) && many.compare(kernels, 1, kRoundsOfMany, on_all_threads) * kLeastFaster <= 1;
}

// What else the machine does can only hide the gain, so that a refusal is looked at again.
bool measure(const Kernels& kernels) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (measure_once(kernels)) return true;
  }
  return false;
}

}  // namespace

void pack_dense(const Matrix& matrix, const Matrix& dense, uint8_t* panel_data) {
  parallel_for(matrix.panels, [&](int64_t p) {
    pack_panel(matrix.panel_data + p * matrix.panel_bytes, matrix.chunks(), panel_data + p * dense.panel_bytes);
  });
}

void widen_panel(const uint8_t* in, int64_t chunks, uint8_t* out) {
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

int describe_in_form(const Matrix& matrix, bd_format form, Matrix* other, Layout* layout) {
  return describe_matrix(form, matrix.rows, matrix.cols, 0, matrix.tensor_scale ? 1 : static_cast<size_t>(matrix.rows), other,
                         layout);
}

const DenseKernels* dense_kernels(const Kernels& kernels) {
  static const bool runs = avx512vbmi_dense_kernels() != nullptr && can_run_avx512vbmi();
  // (Its tiles are those of these kernels, and whoever asked for another instruction set gets none of this one.)
  return runs && std::strcmp(kernels.name, "avx512vnni") == 0 ? avx512vbmi_dense_kernels() : nullptr;
}

bool dense_is_fast(const Kernels& kernels) {
  if (dense_kernels(kernels) == nullptr) return false;
  static const bool fast = measure(kernels);
  return fast;
}

}  // namespace bitdistill
