#include "base/anonymous_memory.h"

#include <string>
#include <utility>
#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#endif

#include "base/error.h"

namespace pyinfer {
namespace {

#if defined(_WIN32)
void* obtain(size_t bytes) { return ::VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }

void release(void* address, size_t) { ::VirtualFree(address, 0, MEM_RELEASE); }
#else
void* obtain(size_t bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
#if defined(MADV_HUGEPAGE)
  ::madvise(address, bytes, MADV_HUGEPAGE);
#endif
  return address;
}

void release(void* address, size_t bytes) { ::munmap(address, bytes); }
#endif

}  // namespace

AnonymousMemory::AnonymousMemory(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  data_ = static_cast<uint8_t*>(obtain(bytes));
  if (data_ == nullptr) {
    throw Error(ErrorKind::memory, "expected " + std::to_string(bytes) + " bytes of memory, the system refused them");
  }
}

AnonymousMemory::~AnonymousMemory() {
  if (data_ != nullptr) release(data_, size_);
}

AnonymousMemory::AnonymousMemory(AnonymousMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AnonymousMemory& AnonymousMemory::operator=(AnonymousMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace pyinfer
