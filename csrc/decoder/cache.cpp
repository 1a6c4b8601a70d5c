#include "decoder/cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bitdistill {
namespace {

// A large page of the system is in memory as a whole once any of it is: not for sequences that are short and many.
constexpr size_t kSmallPages = 4;

constexpr size_t kLargePage = size_t{2} << 20;

}  // namespace

// A cache is read once a token, from one end to the other; every few kilobytes a small page costs the translation of an
// address. A last large page that would be filled by little is left out.
Page::Page(size_t bytes, bool large) {
  size_t in_large = 0;
#if defined(__linux__)
  if (large) {
    in_large = (bytes + kLargePage - 1) / kLargePage * kLargePage;
    if (in_large - bytes > bytes / 8) in_large -= kLargePage;
  }
#endif
  void* data = nullptr;
  if (posix_memalign(&data, in_large == 0 ? BD_ALIGNMENT : kLargePage, std::max(bytes, in_large)) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (in_large != 0) madvise(data, in_large, MADV_HUGEPAGE);
#endif
  data_ = static_cast<uint8_t*>(data);
}

Page::~Page() { std::free(data_); }

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
  const auto fresh_page = [&](size_t number) { return std::make_shared<Page>(layout.total, number >= kSmallPages); };
  // Only the page that the present length ends in can be shared and be written to.
  const size_t partial = static_cast<size_t>(length_ / kPagePositions);
  if (partial < pages_.size() && length > length_ && pages_[partial].use_count() > 1) {
    auto page = fresh_page(partial);
    std::memcpy(page->data(), pages_[partial]->data(), layout.total);
    starts_[partial] = page->data();
    pages_[partial] = std::move(page);
  }
  pages_.reserve(wanted);
  starts_.reserve(wanted);
  while (pages_.size() < wanted) {
    pages_.push_back(fresh_page(pages_.size()));
    starts_.push_back(pages_.back()->data());
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
