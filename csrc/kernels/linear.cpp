#include "kernels/linear.h"

#include <algorithm>
#include <atomic>

#include "core/status.h"
#include "core/thread_pool.h"
#include "kernels/dense.h"
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

// Panels in the dense form are decoded in registers once for every block of tokens. From so many blocks on they are brought to
// two bits first, once for all blocks of a task.
constexpr int64_t kFewestBlocksToWiden = 2;

// A matrix times a batch of activations.
struct Product {
  const Kernels* kernels;
  const Matrix* matrix;
  const QuantizedActivations* x;
  const Output* output;
  const int32_t* group_sums;
  const DenseKernels* dense;  // null: no kernels, or a matrix in another form

  // Panels [panel, panel + panels) times the tokens of a block.
  Tile tile(int64_t panel, int64_t panels, int64_t block) const {
    const int64_t row = panel * kPanelRows;
    const int64_t token = x->first_token(block);
    const int64_t rows_left = matrix->rows - row;
    Tile t{};
    t.weights = matrix->panel_data + panel * matrix->panel_bytes;
    t.panel_bytes = matrix->panel_bytes;
    t.panels = static_cast<int>(panels);
    t.format = matrix->format;
    t.zero_point = matrix->format == BD_INT4 ? 8 : matrix->format == BD_INT8 ? kernels->int8_zero_point : 1;
    t.chunks = matrix->chunks();
    t.group_chunks = matrix->group_chunks();
    t.groups = matrix->groups;
    t.x = x->block(block);
    t.tokens = x->tokens_in(block);
    t.group_sums = group_sums + token * matrix->groups;
    t.act_scale = x->inverse_scale(token);
    t.scale_is_f16 = matrix->half_scales();
    t.scale_panel_stride = matrix->tensor_scale ? 0 : matrix->groups * kPanelRows;
    t.scale_group_stride = kPanelRows;
    t.scales = static_cast<const uint8_t*>(matrix->scales) +
               panel * t.scale_panel_stride * static_cast<int64_t>(matrix->scale_bytes());
    t.bias = output->bias == nullptr ? nullptr : output->bias + row;
    t.rows = static_cast<int>(rows_left < panels * kPanelRows ? rows_left : panels * kPanelRows);
    if (output->acc != nullptr) {
      t.acc_stride = matrix->rows * matrix->groups;
      t.acc = output->acc + token * t.acc_stride + row * matrix->groups;
    } else {
      t.out_stride = output->out_stride;
      t.out = output->out + token * t.out_stride + row;
    }
    return t;
  }

  // Whether there was memory for it.
  bool run(int64_t first, int64_t count, int64_t start_block, int64_t stop_block) const {
    const bool is_dense = matrix->format == BD_TERNARY_DENSE;
    if (is_dense && (dense == nullptr || stop_block - start_block >= kFewestBlocksToWiden)) {
      return run_widened(first, count, start_block, stop_block);
    }
    const auto function = is_dense ? dense->multiply : kernels->multiply;
    for (int64_t block = start_block; block < stop_block; ++block) function(tile(first, count, block));
    return true;
  }

  // With two bits a weight, in scratch memory of the thread.
  bool run_widened(int64_t first, int64_t count, int64_t start_block, int64_t stop_block) const {
    thread_local AlignedBuffer wide;
    const int64_t panel_bytes = matrix->chunks() * kVectorBytes, most = std::min(count, kMaxTaskPanels);
    if (!wide.reserve(static_cast<size_t>(most * panel_bytes))) return false;
    const auto widen = dense == nullptr ? widen_panel : dense->widen;
    for (int64_t done = 0; done < count; done += most) {
      const int64_t panels = std::min(most, count - done);
      for (int64_t p = 0; p < panels; ++p) {
        widen(matrix->panel_data + (first + done + p) * matrix->panel_bytes, matrix->chunks(),
              wide.as<uint8_t>() + p * panel_bytes);
      }
      for (int64_t block = start_block; block < stop_block; ++block) {
        Tile t = tile(first + done, panels, block);
        t.weights = wide.as<uint8_t>();
        t.panel_bytes = panel_bytes;
        t.format = BD_TERNARY;
        kernels->multiply(t);
      }
    }
    return true;
  }
};

// The panels of some matrices, one after another, divided among threads.
struct Plan {
  int64_t panels;  // of a task; the last may have fewer
  int64_t tasks;

  Plan(int64_t all_panels, int64_t largest_panel, int64_t blocks, int64_t panels_at_once) {
    panels = div_up(all_panels, num_threads() * kTasksPerThread);
    if (blocks > 1) {
      const int64_t fitting = kMaxTaskBytes / largest_panel;
      if (panels > fitting) panels = fitting;
      if (panels > kMaxTaskPanels) panels = kMaxTaskPanels;
    } else {
      const int64_t share = div_up(all_panels, num_threads());
      const int64_t stream = div_up(kStreamBytes, largest_panel);
      if (panels < stream) panels = stream < share ? div_up(share, share / stream) : share;  // as many for every thread
      if (panels * largest_panel < kMinTaskBytes) panels = div_up(kMinTaskBytes, largest_panel);
    }
    if (panels < 1) panels = 1;
    panels = round_up(panels, panels_at_once);
    tasks = div_up(all_panels, panels);
  }
};

// Null group sums: out of memory.
Product product(const Kernels& all, const Matrix& matrix, QuantizedActivations& x, const Output& output) {
  const Kernels& kernels = kernels_for(all, x.tokens());
  const DenseKernels* dense = matrix.format == BD_TERNARY_DENSE ? dense_kernels(kernels) : nullptr;
  return {&kernels, &matrix, &x, &output, x.group_sums(matrix.group_size), dense};
}

Plan plan(const Matrix* const* matrices, int count, int64_t blocks, int64_t panels_at_once) {
  int64_t all_panels = 0, largest_panel = 1;
  for (int i = 0; i < count; ++i) {
    all_panels += matrices[i]->panels;
    if (matrices[i]->panel_bytes > largest_panel) largest_panel = matrices[i]->panel_bytes;
  }
  return Plan(all_panels, largest_panel, blocks, panels_at_once);
}

// body(i, first, count): panels [first, first + count) of matrix i, for all that [first_panel, last_panel) covers.
template <typename F>
void for_panels(const Matrix* const* matrices, int count, int64_t first_panel, int64_t last_panel, F&& body) {
  for (int i = 0; i < count && last_panel > 0; ++i) {
    const int64_t of_matrix = matrices[i]->panels;
    const int64_t end = last_panel < of_matrix ? last_panel : of_matrix;
    if (first_panel < end) body(i, first_panel, end - first_panel);
    first_panel = first_panel > of_matrix ? first_panel - of_matrix : 0;
    last_panel -= of_matrix;
  }
}

int run(const Product* products, const Matrix* const* matrices, int count, int64_t blocks) {
  const Plan division = plan(matrices, count, blocks, products[0].kernels->strips.panels);
  // Where panels are few for the threads, the tokens are divided as well.
  const int64_t tasks_wanted = num_threads() * kTasksPerThread;
  int64_t token_tasks = num_threads() > 1 && division.tasks < tasks_wanted ? div_up(tasks_wanted, division.tasks) : 1;
  if (token_tasks > blocks) token_tasks = blocks;
  const int64_t blocks_of_task = div_up(blocks, token_tasks);
  std::atomic<bool> done{true};
  parallel_for(division.tasks * token_tasks, [&](int64_t task) {
    const int64_t start = task % token_tasks * blocks_of_task;
    const int64_t stop = start + blocks_of_task < blocks ? start + blocks_of_task : blocks;
    const int64_t first = task / token_tasks * division.panels;
    for_panels(matrices, count, first, first + division.panels, [&](int i, int64_t first_panel, int64_t panels) {
      if (!products[i].run(first_panel, panels, start, stop)) done = false;
    });
  });
  return done ? BD_OK : BD_ERROR_OUT_OF_MEMORY;
}

}  // namespace

int multiply(const Kernels& kernels, const MultiplyPart* parts, int count, QuantizedActivations& x) {
  if (count < 1 || count > kMaxParts) return BD_ERROR_ARGUMENT;
  Product products[kMaxParts];
  const Matrix* matrices[kMaxParts];
  for (int i = 0; i < count; ++i) {
    // The sums of one group size at a time are kept: parts that differ in it are multiplied one by one.
    if (parts[i].matrix->group_size != parts[0].matrix->group_size) {
      BD_RETURN_IF_ERROR(multiply(kernels, parts, i, x));
      return multiply(kernels, parts + i, count - i, x);
    }
    matrices[i] = parts[i].matrix;
    products[i] = product(kernels, *matrices[i], x, parts[i].output);
    if (products[i].group_sums == nullptr) return BD_ERROR_OUT_OF_MEMORY;
  }
  return run(products, matrices, count, x.blocks());
}

int multiply(const Kernels& kernels, const Matrix& matrix, QuantizedActivations& x, const Output& output) {
  const MultiplyPart part = {&matrix, output};
  return multiply(kernels, &part, 1, x);
}

int multiply_here(const Kernels& kernels, const Matrix& matrix, QuantizedActivations& x, const Output& output) {
  const Product whole = product(kernels, matrix, x, output);
  if (whole.group_sums == nullptr) return BD_ERROR_OUT_OF_MEMORY;
  return whole.run(0, matrix.panels, 0, x.blocks()) ? BD_OK : BD_ERROR_OUT_OF_MEMORY;
}

void dequantize_row(const Matrix& matrix, int64_t row, float* out) {
  const int64_t panel = row / kPanelRows;
  const int lane = static_cast<int>(row % kPanelRows);
  const uint8_t* data = matrix.panel_data + panel * matrix.panel_bytes;
  const int zero_point = matrix.format == BD_INT4 ? 8 : matrix.format == BD_INT8 ? 0 : 1;
  for (int64_t col = 0; col < matrix.cols; ++col) {
    const int64_t group = matrix.group_size == 0 ? 0 : col / matrix.group_size;
    const int64_t at = (matrix.tensor_scale ? 0 : panel * matrix.groups + group) * kPanelRows + lane;
    const float scale = matrix.half_scales() ? half_to_float(static_cast<const uint16_t*>(matrix.scales)[at])
                                             : static_cast<const float*>(matrix.scales)[at];
    const int byte = lane * kStepCols + static_cast<int>(col % kStepCols);
    const int code = matrix.format == BD_TERNARY_DENSE ? dense_code_of(data, matrix.chunks(), col / kStepCols, byte)
                                                       : code_of(data, matrix.format, col / kStepCols, byte);
    const int value = code - zero_point;
    out[col] = static_cast<float>(value) * scale + 0.0f;  // a weight of zero is never -0
  }
}

}  // namespace bitdistill
