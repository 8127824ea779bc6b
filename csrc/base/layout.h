// Shares one block of memory out: aligned runs, one after the other. With no memory it only measures, so that one function
// does both.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"

namespace pyinfer {

class Layout {
 public:
  explicit Layout(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    const size_t at = used_;
    used_ += round_up(count * sizeof(T), kAlignment);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

}  // namespace pyinfer
