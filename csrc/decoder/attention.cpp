#include "decoder/attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/status.h"
#include "core/thread_pool.h"

namespace bitdistill {
namespace {

// Less work than this (multiply-adds) is done by the calling thread alone.
constexpr int64_t kAttendAlone = 65536;

// With fewer tiles a thread than this, threads share the stretches of a tile: they would not end at the same time.
constexpr int64_t kTilesPerThread = 4;

thread_local AlignedBuffer t_scratch, t_seen, t_parts;

float* reserve(AlignedBuffer& buffer, int64_t count) {
  return buffer.reserve(static_cast<size_t>(count) * sizeof(float)) ? buffer.as<float>() : nullptr;
}

}  // namespace

struct Attention::Tile {
  AttendTask task;
  float* out[kAttendRows];
  int64_t first_stretch, last_stretch;
};

void Attention::plan() {
  const int64_t group = model_.heads / model_.kv_heads;
  tiles_ = cost_ = longest_ = 0;
  for (Run& run : runs_) {
    run.first_tile = tiles_;
    tiles_ += model_.kv_heads * div_up(run.count * group, kAttendRows);
    cost_ += model_.heads * run.count * (run.position + run.count) * model_.head_dim;
    longest_ = std::max(longest_, run.position + run.count);
  }
}

Attention::Tile Attention::open_tile(int64_t layer_index, int64_t number, const float* qkv, float* out) const {
  size_t i = runs_.size() - 1;
  if (runs_.size() > 1) {
    i = static_cast<size_t>(std::upper_bound(runs_.begin(), runs_.end(), number,
                                             [](int64_t value, const Run& r) { return value < r.first_tile; }) -
                            runs_.begin()) -
        1;
  }
  const Run& run = runs_[i];
  const int64_t window = model_.layers[static_cast<size_t>(layer_index)].window;
  const int64_t group = model_.heads / model_.kv_heads;
  const int64_t tiles = div_up(run.count * group, kAttendRows);
  const int64_t kv_head = (number - run.first_tile) / tiles;
  const int64_t first_row = (number - run.first_tile) % tiles * kAttendRows;

  Tile tile;
  AttendTask& task = tile.task;
  task.pages = run.sequence->pages();
  task.key_offset = static_cast<int64_t>(layout_.keys(layer_index, kv_head));
  task.value_offset = static_cast<int64_t>(layout_.values(layer_index, kv_head));
  task.dtype = model_.kv_dtype;
  task.head_dim = model_.head_dim;
  task.rows = static_cast<int>(std::min<int64_t>(kAttendRows, run.count * group - first_row));
  task.scale = model_.attention_scale;
  task.softcap = model_.attention_softcap;
  int64_t lowest = INT64_MAX, highest = 0;
  for (int r = 0; r < task.rows; ++r) {
    const int64_t in_run = (first_row + r) / group, token = run.first + in_run;
    const int64_t head = kv_head * group + (first_row + r) % group;
    task.q[r] = qkv + token * model_.qkv_size() + head * model_.head_dim;
    tile.out[r] = out + token * model_.q_size() + head * model_.head_dim;
    task.last[r] = run.position + in_run + 1;
    task.first[r] = window > 0 ? std::max<int64_t>(0, task.last[r] - window) : 0;
    lowest = std::min(lowest, task.first[r]);
    highest = std::max(highest, task.last[r]);
  }
  task.from = lowest;
  task.to = highest;
  tile.first_stretch = lowest / kStretchPositions;
  tile.last_stretch = (highest - 1) / kStretchPositions;
  return tile;
}

bool Attention::attend_stretch(const Tile& tile, int64_t stretch, float* rows_seen) const {
  AttendTask task = tile.task;
  task.from = std::max(task.from, stretch * kStretchPositions);
  task.to = std::min(task.to, (stretch + 1) * kStretchPositions);
  task.rows_seen = rows_seen;
  task.scratch = reserve(t_scratch, attend_scratch(model_.head_dim));
  if (task.scratch == nullptr) return false;
  floats_.attend(task);
  return true;
}

// Every row takes part in the stretches that it sees something of, in their order, whatever the other rows of the tile see.
void Attention::merge(const Tile& tile, int64_t stretch, const float* more, float* seen) const {
  const int64_t floats = attend_row_floats(model_.head_dim);
  for (int r = 0; r < tile.task.rows; ++r) {
    const int64_t first = tile.task.first[r] / kStretchPositions, last = (tile.task.last[r] - 1) / kStretchPositions;
    if (stretch == first) std::memcpy(seen + r * floats, more + r * floats, static_cast<size_t>(floats) * sizeof(float));
    if (stretch > first && stretch <= last) floats_.merge_attended(more + r * floats, model_.head_dim, seen + r * floats);
  }
}

void Attention::finish(const Tile& tile, const float* seen) const {
  for (int r = 0; r < tile.task.rows; ++r) {
    floats_.finish_attended(seen + r * attend_row_floats(model_.head_dim), model_.head_dim, tile.out[r]);
  }
}

bool Attention::attend_tile(const Tile& tile) const {
  const int64_t floats = kAttendRows * attend_row_floats(model_.head_dim);
  float* const seen = reserve(t_seen, 2 * floats);
  if (seen == nullptr) return false;
  if (tile.first_stretch == tile.last_stretch) {
    if (!attend_stretch(tile, tile.first_stretch, seen)) return false;
  } else {
    for (int64_t stretch = tile.first_stretch; stretch <= tile.last_stretch; ++stretch) {
      if (!attend_stretch(tile, stretch, seen + floats)) return false;
      merge(tile, stretch, seen + floats, seen);
    }
  }
  finish(tile, seen);
  return true;
}

// Few tiles: their stretches are computed at the same time, and merged afterwards in their order.
int Attention::attend_in_stretches(int64_t layer_index, const float* qkv, float* out) const {
  struct Part {
    size_t tile;
    int64_t stretch;
  };
  std::vector<Tile> tiles;
  std::vector<Part> parts;
  int64_t rows = 0;
  for (int64_t i = 0; i < tiles_; ++i) {
    tiles.push_back(open_tile(layer_index, i, qkv, out));
    rows = std::max<int64_t>(rows, tiles.back().task.rows);
    for (int64_t s = tiles.back().first_stretch; s <= tiles.back().last_stretch; ++s) parts.push_back({tiles.size() - 1, s});
  }
  const int64_t floats = rows * attend_row_floats(model_.head_dim), count = static_cast<int64_t>(parts.size());
  float* const seen = reserve(t_parts, (count + 1) * floats);
  if (seen == nullptr) return BD_ERROR_OUT_OF_MEMORY;
  std::atomic<bool> failed{false};
  parallel_for(count, [&](int64_t i) {
    const Part& part = parts[static_cast<size_t>(i)];
    if (!attend_stretch(tiles[part.tile], part.stretch, seen + (i + 1) * floats)) failed = true;
  });
  if (failed) return BD_ERROR_OUT_OF_MEMORY;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Tile& tile = tiles[parts[i].tile];
    merge(tile, parts[i].stretch, seen + static_cast<int64_t>(i + 1) * floats, seen);
    if (parts[i].stretch == tile.last_stretch) finish(tile, seen);
  }
  return BD_OK;
}

int Attention::attend(int64_t layer_index, const float* qkv, float* out) {
  const bool alone = cost_ < kAttendAlone;
  const int threads = num_threads();
  if (!alone && threads > 1 && longest_ > kStretchPositions && tiles_ < kTilesPerThread * threads) {
    return attend_in_stretches(layer_index, qkv, out);
  }
  std::atomic<bool> failed{false};
  const auto body = [&](int64_t i) {
    if (!attend_tile(open_tile(layer_index, i, qkv, out))) failed = true;
  };
  if (alone) {
    for (int64_t i = 0; i < tiles_; ++i) body(i);
  } else {
    parallel_for(tiles_, body);
  }
  return failed ? BD_ERROR_OUT_OF_MEMORY : BD_OK;
}

}  // namespace bitdistill
