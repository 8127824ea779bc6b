// Memory that is aligned for vector loads, zeroed, and owned by one place.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include "base/error.h"

namespace pyinfer {

inline constexpr size_t kAlignment = 64;

inline constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class T>
class Buffer {
  static_assert(std::is_trivial_v<T>);

 public:
  Buffer() = default;
  // `count` zeroed elements at a multiple of 64 bytes.
  explicit Buffer(size_t count) : size_(count) {
    const size_t bytes = round_up(count * sizeof(T), kAlignment);
    if (bytes == 0) return;
    data_.reset(static_cast<T*>(::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow)));
    if (!data_) throw Error(ErrorKind::memory, "cannot allocate " + std::to_string(bytes) + " bytes");
    std::memset(data_.get(), 0, bytes);
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace pyinfer
