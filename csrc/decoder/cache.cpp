#include "decoder/cache.h"

#include <cstring>
#include <new>

namespace bitdistill {

PageLayout::PageLayout(const Model& model) : heads(model.kv_heads) {
  const bool integers = model.kv_dtype == BD_SCALED_INT8;
  const size_t element = integers ? sizeof(int8_t) : model.kv_dtype == BD_FLOAT16 ? sizeof(uint16_t) : sizeof(float);
  const size_t scale = integers ? sizeof(float) : 0;
  const auto bytes = [&](int64_t columns) {
    const size_t position = static_cast<size_t>(columns) * element + scale;
    return static_cast<size_t>(round_up(kPagePositions * static_cast<int64_t>(position), BD_ALIGNMENT));
  };
  const int64_t key_columns = integers ? round_up(model.head_dim, 4) : model.head_dim;
  key_bytes = bytes(key_columns);
  key_block_bytes = static_cast<size_t>(kKeyBlock * key_columns) * element;
  value_bytes = bytes(round_up(model.head_dim, kKeyBlock));
  total = static_cast<size_t>(heads) * model.layers.size() * (key_bytes + value_bytes);
}

void Sequence::reserve(int64_t length, const PageLayout& layout) {
  const size_t wanted = static_cast<size_t>(div_up(length, kPagePositions));
  const auto fresh_page = [&] {
    auto page = std::make_shared<Page>();
    if (!page->data.reserve(layout.total)) throw std::bad_alloc();
    return page;
  };
  // Only the page that the present length ends in can be shared and be written to.
  const size_t partial = static_cast<size_t>(length_ / kPagePositions);
  if (partial < pages_.size() && length > length_ && pages_[partial].use_count() > 1) {
    auto page = fresh_page();
    std::memcpy(page->data.as<uint8_t>(), pages_[partial]->data.as<uint8_t>(), layout.total);
    starts_[partial] = page->data.as<uint8_t>();
    pages_[partial] = std::move(page);
  }
  pages_.reserve(wanted);
  starts_.reserve(wanted);
  while (pages_.size() < wanted) {
    pages_.push_back(fresh_page());
    starts_.push_back(pages_.back()->data.as<uint8_t>());
  }
}

void Sequence::truncate(int64_t length) {
  length_ = length;
  const size_t wanted = static_cast<size_t>(div_up(length, kPagePositions));
  if (pages_.size() > wanted) {
    pages_.resize(wanted);
    starts_.resize(wanted);
  }
}

}  // namespace bitdistill
