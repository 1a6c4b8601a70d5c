#include "kernels/pack.h"

#include <atomic>
#include <cmath>
#include <cstring>

#include "core/status.h"
#include "core/thread_pool.h"

namespace bitdistill {
namespace {

constexpr uint64_t kLowBits = 0x0101010101010101u;

uint64_t load8(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Calls pack_row(row, panel, lane) for every row of the matrix, on all threads; padding rows of the last panel stay zero.
// pack_row returns whether its codes are valid.
template <typename PackRow>
int pack_panels(const Matrix& m, uint8_t* panel_data, PackRow pack_row) {
  constexpr int64_t kPanelsPerTask = 4;
  std::atomic<bool> valid{true};
  parallel_for(div_up(m.panels, kPanelsPerTask), [&](int64_t task) {
    const int64_t last = (task + 1) * kPanelsPerTask;
    for (int64_t p = task * kPanelsPerTask; p < last && p < m.panels; ++p) {
      uint8_t* panel = panel_data + p * m.panel_bytes;
      if ((p + 1) * kPanelRows > m.rows) std::memset(panel, 0, static_cast<size_t>(m.panel_bytes));
      for (int lane = 0; lane < kPanelRows && p * kPanelRows + lane < m.rows; ++lane) {
        if (!pack_row(p * kPanelRows + lane, panel, lane)) valid = false;
      }
    }
  });
  return valid ? BD_OK : BD_ERROR_CODE;
}

// 16 codes of a row, 8 in each word, in bits 2k of the 16 bytes at `in`; returns bits that are set where a code is 3.
inline uint64_t extract_codes(const uint8_t* in, int shift, uint64_t codes[2]) {
  codes[0] = (load8(in) >> shift) & (3 * kLowBits);
  codes[1] = (load8(in + 8) >> shift) & (3 * kLowBits);
  return (codes[0] & (codes[0] >> 1) & kLowBits) | (codes[1] & (codes[1] >> 1) & kLowBits);
}

// Byte j of step p in one word: steps 0, 1 in the low and high half of codes[0]; 2, 3 in codes[1].
inline void pack_chunk(const uint8_t* in, int shift, uint8_t* out, uint64_t* invalid) {
  uint64_t codes[2];
  *invalid |= extract_codes(in, shift, codes);
  const uint64_t pairs = codes[0] | codes[1] << 4;
  const uint32_t packed = static_cast<uint32_t>(pairs) | static_cast<uint32_t>(pairs >> 32) << 2;
  std::memcpy(out, &packed, sizeof packed);
}

bool pack_ternary_row(const uint8_t* in, int shift, int64_t cols, uint8_t* out) {
  uint64_t invalid = 0;
  int64_t col = 0;
  for (; col + kChunkCols <= cols; col += kChunkCols, out += kVectorBytes) {
    pack_chunk(in + col, shift, out, &invalid);
  }
  if (col < cols) {
    uint8_t rest[kChunkCols] = {};
    std::memcpy(rest, in + col, static_cast<size_t>(cols - col));
    pack_chunk(rest, shift, out, &invalid);
  }
  return invalid == 0;
}

}  // namespace

int pack_ternary(const Matrix& m, const uint8_t* weight, const PackedParts& packed) {
  const int64_t stored_rows = div_up(m.rows, 4);
  return pack_panels(m, packed.panel_data, [&](int64_t row, uint8_t* panel, int lane) {
    const uint8_t* in = weight + row % stored_rows * m.cols;
    const int shift = static_cast<int>(2 * (row / stored_rows));
    return pack_ternary_row(in, shift, m.cols, panel + lane * kStepCols);
  });
}

int check_ternary(const uint8_t* weight, size_t bytes) {
  constexpr size_t kTaskBytes = size_t{1} << 17;
  std::atomic<bool> valid{true};
  parallel_for(static_cast<int64_t>((bytes + kTaskBytes - 1) / kTaskBytes), [&](int64_t task) {
    const size_t first = static_cast<size_t>(task) * kTaskBytes;
    const size_t last = bytes - first < kTaskBytes ? bytes : first + kTaskBytes;
    uint8_t found = 0;
    for (size_t i = first; i < last; ++i) found = static_cast<uint8_t>(found | (weight[i] & weight[i] >> 1 & 0x55));
    if (found != 0) valid = false;
  });
  return valid ? BD_OK : BD_ERROR_CODE;
}

int pack_int8(const Matrix& m, const int8_t* weight, const PackedParts& packed) {
  return pack_panels(m, packed.panel_data, [&](int64_t row, uint8_t* panel, int lane) {
    const int8_t* in = weight + row * m.cols;
    uint8_t* out = panel + lane * kStepCols;
    const int64_t steps = m.panel_bytes / kVectorBytes;
    bool valid = true;
    for (int64_t step = 0; step < steps; ++step, out += kVectorBytes) {
      int8_t values[kStepCols] = {};
      for (int64_t j = 0; j < kStepCols && step * kStepCols + j < m.cols; ++j) values[j] = in[step * kStepCols + j];
      for (int8_t value : values) valid &= value != -128;
      std::memcpy(out, values, kStepCols);
    }
    return valid;
  });
}

int pack_int4(const Matrix& m, const uint8_t* weight, const PackedParts& packed) {
  const int64_t row_bytes = div_up(m.cols, 2);
  return pack_panels(m, packed.panel_data, [&](int64_t row, uint8_t* panel, int lane) {
    const uint8_t* in = weight + row * row_bytes;
    uint8_t* out = panel + lane * kStepCols;
    const int64_t vectors = m.panel_bytes / kVectorBytes;  // of 8 columns, 4 stored bytes
    for (int64_t v = 0; v < vectors; ++v, out += kVectorBytes) {
      uint8_t s[4] = {};
      for (int64_t j = 0; j < 4 && v * 4 + j < row_bytes; ++j) s[j] = in[v * 4 + j];
      out[0] = static_cast<uint8_t>((s[0] & 15) | (s[2] & 15) << 4);
      out[1] = static_cast<uint8_t>((s[0] >> 4) | (s[2] & 0xf0));
      out[2] = static_cast<uint8_t>((s[1] & 15) | (s[3] & 15) << 4);
      out[3] = static_cast<uint8_t>((s[1] >> 4) | (s[3] & 0xf0));
    }
    return true;
  });
}

int pack_scales(const Matrix& m, const void* scales, const PackedParts& packed) {
  const float* floats = static_cast<const float*>(scales);
  const uint16_t* halves = static_cast<const uint16_t*>(scales);
  if (m.tensor_scale) {
    if (!std::isfinite(floats[0])) return BD_ERROR_SCALE;
    for (int i = 0; i < kPanelRows; ++i) static_cast<float*>(packed.scales)[i] = floats[0];
    return BD_OK;
  }
  bool finite = true;
  for (int64_t panel = 0; panel < m.panels; ++panel) {
    for (int64_t group = 0; group < m.groups; ++group) {
      for (int lane = 0; lane < kPanelRows; ++lane) {
        const int64_t row = panel * kPanelRows + lane;
        const int64_t from = row * m.groups + group;
        const int64_t to = (panel * m.groups + group) * kPanelRows + lane;
        if (m.half_scales()) {
          const uint16_t half = row < m.rows ? halves[from] : 0;
          finite &= (half & 0x7c00) != 0x7c00;
          static_cast<uint16_t*>(packed.scales)[to] = half;
        } else {
          const float value = row < m.rows ? floats[from] : 0.0f;
          finite &= std::isfinite(value);
          static_cast<float*>(packed.scales)[to] = value;
        }
      }
    }
  }
  return finite ? BD_OK : BD_ERROR_SCALE;
}

}  // namespace bitdistill
