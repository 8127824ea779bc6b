// Linux and macOS. Compiled to nothing elsewhere.
#if !defined(_WIN32)
#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/cancellation.h"
#include "base/error.h"

namespace pyinfer {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  const int code = errno;
  throw Error(path + ": " + what + ": " + std::strerror(code), code);
}

size_t regular_size(const std::string& path, int descriptor) {
  struct stat status{};
  if (::fstat(descriptor, &status) != 0) fail(path, "cannot be examined");
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::model_file, path + ": expected a regular file, found a folder or a device");
  }
  return static_cast<size_t>(status.st_size);
}

void* map(const std::string& path, void* place, size_t size, int protection, int flags, int descriptor) {
  void* address = ::mmap(place, size, protection, flags, descriptor, 0);
  if (address == MAP_FAILED && errno == ENOMEM) {
    throw Error(ErrorKind::memory, path + ": expected room for " + std::to_string(size) +
                                       " bytes among this process's addresses, found that the system gives none");
  }
  if (address == MAP_FAILED) fail(path, "cannot be mapped");
  return address;
}

#if defined(__linux__)
constexpr size_t kHugePage = size_t{2} << 20;

// Linux says which of "always", "madvise" and "never" holds by brackets.
void require_huge_pages() {
  constexpr const char* kSetting = "/sys/kernel/mm/transparent_hugepage/enabled";
  std::string setting;
  std::getline(std::ifstream(kSetting), setting);
  if (setting.empty() || setting.find("[never]") != std::string::npos) {
    throw Error(ErrorKind::request, std::string("huge_pages: expected auto or off, since ") + kSetting +
                                        (setting.empty() ? " is missing" : " says never") + ", found on");
  }
}

// Room for `size` bytes at an address that huge pages can have, given back unless it is kept.
class AlignedRoom {
 public:
  AlignedRoom(const std::string& path, size_t size, int protection)
      : size_(size + kHugePage),
        start_(static_cast<uint8_t*>(map(path, nullptr, size_, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1))) {}
  ~AlignedRoom() {
    if (size_ != 0) ::munmap(start_, size_);
  }
  AlignedRoom(const AlignedRoom&) = delete;
  AlignedRoom& operator=(const AlignedRoom&) = delete;

  uint8_t* place() const { return start_ + (kHugePage - reinterpret_cast<uintptr_t>(start_) % kHugePage) % kHugePage; }
  // Gives back what lies around `size` bytes, of whole pages, from place() on, and leaves those to the caller.
  void keep(size_t size) {
    const auto before = static_cast<size_t>(place() - start_);
    if (before != 0) ::munmap(start_, before);
    if (before + size < size_) ::munmap(place() + size, size_ - before - size);
    size_ = 0;
  }

 private:
  size_t size_;
  uint8_t* start_;
};

size_t whole_pages(size_t size) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

const uint8_t* map_aligned(const std::string& path, size_t size, int descriptor) {
  AlignedRoom room(path, size, PROT_NONE);
  uint8_t* const place = room.place();
  map(path, place, size, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor);
  room.keep(whole_pages(size));
  return place;
}

void read_whole(const std::string& path, int descriptor, uint8_t* out, size_t size) {
  for (size_t at = 0; at < size;) {
    const ssize_t n = ::pread(descriptor, out + at, std::min(size - at, size_t{1} << 30), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path, "cannot be read");
    if (n == 0) {
      throw Error(ErrorKind::model_file, path + ": expected " + std::to_string(size) +
                                             " bytes as when it was opened, found " + std::to_string(at));
    }
    at += static_cast<size_t>(n);
  }
}

// Puts a private copy of the file in the place of its mapping.
void copy_in_place(const std::string& path, int descriptor, const uint8_t* mapped, size_t size) {
  const size_t whole = whole_pages(size);
  AlignedRoom room(path, whole, PROT_READ | PROT_WRITE);
  uint8_t* const copy = room.place();
  ::madvise(copy, whole, MADV_HUGEPAGE);
  read_whole(path, descriptor, copy, size);
  if (::mprotect(copy, whole, PROT_READ) != 0) fail(path, "cannot be protected in memory");
  room.keep(whole);
  void* const place = const_cast<uint8_t*>(mapped);
  if (::mremap(copy, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
    const int code = errno;
    ::munmap(copy, whole);
    errno = code;
    fail(path, "cannot be moved in memory");
  }
}
#endif

}  // namespace

MappedFile::MappedFile(const std::string& path, HugePages huge_pages) : path_(path), huge_pages_(huge_pages) {
#if defined(__linux__)
  if (huge_pages == HugePages::on) require_huge_pages();
#else
  if (huge_pages == HugePages::on) {
    throw Error(ErrorKind::request, "huge_pages: expected auto or off on this system, found on");
  }
#endif
  // O_NONBLOCK: opening a FIFO must fail the check below, not wait for a writer.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(path, "cannot be opened");
  try {
    size_ = regular_size(path, descriptor_);
    if (size_ == 0) throw Error(ErrorKind::model_file, path + ": expected a model file, found an empty file");
#if defined(__linux__)
    data_ = map_aligned(path, size_, descriptor_);
    // What is not in the system's cache yet is then read in large pages, where the file system has them.
    if (huge_pages == HugePages::automatic) ::madvise(const_cast<uint8_t*>(data_), size_, MADV_HUGEPAGE);
#else
    data_ = static_cast<const uint8_t*>(map(path, nullptr, size_, PROT_READ, MAP_SHARED, descriptor_));
#endif
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

MappedFile::~MappedFile() {
  const NoCancellation whole;
  ::munmap(const_cast<uint8_t*>(data_), size_);
  ::close(descriptor_);
}

void MappedFile::check_whole() const {
  if (copied_) return;
  const size_t now = regular_size(path_, descriptor_);
  if (now < size_) {
    throw Error(ErrorKind::model_file, path_ + ": expected " + std::to_string(size_) +
                                           " bytes as when it was opened, found " + std::to_string(now) +
                                           ": the file was cut while in use");
  }
}

void MappedFile::prefetch() const {
#if defined(__linux__)
  if (huge_pages_ == HugePages::on) {
    const std::lock_guard lock(copying_);
    if (!copied_) copy_in_place(path_, descriptor_, data_, size_);
    copied_ = true;
    return;
  }
#endif
  ::madvise(const_cast<uint8_t*>(data_), size_, MADV_WILLNEED);
}

}  // namespace pyinfer
#endif
