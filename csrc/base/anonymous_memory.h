// Large zeroed memory straight from the system: pages cost nothing until they are touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyinfer {

class AnonymousMemory {
 public:
  AnonymousMemory() = default;
  // Throws a memory error if the system refuses. Asks for huge pages where the system has them.
  explicit AnonymousMemory(size_t bytes);
  ~AnonymousMemory();
  AnonymousMemory(AnonymousMemory&& other) noexcept;
  AnonymousMemory& operator=(AnonymousMemory&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pyinfer
