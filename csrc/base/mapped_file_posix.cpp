// Linux and macOS. Compiled to nothing elsewhere.
#if !defined(_WIN32)
#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>

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

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  // O_NONBLOCK: opening a FIFO must fail the check below, not wait for a writer.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(path, "cannot be opened");
  try {
    size_ = regular_size(path, descriptor_);
    if (size_ == 0) throw Error(ErrorKind::model_file, path + ": expected a model file, found an empty file");
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
    if (address == MAP_FAILED) fail(path, "cannot be mapped");
    data_ = static_cast<const uint8_t*>(address);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

MappedFile::~MappedFile() {
  ::munmap(const_cast<uint8_t*>(data_), size_);
  ::close(descriptor_);
}

void MappedFile::check_whole() const {
  const size_t now = regular_size(path_, descriptor_);
  if (now < size_) {
    throw Error(ErrorKind::model_file, path_ + ": expected " + std::to_string(size_) +
                                           " bytes as when it was opened, found " + std::to_string(now) +
                                           ": the file was cut while in use");
  }
}

void MappedFile::prefetch() const { ::madvise(const_cast<uint8_t*>(data_), size_, MADV_WILLNEED); }

}  // namespace pyinfer
#endif
