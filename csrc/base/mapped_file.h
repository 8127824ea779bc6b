// A regular file, opened read-only and mapped whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyinfer {

class MappedFile {
 public:
  // `path` is UTF-8. Throws a system error where the file cannot be opened, model_file where it is no regular file or is empty.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Throws model_file if the file has been cut since it was mapped: touching pages past its end would kill the process.
  void check_whole() const;
  // Asks the system to read the file ahead; a hint that may be ignored.
  void prefetch() const;

 private:
  std::string path_;
#if defined(_WIN32)
  void* file_ = nullptr;  // a handle
#else
  int descriptor_ = -1;
#endif
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pyinfer
