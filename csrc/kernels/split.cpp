// The form of a split table: packing, opening, reading a row.
#include "kernels/split.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <vector>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/portable.h"

namespace bitdistill {
namespace {

constexpr uint64_t kMagic = 0x74696c7073646962;  // "bidsplit"

struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t reserved;
  int64_t rows, cols, kept;
  int64_t unused[3];
};
static_assert(sizeof(Header) == BD_ALIGNMENT, "the parts after the header stay aligned");

// One column in eight is kept: what that costs is what an int4 matrix spends on its scales.
int64_t kept_columns(int64_t cols) { return cols / 8 / kChunkCols * kChunkCols; }

struct Places {
  size_t order, scales, norms, steps, kept, high, low, total;
};

bool describe(int64_t rows, int64_t cols, Split* split, Places* places) {
  if (rows < 1 || rows > BD_MAX_ROWS || cols < 1 || cols > BD_MAX_COLS) return false;
  *split = {};
  split->rows = rows;
  split->cols = cols;
  split->kept = kept_columns(cols);
  split->rest = cols - split->kept;
  split->panels = div_up(rows, kPanelRows);
  const size_t padded = static_cast<size_t>(split->panels * kPanelRows);
  const auto behind = [](size_t at, size_t bytes) { return at + (bytes + BD_ALIGNMENT - 1) / BD_ALIGNMENT * BD_ALIGNMENT; };
  places->order = sizeof(Header);
  places->scales = behind(places->order, static_cast<size_t>(cols) * sizeof(int32_t));
  places->norms = behind(places->scales, padded * sizeof(float));
  places->steps = behind(places->norms, padded * sizeof(float));
  places->kept = behind(places->steps, padded);
  places->high = places->kept + static_cast<size_t>(split->panels * split->kept_bytes());
  places->low = places->high + static_cast<size_t>(split->panels * split->nibble_bytes());
  places->total = places->low + static_cast<size_t>(split->panels * split->nibble_bytes());
  return true;
}

void point_into(const uint8_t* base, const Places& places, Split* split) {
  split->order = reinterpret_cast<const int32_t*>(base + places.order);
  split->scales = reinterpret_cast<const float*>(base + places.scales);
  split->norms = reinterpret_cast<const float*>(base + places.norms);
  split->steps = base + places.steps;
  split->kept_panels = base + places.kept;
  split->high_panels = base + places.high;
  split->low_panels = base + places.low;
}

// Of a column's step in a panel, the byte of a lane.
int byte_of(int64_t lane, int64_t col) { return static_cast<int>(lane * kStepCols + col % kStepCols); }

int code_at(const Matrix& m, int64_t row, int64_t col) {
  return code_of(m.panel_data + row / kPanelRows * m.panel_bytes, BD_INT8, col / kStepCols, byte_of(row % kPanelRows, col));
}

// The columns, those to keep first: in turn the one of the largest weights and the one of the largest activations, as far as the norm
// in front of the table tells. Both halves in the table's order, which is kind to caches.
std::vector<int32_t> choose_order(const Matrix& m, int64_t kept, const float* weight_of_column) {
  const size_t cols = static_cast<size_t>(m.cols);
  std::vector<double> squares(cols);
  for (int64_t row = 0; row < m.rows; ++row) {
    for (int64_t col = 0; col < m.cols; ++col) {
      const double code = code_at(m, row, col);
      squares[static_cast<size_t>(col)] += code * code;
    }
  }
  const auto ranked = [&](auto&& key) {
    std::vector<int32_t> columns(cols);
    std::iota(columns.begin(), columns.end(), 0);
    std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) { return key(a) > key(b); });
    return columns;
  };
  const std::vector<int32_t> by_weights = ranked([&](int32_t c) { return squares[static_cast<size_t>(c)]; });
  const std::vector<int32_t> by_norm =
      weight_of_column == nullptr ? by_weights : ranked([&](int32_t c) { return std::fabs(weight_of_column[c]); });
  std::vector<bool> is_kept(cols);
  int64_t count = 0;
  for (size_t i = 0; count < kept; ++i) {
    for (const int32_t col : {by_weights[i], by_norm[i]}) {
      if (count == kept || is_kept[static_cast<size_t>(col)]) continue;
      is_kept[static_cast<size_t>(col)] = true;
      ++count;
    }
  }
  std::vector<int32_t> order;
  for (const bool wanted : {true, false}) {
    for (size_t i = 0; i < cols; ++i) {
      if (is_kept[i] == wanted) order.push_back(static_cast<int32_t>(i));
    }
  }
  return order;
}

thread_local AlignedBuffer t_codes;

struct RowParts {
  float norm;
  uint8_t step;
};

// `high` and `low` are zero before.
RowParts pack_row(const Split& split, const int8_t* codes, int64_t lane, uint8_t* kept, uint8_t* high, uint8_t* low) {
  for (int64_t i = 0; i < split.kept; ++i) {
    kept[i / kStepCols * kVectorBytes + byte_of(lane, i)] = static_cast<uint8_t>(codes[i]);
  }
  int least = 0, most = 0;
  const int8_t* const rest = codes + split.kept;
  for (int64_t i = 0; i < split.rest; ++i) {
    least = std::min<int>(least, rest[i]);
    most = std::max<int>(most, rest[i]);
  }
  const int step = std::max({1, (7 - least) / 8, (most + 8) / 8});  // -8 step <= least, most <= 8 step - 1
  int64_t squares = 0;  // of 2 l - (step - 1)
  for (int64_t i = 0; i < split.rest; ++i) {
    const int shifted = rest[i] + 8 * step, h = shifted / step, l = shifted % step;
    const int64_t byte = i / (2 * kStepCols) * kVectorBytes + byte_of(lane, i), shift = i / kStepCols % 2 * 4;
    high[byte] = static_cast<uint8_t>(high[byte] | h << shift);
    low[byte] = static_cast<uint8_t>(low[byte] | l << shift);
    squares += static_cast<int64_t>(2 * l - step + 1) * (2 * l - step + 1);
  }
  const float norm = static_cast<float>(0.5 * std::sqrt(static_cast<double>(squares)));
  return {std::nextafter(norm, std::numeric_limits<float>::infinity()), static_cast<uint8_t>(step)};
}

int value_at(const Split& split, int64_t row, int64_t place) {
  const int64_t panel = row / kPanelRows, lane = row % kPanelRows;
  if (place < split.kept) {
    return code_of(split.kept_panels + panel * split.kept_bytes(), BD_INT8, place / kStepCols, byte_of(lane, place));
  }
  const int64_t col = place - split.kept, at = panel * split.nibble_bytes();
  const auto nibble = [&](const uint8_t* panels) { return code_of(panels + at, BD_INT4, col / kStepCols, byte_of(lane, col)); };
  return static_cast<int8_t>(split.steps[row] * (nibble(split.high_panels) - 8) + nibble(split.low_panels));
}

// As `open_split`, and where the parts are.
int open_places(const void* packed, size_t packed_bytes, Split* split, Places* places) {
  if (packed == nullptr) return BD_ERROR_NULL_POINTER;
  if (reinterpret_cast<uintptr_t>(packed) % BD_ALIGNMENT != 0) return BD_ERROR_ALIGNMENT;
  if (packed_bytes < sizeof(Header)) return BD_ERROR_BUFFER_SIZE;
  Header header;
  std::memcpy(&header, packed, sizeof header);
  if (header.magic != kMagic || header.version != BD_ABI_VERSION || !describe(header.rows, header.cols, split, places) ||
      header.kept != split->kept) {
    return BD_ERROR_HEADER;
  }
  if (places->total != packed_bytes) return BD_ERROR_BUFFER_SIZE;
  point_into(static_cast<const uint8_t*>(packed), *places, split);
  std::vector<bool> seen(static_cast<size_t>(split->cols));
  for (int64_t i = 0; i < split->cols; ++i) {
    const int32_t col = split->order[i];
    if (col < 0 || col >= split->cols || seen[static_cast<size_t>(col)]) return BD_ERROR_INDEX;
    seen[static_cast<size_t>(col)] = true;
  }
  return BD_OK;
}

}  // namespace

int split_size(int64_t rows, int64_t cols, size_t* bytes) {
  Split split;
  Places places;
  if (!describe(rows, cols, &split, &places)) return BD_ERROR_SHAPE;
  *bytes = places.total;
  return BD_OK;
}

int begin_split(int64_t rows, const Matrix& sample, const float* weight_of_column, void* packed, size_t packed_bytes) {
  if (packed == nullptr) return BD_ERROR_NULL_POINTER;
  if (reinterpret_cast<uintptr_t>(packed) % BD_ALIGNMENT != 0) return BD_ERROR_ALIGNMENT;
  if (sample.format != BD_INT8) return BD_ERROR_ARGUMENT;
  Split split;
  Places places;
  if (!describe(rows, sample.cols, &split, &places)) return BD_ERROR_SHAPE;
  if (packed_bytes != places.total) return BD_ERROR_BUFFER_SIZE;
  const std::vector<int32_t> order = choose_order(sample, split.kept, weight_of_column);
  uint8_t* const base = static_cast<uint8_t*>(packed);
  std::memset(base, 0, places.kept);
  std::memcpy(base + places.order, order.data(), order.size() * sizeof(int32_t));
  Header header{};
  header.magic = kMagic;
  header.version = BD_ABI_VERSION;
  header.rows = split.rows;
  header.cols = split.cols;
  header.kept = split.kept;
  std::memcpy(packed, &header, sizeof header);
  return BD_OK;
}

int pack_split_rows(const Matrix& int8, int64_t first_row, void* packed, size_t packed_bytes) {
  if (int8.format != BD_INT8) return BD_ERROR_ARGUMENT;
  Split split;
  Places places;
  BD_RETURN_IF_ERROR(open_places(packed, packed_bytes, &split, &places));
  if (int8.cols != split.cols || first_row < 0 || first_row > split.rows - int8.rows) return BD_ERROR_SHAPE;
  if (first_row % kPanelRows != 0 || (int8.rows % kPanelRows != 0 && first_row + int8.rows != split.rows))
    return BD_ERROR_SHAPE;
  const float* const scales = static_cast<const float*>(int8.scales);
  for (int64_t row = 0; row < int8.rows; ++row) {
    if (!(scales[row] >= 0.0f && std::isfinite(scales[row]))) return BD_ERROR_SCALE;
  }
  uint8_t* const base = static_cast<uint8_t*>(packed);
  std::memcpy(base + places.scales + static_cast<size_t>(first_row) * sizeof(float), scales,
              static_cast<size_t>(int8.rows) * sizeof(float));
  std::atomic<bool> failed{false};
  parallel_for(int8.panels, [&](int64_t stretch_panel) {
    if (!t_codes.reserve(static_cast<size_t>(split.cols))) {
      failed = true;
      return;
    }
    int8_t* const codes = t_codes.as<int8_t>();
    const int64_t panel = first_row / kPanelRows + stretch_panel;
    uint8_t* const kept = base + places.kept + panel * split.kept_bytes();
    uint8_t* const high = base + places.high + panel * split.nibble_bytes();
    uint8_t* const low = base + places.low + panel * split.nibble_bytes();
    std::memset(high, 0, static_cast<size_t>(split.nibble_bytes()));
    std::memset(low, 0, static_cast<size_t>(split.nibble_bytes()));
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      const int64_t row = stretch_panel * kPanelRows + lane;
      for (int64_t i = 0; i < split.cols; ++i) {
        codes[i] = row < int8.rows ? static_cast<int8_t>(code_at(int8, row, split.order[i])) : int8_t{0};
      }
      const RowParts parts = pack_row(split, codes, lane, kept, high, low);
      const int64_t place = panel * kPanelRows + lane;
      reinterpret_cast<float*>(base + places.norms)[place] = parts.norm;
      base[places.steps + static_cast<size_t>(place)] = parts.step;
    }
  });
  if (failed) throw std::bad_alloc();
  return BD_OK;
}

int open_split(const void* packed, size_t packed_bytes, Split* split) {
  Places places;
  return open_places(packed, packed_bytes, split, &places);
}

void dequantize_row(const Split& split, int64_t row, float* out) {
  for (int64_t i = 0; i < split.cols; ++i) {
    out[split.order[i]] = static_cast<float>(value_at(split, row, i)) * split.scales[row] + 0.0f;
  }
}

void order_columns(const Split& split, const float* from, float* to) {
  for (int64_t i = 0; i < split.cols; ++i) to[i] = from[split.order[i]];
}

}  // namespace bitdistill
