// A regular file, opened read-only and mapped whole.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

namespace pyinfer {

// Pages of 2 MiB instead of 4 KiB, which are read faster where the translation of addresses is what reading waits for.
// automatic: where the system's cache of the file has them; on: in a copy of the file, private memory of this process; off: none are asked for.
enum class HugePages { automatic, on, off };

class MappedFile {
 public:
  // `path` is UTF-8. Throws a system error where the file cannot be opened, model_file where it is no regular file or is empty, request
  // for HugePages::on where the system has none to give.
  explicit MappedFile(const std::string& path, HugePages huge_pages = HugePages::automatic);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Throws model_file if the file has been cut since it was mapped: touching pages past its end would kill the process.
  void check_whole() const;
  // Asks the system to read the file ahead; a hint that may be ignored. With HugePages::on the first call copies the file, and throws
  // model_file where it has been cut, a system error where it cannot be read or memory is short. The bytes stay at their addresses.
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
  HugePages huge_pages_;
  mutable std::mutex copying_;
  mutable std::atomic<bool> copied_ = false;  // true once the file is needed no more
};

}  // namespace pyinfer
