// Windows. Compiled to nothing elsewhere. The system itself refuses to cut a file that is mapped, unless it lies on another machine.
#if defined(_WIN32)
#include "base/mapped_file.h"

#include <windows.h>
#include <cerrno>
#include <system_error>

#include "base/error.h"

namespace pyinfer {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  const std::error_code found(static_cast<int>(::GetLastError()), std::system_category());
  const std::error_condition known = found.default_error_condition();
  const int code = known.category() == std::generic_category() ? known.value() : EIO;
  throw Error(path + ": " + what + ": " + std::generic_category().message(code) + " (Windows error " +
                  std::to_string(found.value()) + ")",
              code);
}

std::wstring wide(const std::string& path) {
  const int size = static_cast<int>(path.size());
  const int n = ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), size, nullptr, 0);
  if (n == 0) fail(path, "cannot be opened");
  std::wstring result(static_cast<size_t>(n), L'\0');
  ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), size, result.data(), n);
  return result;
}

size_t regular_size(const std::string& path, HANDLE file) {
  BY_HANDLE_FILE_INFORMATION status{};
  const bool on_disk = ::GetFileType(file) == FILE_TYPE_DISK;
  if (on_disk && ::GetFileInformationByHandle(file, &status) == 0) fail(path, "cannot be examined");
  if (!on_disk || (status.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0) {
    throw Error(ErrorKind::model_file, path + ": expected a regular file, found a folder or a device");
  }
  return static_cast<size_t>(uint64_t{status.nFileSizeHigh} << 32 | status.nFileSizeLow);
}

const uint8_t* map(const std::string& path, HANDLE file) {
  const HANDLE mapping = ::CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) fail(path, "cannot be mapped");
  const void* address = ::MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
  const DWORD error = ::GetLastError();
  ::CloseHandle(mapping);  // the view keeps it
  ::SetLastError(error);
  if (address == nullptr) fail(path, "cannot be mapped");
  return static_cast<const uint8_t*>(address);
}

}  // namespace

MappedFile::MappedFile(const std::string& path, HugePages huge_pages) : path_(path), huge_pages_(huge_pages) {
  if (huge_pages == HugePages::on) {  // they take a privilege that users do not have
    throw Error(ErrorKind::request, "huge_pages: expected auto or off on this system, found on");
  }
  // Others may go on reading, renaming and deleting it. Folders can be opened only with BACKUP_SEMANTICS, and are then told apart.
  constexpr DWORD kSharing = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
  file_ = ::CreateFileW(wide(path).c_str(), GENERIC_READ, kSharing, nullptr, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS,
                        nullptr);
  if (file_ == INVALID_HANDLE_VALUE) fail(path, "cannot be opened");
  try {
    size_ = regular_size(path, file_);
    if (size_ == 0) throw Error(ErrorKind::model_file, path + ": expected a model file, found an empty file");
    data_ = map(path, file_);
  } catch (...) {
    ::CloseHandle(file_);
    throw;
  }
}

MappedFile::~MappedFile() {
  ::UnmapViewOfFile(data_);
  ::CloseHandle(file_);
}

void MappedFile::check_whole() const {
  const size_t now = regular_size(path_, file_);
  if (now < size_) {
    throw Error(ErrorKind::model_file, path_ + ": expected " + std::to_string(size_) +
                                           " bytes as when it was opened, found " + std::to_string(now) +
                                           ": the file was cut while in use");
  }
}

void MappedFile::prefetch() const {
  WIN32_MEMORY_RANGE_ENTRY range{const_cast<uint8_t*>(data_), size_};
  ::PrefetchVirtualMemory(::GetCurrentProcess(), 1, &range, 0);
}

}  // namespace pyinfer
#endif
