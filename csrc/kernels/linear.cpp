#include "kernels/linear.h"

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/portable.h"

namespace bitdistill {
namespace {

// Tasks a thread gets, so that one that was held up does not hold up the call.
constexpr int64_t kTasksPerThread = 4;

// A matrix-vector product reads its panels once, as a stream: every start of one costs the time of a memory access, so
// it is cut into several tasks a thread only where each is at least this long.
constexpr int64_t kStreamBytes = 1024 * 1024;

// A task goes through its panels once for every block of tokens, so these should stay in the second-level cache; many
// panels at once make long contiguous runs of outputs. Below the smallest size a task costs more than it is worth.
constexpr int64_t kMaxTaskBytes = 256 * 1024;
constexpr int64_t kMinTaskBytes = 16 * 1024;
constexpr int64_t kMaxTaskPanels = 16;

struct Product {
  const Kernels& kernels;
  const Matrix& matrix;
  const QuantizedActivations& x;
  const Output& output;
  const int32_t* group_sums;

  // Panels [panel, panel + panels) times the tokens of a block.
  Tile tile(int64_t panel, int64_t panels, int64_t block) const {
    const int64_t row = panel * kPanelRows;
    const int64_t token = x.first_token(block);
    const int64_t rows_left = matrix.rows - row;
    Tile t{};
    t.weights = matrix.panel_data + panel * matrix.panel_bytes;
    t.panel_bytes = matrix.panel_bytes;
    t.panels = static_cast<int>(panels);
    t.format = matrix.format;
    t.zero_point = matrix.format == BD_INT4 ? 8 : matrix.format == BD_INT8 ? kernels.int8_zero_point : 1;
    t.chunks = matrix.chunks();
    t.group_chunks = matrix.group_chunks();
    t.groups = matrix.groups;
    t.x = x.block(block);
    t.tokens = x.tokens_in(block);
    t.group_sums = group_sums + token * matrix.groups;
    t.token_sums = x.token_sums(token);
    t.act_scale = x.inverse_scale(token);
    t.scale_is_f16 = matrix.scale_is_f16;
    t.scale_panel_stride = matrix.tensor_scale ? 0 : matrix.groups * kPanelRows;
    t.scale_group_stride = kPanelRows;
    t.scales = static_cast<const uint8_t*>(matrix.scales) + panel * t.scale_panel_stride *
                   static_cast<int64_t>(matrix.scale_is_f16 ? sizeof(uint16_t) : sizeof(float));
    t.row_offset = matrix.row_offset == nullptr ? nullptr : matrix.row_offset + row;
    t.bias = output.bias == nullptr ? nullptr : output.bias + row;
    t.rows = static_cast<int>(rows_left < panels * kPanelRows ? rows_left : panels * kPanelRows);
    if (output.acc != nullptr) {
      t.acc_stride = matrix.rows * matrix.groups;
      t.acc = output.acc + token * t.acc_stride + row * matrix.groups;
    } else {
      t.out_stride = output.out_stride;
      t.out = output.out + token * t.out_stride + row;
    }
    return t;
  }

  void run() const {
    const int64_t tasks_wanted = num_threads() * kTasksPerThread;
    int64_t panels = div_up(matrix.panels, tasks_wanted);
    if (x.blocks() > 1) {
      const int64_t fitting = kMaxTaskBytes / matrix.panel_bytes;
      if (panels > fitting) panels = fitting;
      if (panels > kMaxTaskPanels) panels = kMaxTaskPanels;
    } else {
      const int64_t share = div_up(matrix.panels, num_threads());
      const int64_t stream = div_up(kStreamBytes, matrix.panel_bytes);
      if (panels < stream) panels = stream < share ? stream : share;
      if (panels * matrix.panel_bytes < kMinTaskBytes) panels = div_up(kMinTaskBytes, matrix.panel_bytes);
    }
    if (panels < 1) panels = 1;
    const int64_t panel_tasks = div_up(matrix.panels, panels);
    // Where panels are few for the threads, the tokens are divided as well.
    int64_t token_tasks = num_threads() > 1 && panel_tasks < tasks_wanted ? div_up(tasks_wanted, panel_tasks) : 1;
    if (token_tasks > x.blocks()) token_tasks = x.blocks();
    const int64_t blocks = div_up(x.blocks(), token_tasks);
    parallel_for(panel_tasks * token_tasks, [&](int64_t task) {
      const int64_t first = task / token_tasks * panels;
      const int64_t count = matrix.panels - first < panels ? matrix.panels - first : panels;
      const int64_t start = task % token_tasks * blocks;
      const int64_t stop = start + blocks < x.blocks() ? start + blocks : x.blocks();
      for (int64_t block = start; block < stop; ++block) kernels.multiply(tile(first, count, block));
    });
  }
};

}  // namespace

int multiply(const Kernels& kernels, const Matrix& matrix, QuantizedActivations& x, const Output& output) {
  const int32_t* group_sums = x.group_sums(matrix.group_size);
  if (group_sums == nullptr) return BD_ERROR_OUT_OF_MEMORY;
  Product{kernels, matrix, x, output, group_sums}.run();
  return BD_OK;
}

void dequantize_row(const Matrix& matrix, int64_t row, float* out) {
  const int64_t panel = row / kPanelRows;
  const int lane = static_cast<int>(row % kPanelRows);
  const uint8_t* data = matrix.panel_data + panel * matrix.panel_bytes;
  const int zero_point = matrix.format == BD_INT4 ? 8 : matrix.format == BD_INT8 ? 0 : 1;
  const float offset = matrix.row_offset == nullptr ? 0.0f : matrix.row_offset[row];
  for (int64_t col = 0; col < matrix.cols; ++col) {
    const int64_t group = matrix.group_size == 0 ? 0 : col / matrix.group_size;
    const int64_t at = (matrix.tensor_scale ? 0 : panel * matrix.groups + group) * kPanelRows + lane;
    const float scale = matrix.scale_is_f16 ? half_to_float(static_cast<const uint16_t*>(matrix.scales)[at])
                                            : static_cast<const float*>(matrix.scales)[at];
    const int byte = lane * kStepCols + static_cast<int>(col % kStepCols);
    const int value = code_of(data, matrix.format, col / kStepCols, byte) - zero_point;
    out[col] = static_cast<float>(value) * scale + offset;
  }
}

}  // namespace bitdistill
