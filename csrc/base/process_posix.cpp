// Linux and macOS. Compiled to nothing elsewhere.
#if !defined(_WIN32)
#include "base/process.h"

#include <sys/resource.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <mach/mach.h>
#endif

namespace pyinfer {

int process_id() { return static_cast<int>(::getpid()); }

uint64_t peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return static_cast<uint64_t>(usage.ru_maxrss);
#else
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
#endif
}

#if defined(__APPLE__)
std::optional<uint64_t> available_memory() {
  vm_statistics64_data_t pages{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  auto* words = reinterpret_cast<host_info64_t>(&pages);
  const mach_port_t host = ::mach_host_self();
  vm_size_t page = 0;  // the kernel's: a translated process is told of smaller pages
  const bool told = ::host_statistics64(host, HOST_VM_INFO64, words, &count) == KERN_SUCCESS &&
                    ::host_page_size(host, &page) == KERN_SUCCESS;
  ::mach_port_deallocate(mach_task_self(), host);
  if (!told) return std::nullopt;
  const uint64_t free = uint64_t{pages.free_count} + pages.inactive_count + pages.purgeable_count;
  return free * page;
}
#else
std::optional<uint64_t> available_memory() { return std::nullopt; }
#endif

}  // namespace pyinfer
#endif
