// Keys and values of some sequences, in pages of 64 positions that sequences share until one of them writes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "decoder/model.h"

namespace bitdistill {

// Byte positions inside a page, which holds all layers and key-value heads (float_kernels.h says how).
struct PageLayout {
  explicit PageLayout(const Model& model);

  size_t keys(int64_t layer, int64_t kv_head) const {
    return static_cast<size_t>(layer * heads + kv_head) * (key_bytes + value_bytes);
  }
  size_t values(int64_t layer, int64_t kv_head) const { return keys(layer, kv_head) + key_bytes; }

  int64_t heads;
  size_t key_bytes, value_bytes;  // of one layer and head
  size_t key_block_bytes;         // of 16 positions
  size_t total;
};

// Memory of a page, in the system's large pages if asked for and where it has them; throws std::bad_alloc.
class Page {
 public:
  Page(size_t bytes, bool large);
  ~Page();
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
};

class Sequence {
 public:
  int64_t length() const { return length_; }
  const uint8_t* const* pages() const { return starts_.data(); }
  uint8_t* writable_page(int64_t position) const { return pages_[static_cast<size_t>(position / kPagePositions)]->data(); }
  const Page* page(size_t i) const { return pages_[i].get(); }
  size_t page_count() const { return pages_.size(); }

  // Makes room for positions up to `length`, all writable from the present length on; throws std::bad_alloc. The length
  // stays what it is.
  void reserve(int64_t length, const PageLayout& layout);
  void set_length(int64_t length) { length_ = length; }
  void truncate(int64_t length);

 private:
  int64_t length_ = 0;
  std::vector<std::shared_ptr<Page>> pages_;
  std::vector<const uint8_t*> starts_;
};

}  // namespace bitdistill

struct bd_cache {
  bd_cache(const bitdistill::Model& owner, int64_t count)
      : model(&owner), layout(owner), sequences(static_cast<size_t>(count)) {}

  const bitdistill::Model* const model;  // of the decoder that it was made for
  const bitdistill::PageLayout layout;
  std::vector<bitdistill::Sequence> sequences;
  mutable std::mutex mutex;
};
