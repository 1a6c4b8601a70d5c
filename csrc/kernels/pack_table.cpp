// Tables of floats (embeddings, output heads) to int8 or int4, straight into the library's layout.
#include <atomic>
#include <cmath>
#include <cstring>

#include "core/aligned_buffer.h"
#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"

namespace bitdistill {
namespace {

thread_local AlignedBuffer t_row;

// Rounds half to even; |x| < 2^22.
inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

bool all_finite(const float* v, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, v + i, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest < 0x7f800000u;
}

// One scale, max|v| / 127.
void pack_int8_row(const Matrix& m, const float* v, int64_t row, const PackedParts& packed) {
  float largest = 0.0f;
  for (int64_t i = 0; i < m.cols; ++i) largest = std::fabs(v[i]) > largest ? std::fabs(v[i]) : largest;
  const float scale = largest / 127.0f;
  static_cast<float*>(packed.scales)[row] = scale;
  const float divisor = scale > 0.0f ? scale : 1.0f;
  uint8_t* out = packed.panel_data + row / kPanelRows * m.panel_bytes + row % kPanelRows * kStepCols;
  for (int64_t at = 0; at < round_up(m.cols, kChunkCols); at += kStepCols, out += kVectorBytes) {
    int8_t codes[kStepCols];
    for (int j = 0; j < kStepCols; ++j) codes[j] = static_cast<int8_t>(clamp(round_even(v[at + j] / divisor), -127.0f, 127.0f));
    std::memcpy(out, codes, kStepCols);
  }
}

// A scale for 32 columns: the value of the largest magnitude becomes -8, the end of the range that has a step more.
bool pack_int4_row(const Matrix& m, const float* v, int64_t row, const FloatKernels& floats, const PackedParts& packed) {
  const int64_t panel = row / kPanelRows, lane = row % kPanelRows;
  uint8_t* out = packed.panel_data + panel * m.panel_bytes + lane * kStepCols;
  for (int64_t group = 0; group < m.groups; ++group) {
    const float* const w = v + group * kInt4Group;
    float low = 0.0f, high = 0.0f;
    for (int i = 0; i < kInt4Group; ++i) {
      low = w[i] < low ? w[i] : low;
      high = w[i] > high ? w[i] : high;
    }
    const float exact = (high >= -low ? high : low) / -8.0f;
    const uint16_t half = floats.to_half(exact);
    if ((half & 0x7c00) == 0x7c00) return false;
    static_cast<uint16_t*>(packed.scales)[(panel * m.groups + group) * kPanelRows + lane] = half;
    const float scale = half_to_float(half);
    uint8_t codes[kInt4Group];
    for (int i = 0; i < kInt4Group; ++i) {
      const float quotient = scale == 0.0f ? 0.0f : w[i] / scale;
      codes[i] = static_cast<uint8_t>(static_cast<int>(round_even(clamp(quotient, -8.0f, 7.0f))) + 8);
    }
    for (int64_t i = m.cols - group * kInt4Group; i < kInt4Group; ++i) codes[i] = 0;  // beyond the last column
    const int64_t left = round_up(m.cols, kChunkCols) - group * kInt4Group;
    for (int at = 0; at < (left < kInt4Group ? left : kInt4Group); at += 2 * kStepCols, out += kVectorBytes) {
      for (int j = 0; j < kStepCols; ++j) out[j] = static_cast<uint8_t>(codes[at + j] | codes[at + kStepCols + j] << 4);
    }
  }
  return true;
}

}  // namespace

int pack_table_rows(const Matrix& m, const Kernels& kernels, const void* table, bd_table_kind kind, int64_t first_row,
                    int64_t rows, const PackedParts& packed) {
  const FloatKernels& floats = *kernels.floats();
  const size_t row_bytes = static_cast<size_t>(m.cols) * (kind == BD_TABLE_FLOAT32 ? sizeof(float) : sizeof(uint16_t));
  const int64_t padded = round_up(m.cols, kInt4Group);
  std::atomic<int> status{BD_OK};
  parallel_for(div_up(rows, kPanelRows), [&](int64_t task) {
    if (!t_row.reserve(static_cast<size_t>(padded) * sizeof(float))) {
      status = BD_ERROR_OUT_OF_MEMORY;
      return;
    }
    float* const v = t_row.as<float>();
    for (int64_t i = m.cols; i < padded; ++i) v[i] = 0.0f;
    const int64_t stop = (task + 1) * kPanelRows < rows ? (task + 1) * kPanelRows : rows;
    for (int64_t r = task * kPanelRows; r < stop; ++r) {
      floats.widen(kind, static_cast<const uint8_t*>(table) + static_cast<size_t>(r) * row_bytes, m.cols, v);
      if (!all_finite(v, m.cols)) status = BD_ERROR_SCALE;
      else if (m.format == BD_INT8) pack_int8_row(m, v, first_row + r, packed);
      else if (!pack_int4_row(m, v, first_row + r, floats, packed)) status = BD_ERROR_ARGUMENT;
    }
  });
  return status;
}

}  // namespace bitdistill
