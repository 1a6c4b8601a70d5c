#include "kernels/matrix.h"

#include <cstring>

#include "core/status.h"
#include "kernels/dense.h"

namespace bitdistill {
namespace {

constexpr uint64_t kMagic = 0x6c6c697473646962;  // "bidstill"

struct Header {
  uint64_t magic;
  uint32_t version;
  int32_t format;
  int64_t rows;
  int64_t cols;
  int64_t group_size;
  int32_t tensor_scale;
  int32_t reserved[5];
};
static_assert(sizeof(Header) == BD_ALIGNMENT, "the parts after the header stay aligned");

int64_t panel_bytes_of(bd_format format, int64_t cols) {
  const int64_t chunks = div_up(cols, kChunkCols);
  switch (format) {
    case BD_TERNARY: return chunks * kVectorBytes;
    case BD_INT8: return chunks * kChunkSteps * kVectorBytes;
    case BD_INT4: return chunks * kChunkSteps / 2 * kVectorBytes;
    case BD_TERNARY_DENSE: return dense_panel_bytes(chunks);
  }
  return 0;
}

bool group_size_fits(bd_format format, int64_t group_size) {
  switch (format) {
    case BD_TERNARY: return group_size == 0 || group_size == 64 || group_size == 128;
    case BD_INT4: return group_size == kInt4Group;
    default: return group_size == 0;
  }
}

}  // namespace

int describe_matrix(int format, int64_t rows, int64_t cols, int64_t group_size, size_t scale_count, Matrix* matrix,
                    Layout* layout) {
  if (format < BD_TERNARY || format > BD_TERNARY_DENSE) return BD_ERROR_ARGUMENT;
  if (rows < 1 || rows > BD_MAX_ROWS || cols < 1 || cols > BD_MAX_COLS) return BD_ERROR_SHAPE;
  const bd_format kind = static_cast<bd_format>(format);
  if (!group_size_fits(kind, group_size)) return BD_ERROR_ARGUMENT;
  const bool ternary = kind == BD_TERNARY || kind == BD_TERNARY_DENSE;

  Matrix m{};
  m.format = kind;
  m.rows = rows;
  m.cols = cols;
  m.group_size = group_size;
  m.groups = group_size == 0 ? 1 : div_up(cols, group_size);
  m.panels = div_up(rows, kPanelRows);
  m.panel_bytes = panel_bytes_of(kind, cols);
  if (scale_count != static_cast<size_t>(rows * m.groups)) {
    if (scale_count != 1 || !ternary || group_size != 0) return BD_ERROR_SHAPE;
    m.tensor_scale = true;
  }
  // rows * cols <= 2^41, so none of the sizes below overflows.
  const size_t scales = m.tensor_scale ? kPanelRows : static_cast<size_t>(m.panels * m.groups * kPanelRows);
  layout->scales = sizeof(Header);
  layout->panel_data =
      layout->scales + static_cast<size_t>(round_up(static_cast<int64_t>(scales * m.scale_bytes()), BD_ALIGNMENT));
  layout->total = layout->panel_data + static_cast<size_t>(m.panels * m.panel_bytes);
  *matrix = m;
  return BD_OK;
}

void write_header(const Matrix& matrix, void* packed) {
  Header header{};
  header.magic = kMagic;
  header.version = BD_ABI_VERSION;
  header.format = matrix.format;
  header.rows = matrix.rows;
  header.cols = matrix.cols;
  header.group_size = matrix.group_size;
  header.tensor_scale = matrix.tensor_scale;
  std::memcpy(packed, &header, sizeof header);
}

int open_matrix(const void* packed, size_t packed_bytes, Matrix* matrix) {
  if (packed == nullptr) return BD_ERROR_NULL_POINTER;
  if (reinterpret_cast<uintptr_t>(packed) % BD_ALIGNMENT != 0) return BD_ERROR_ALIGNMENT;
  if (packed_bytes < sizeof(Header)) return BD_ERROR_BUFFER_SIZE;
  Header header;
  std::memcpy(&header, packed, sizeof header);
  if (header.magic != kMagic || header.version != BD_ABI_VERSION || (header.tensor_scale & ~1) != 0) {
    return BD_ERROR_HEADER;
  }
  // The header holds no positions: they follow from the shape, and the total must be the size of the buffer.
  size_t scale_count = 1;
  if (header.tensor_scale == 0) {
    if (header.rows < 1 || header.rows > BD_MAX_ROWS || header.cols < 1 || header.cols > BD_MAX_COLS || header.group_size < 0 ||
        header.group_size > BD_MAX_COLS) {
      return BD_ERROR_HEADER;
    }
    const int64_t groups = header.group_size == 0 ? 1 : div_up(header.cols, header.group_size);
    scale_count = static_cast<size_t>(header.rows * groups);
  }
  Layout layout;
  if (describe_matrix(header.format, header.rows, header.cols, header.group_size, scale_count, matrix, &layout) != BD_OK) {
    return BD_ERROR_HEADER;
  }
  if (layout.total != packed_bytes) return BD_ERROR_BUFFER_SIZE;
  const uint8_t* base = static_cast<const uint8_t*>(packed);
  matrix->scales = base + layout.scales;
  matrix->panel_data = base + layout.panel_data;
  return BD_OK;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t fraction = half & 0x3ff;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 0x1p-24f;
  } else {
    const uint32_t bits = ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
    std::memcpy(&value, &bits, sizeof value);
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace bitdistill
