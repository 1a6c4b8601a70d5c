// Products with a split table.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "kernels/split.h"

namespace bitdistill {
namespace {

constexpr int kFewTokens = 4;    // with more, and all outputs wanted, the two parts are joined first
constexpr int kMostTokens = 16;  // of an arg max by parts
constexpr int64_t kBuffer = 4096;  // sums of some panels and all tokens
constexpr int kPausedCalls = 31;
constexpr double kWorthless = 0.85;  // beyond, reading the parts one after the other costs more than it saves
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kMinTaskBytes = 16 * 1024;
constexpr int64_t kJoinedBytes = 256 * 1024;  // stays in the second-level cache

thread_local AlignedBuffer t_sums, t_bounds, t_joined;

template <typename T>
T* reserve(AlignedBuffer& buffer, int64_t count) {
  if (!buffer.reserve(static_cast<size_t>(count) * sizeof(T))) throw std::bad_alloc();
  return buffer.as<T>();
}

// body(first, stop) for stretches of panels, of which each takes `bytes` of weights.
template <typename F>
void for_panels(int64_t panels, int64_t bytes, int64_t multiple, F&& body) {
  int64_t share = div_up(panels, num_threads() * kTasksPerThread);
  share = std::max(share, div_up(kMinTaskBytes, std::max<int64_t>(1, bytes)));
  share = round_up(share, multiple);
  parallel_for(div_up(panels, share), [&](int64_t task) { body(task * share, std::min(panels, (task + 1) * share)); });
}

// The two parts one after another, for at most kMostTokens in one block.
class InParts {
 public:
  InParts(const Kernels& kernels, const Split& split, const QuantizedActivations& x)
      : kernels_(kernels), ops_(kernels.floats()->split), split_(split), x_(x), tokens_(static_cast<int>(x.tokens())),
        panels_at_once_(kBuffer / kPanelRows / tokens_), rows_at_once_(panels_at_once_ * kPanelRows) {
    std::vector<int8_t> values(static_cast<size_t>(split.cols));
    for (int t = 0; t < tokens_; ++t) {
      x.copy_token(t, values.data());
      int64_t squares = 0;
      kept_sums_[t] = rest_sums_[t] = 0;
      for (int64_t i = 0; i < split.kept; ++i) kept_sums_[t] += values[static_cast<size_t>(i)];
      for (int64_t i = split.kept; i < split.cols; ++i) {
        const int32_t value = values[static_cast<size_t>(i)];
        rest_sums_[t] += value;
        squares += value * value;
      }
      norms_[t] =
          std::nextafter(static_cast<float>(std::sqrt(static_cast<double>(squares))), std::numeric_limits<float>::infinity());
    }
  }

  void all(float* out, int64_t stride) const {
    for_panels(split_.panels, split_.kept_bytes() + 2 * split_.nibble_bytes(), 1, [&](int64_t first, int64_t stop) {
      int32_t sums[kBuffer];
      for (; first < stop; first += panels_at_once_) {
        const int64_t count = std::min(panels_at_once_, stop - first);
        add_first_part(first, count, sums, rows_at_once_);
        add_low(first, count, sums, rows_at_once_, out, stride);
      }
    });
  }

  // Returns the panels of which the second part was read.
  int64_t greatest(float* out, int64_t stride) const {
    const int64_t padded = split_.panels * kPanelRows;
    int32_t* const sums = reserve<int32_t>(t_sums, tokens_ * padded);
    float* const bounds = reserve<float>(t_bounds, tokens_ * padded);
    std::atomic<int64_t> best[kMostTokens];
    for (auto& row : best) row = -1;
    for_panels(split_.panels, split_.kept_bytes() + split_.nibble_bytes(), 1, [&](int64_t start, int64_t stop) {
      int64_t best_here[kMostTokens];
      for (int64_t first = start; first < stop; first += panels_at_once_) {
        const int64_t count = std::min(panels_at_once_, stop - first), row = first * kPanelRows;
        add_first_part(first, count, sums + row, padded);
        for (int t = 0; t < tokens_; ++t) {
          const int64_t found = row + ops_.bound(task(t, first, count, sums + row, padded), bounds + t * padded + row);
          if (first == start || bounds[t * padded + found] > bounds[t * padded + best_here[t]]) best_here[t] = found;
        }
      }
      // Which of them wins decides how much is left out, not what the greatest is.
      for (int t = 0; t < tokens_; ++t) {
        int64_t other = best[t];
        while ((other < 0 || bounds[t * padded + best_here[t]] > bounds[t * padded + other]) &&
               !best[t].compare_exchange_weak(other, best_here[t])) {
        }
      }
    });
    float least[kMostTokens];  // an output that is reached
    for (int t = 0; t < tokens_; ++t) {
      float values[kBuffer];
      const int64_t panel = best[t] / kPanelRows;
      finish_panels(panel, 1, sums + panel * kPanelRows, padded, values);
      least[t] = -std::numeric_limits<float>::infinity();
      const float* const of_token = values + t * rows_at_once_;
      for (int64_t i = 0; i < std::min<int64_t>(kPanelRows, split_.rows - panel * kPanelRows); ++i) {
        if (of_token[i] > least[t]) least[t] = of_token[i];
      }
    }
    std::atomic<int64_t> read{0};
    const auto needed = [&](int64_t panel) {
      bool any = false;
      for (int t = 0; t < tokens_; ++t) {
        const float* const of_panel = bounds + t * padded + panel * kPanelRows;
        for (int64_t i = 0; i < kPanelRows; ++i) any |= !(of_panel[i] < least[t]);  // of NaN too
      }
      return any;
    };
    for_panels(split_.panels, kPanelRows * static_cast<int64_t>(sizeof(float)) * tokens_, 1, [&](int64_t first, int64_t stop) {
      while (first < stop) {
        int64_t end = first;
        while (end < stop && !needed(end)) ++end;
        const int64_t row = first * kPanelRows, last = std::min(split_.rows, end * kPanelRows);
        for (int t = 0; t < tokens_; ++t)
          std::fill(out + t * stride + row, out + t * stride + last, -std::numeric_limits<float>::infinity());
        for (first = end; end < stop && end - first < panels_at_once_ && needed(end);) ++end;
        if (first < end) add_low(first, end - first, sums + first * kPanelRows, padded, out, stride);
        read += end - first;
        first = end;
      }
    });
    return read;
  }

 private:
  SplitSums task(int token, int64_t panel, int64_t count, int32_t* sums, int64_t stride) const {
    const int64_t row = panel * kPanelRows;
    return {count,
            sums + token * stride,
            nullptr,
            split_.steps + row,
            split_.scales + row,
            split_.norms + row,
            static_cast<float>(rest_sums_[token]),
            norms_[token],
            *x_.inverse_scale(token)};
  }

  // acc [tokens][stride] = panels [panel, panel + count) at `weights` times `chunks` of x from `first_chunk` on.
  void multiply(bd_format format, int32_t zero_point, const uint8_t* weights, int64_t bytes, int64_t panel, int64_t count,
                int64_t first_chunk, int64_t chunks, const int32_t* x_sums, int32_t* acc, int64_t stride) const {
    Tile tile{};
    tile.weights = weights + panel * bytes;
    tile.panel_bytes = bytes;
    tile.panels = static_cast<int>(count);
    tile.format = format;
    tile.zero_point = zero_point;
    tile.chunks = tile.group_chunks = chunks;
    tile.groups = 1;
    tile.x = x_.block(0) + first_chunk * tokens_ * kChunkCols;
    tile.tokens = tokens_;
    tile.group_sums = x_sums;
    tile.act_scale = x_.inverse_scale(0);
    tile.scales = split_.scales + panel * kPanelRows;
    tile.scale_panel_stride = tile.scale_group_stride = kPanelRows;
    tile.rows = static_cast<int>(count * kPanelRows);
    tile.acc = acc;
    tile.acc_stride = stride;
    kernels_.multiply(tile);
  }

  int64_t rest_chunks() const { return div_up(split_.rest, kChunkCols); }

  // sums [tokens][stride]: all but those of l. At most panels_at_once_ panels.
  void add_first_part(int64_t panel, int64_t count, int32_t* sums, int64_t stride) const {
    int32_t high[kBuffer];
    const int64_t kept_chunks = split_.kept / kChunkCols;
    if (kept_chunks > 0) {
      multiply(BD_INT8, kernels_.int8_zero_point, split_.kept_panels, split_.kept_bytes(), panel, count, 0, kept_chunks,
               kept_sums_, sums, stride);
    } else {
      for (int t = 0; t < tokens_; ++t) std::fill_n(sums + t * stride, count * kPanelRows, 0);
    }
    multiply(BD_INT4, 8, split_.high_panels, split_.nibble_bytes(), panel, count, kept_chunks, rest_chunks(), rest_sums_, high,
             rows_at_once_);
    for (int t = 0; t < tokens_; ++t) {
      SplitSums part = task(t, panel, count, sums, stride);
      part.high = high + t * rows_at_once_;
      ops_.add_high(part);
    }
  }

  // values [tokens][rows_at_once_]: the outputs.
  void finish_panels(int64_t panel, int64_t count, int32_t* sums, int64_t stride, float* values) const {
    int32_t low[kBuffer];
    multiply(BD_INT4, 0, split_.low_panels, split_.nibble_bytes(), panel, count, split_.kept / kChunkCols, rest_chunks(),
             rest_sums_, low, rows_at_once_);
    for (int t = 0; t < tokens_; ++t) {
      ops_.finish(task(t, panel, count, sums, stride), low + t * rows_at_once_, values + t * rows_at_once_);
    }
  }

  void add_low(int64_t panel, int64_t count, int32_t* sums, int64_t sums_stride, float* out, int64_t stride) const {
    float values[kBuffer];
    finish_panels(panel, count, sums, sums_stride, values);
    const int64_t row = panel * kPanelRows, rows = std::min(count * kPanelRows, split_.rows - row);
    for (int t = 0; t < tokens_; ++t) {
      std::memcpy(out + t * stride + row, values + t * rows_at_once_, static_cast<size_t>(rows) * sizeof(float));
    }
  }

  const Kernels& kernels_;
  const SplitKernels& ops_;
  const Split& split_;
  const QuantizedActivations& x_;
  const int tokens_;
  const int64_t panels_at_once_, rows_at_once_;
  int32_t kept_sums_[kMostTokens], rest_sums_[kMostTokens];
  float norms_[kMostTokens];
};

// The parts joined to an int8 matrix, some panels at a time, times all tokens.
void multiply_joined(const Kernels& kernels, const Split& split, const QuantizedActivations& x, float* out, int64_t stride) {
  const int64_t rest_chunks = div_up(split.rest, kChunkCols), chunks = split.kept / kChunkCols + rest_chunks;
  const int64_t panel_bytes = chunks * kChunkSteps * kVectorBytes;
  const int64_t at_once = std::clamp<int64_t>(kJoinedBytes / panel_bytes / 2 * 2, 1, 16);
  std::atomic<bool> failed{false};
  for_panels(split.panels, panel_bytes, at_once, [&](int64_t first, int64_t stop) {
    if (!t_joined.reserve(static_cast<size_t>(at_once * panel_bytes))) {
      failed = true;
      return;
    }
    uint8_t* const joined = t_joined.as<uint8_t>();
    for (; first < stop; first += at_once) {
      const int64_t count = std::min(at_once, stop - first), row = first * kPanelRows;
      for (int64_t p = 0; p < count; ++p) {
        uint8_t* const panel = joined + p * panel_bytes;
        std::memcpy(panel, split.kept_panels + (first + p) * split.kept_bytes(), static_cast<size_t>(split.kept_bytes()));
        const int64_t at = (first + p) * split.nibble_bytes();
        kernels.floats()->split.join(split.high_panels + at, split.low_panels + at, split.steps + row + p * kPanelRows,
                                     rest_chunks, panel + split.kept_bytes());
      }
      for (int64_t block = 0; block < x.blocks(); ++block) {
        const int64_t token = x.first_token(block);
        Tile tile{};
        tile.weights = joined;
        tile.panel_bytes = panel_bytes;
        tile.panels = static_cast<int>(count);
        tile.format = BD_INT8;
        tile.zero_point = kernels.int8_zero_point;
        tile.chunks = tile.group_chunks = chunks;
        tile.groups = 1;
        tile.x = x.block(block);
        tile.tokens = x.tokens_in(block);
        tile.group_sums = x.token_sums(token);
        tile.act_scale = x.inverse_scale(token);
        tile.scales = split.scales + row;
        tile.scale_panel_stride = tile.scale_group_stride = kPanelRows;
        tile.rows = static_cast<int>(std::min(count * kPanelRows, split.rows - row));
        tile.out = out + token * stride + row;
        tile.out_stride = stride;
        kernels.multiply(tile);
      }
    }
  });
  if (failed) throw std::bad_alloc();
}

}  // namespace

void multiply_split(const Kernels& all, const Split& split, QuantizedActivations& x, bool greatest, float* out,
                    int64_t stride) {
  // Where the first part decides next to nothing for many calls, as with a table of random numbers, both are read at once for a while.
  struct Recent {
    const void* table;
    double share;  // of the panels whose second part was read, a moving average
    int paused;
  };
  static thread_local Recent recent = {nullptr, 0.0, 0};
  if (recent.table != split.high_panels) recent = {split.high_panels, 0.0, 0};
  if (greatest && recent.paused > 0) {
    --recent.paused;
    greatest = false;
  }
  const Kernels& kernels = kernels_for(all, x.tokens());
  // (Strips of activations cannot be cut into the columns of the parts.)
  const bool in_parts = x.tokens() <= (greatest ? kMostTokens : kFewTokens) && x.blocks() == 1 && kernels.strips.tokens == 0;
  if (!in_parts) return multiply_joined(kernels, split, x, out, stride);
  const InParts parts(kernels, split, x);
  if (!greatest) return parts.all(out, stride);
  const double share = static_cast<double>(parts.greatest(out, stride)) / static_cast<double>(split.panels);
  recent.share += (share - recent.share) / 8;
  if (recent.share > kWorthless) recent.paused = kPausedCalls;
}

}  // namespace bitdistill
