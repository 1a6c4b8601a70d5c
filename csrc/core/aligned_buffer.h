// Scratch memory: 64-byte aligned, grows and never shrinks, reports failure instead of throwing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <utility>

#include "bitdistill.h"

namespace bitdistill {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), capacity_(std::exchange(other.capacity_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { std::free(data_); }

  // At least `bytes` of memory; the old content is lost when it has to grow. False: out of memory.
  bool reserve(size_t bytes) {
    if (bytes <= capacity_) return true;
    const size_t rounded = (bytes + bytes / 4 + BD_ALIGNMENT - 1) / BD_ALIGNMENT * BD_ALIGNMENT;
    void* fresh = nullptr;
    if (rounded < bytes || posix_memalign(&fresh, BD_ALIGNMENT, rounded) != 0) return false;
    std::free(data_);
    data_ = fresh;
    capacity_ = rounded;
    return true;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace bitdistill
