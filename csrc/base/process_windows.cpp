// Windows. Compiled to nothing elsewhere.
#if defined(_WIN32)
#include "base/process.h"

#include <windows.h>

#include <psapi.h>  // needs what windows.h defines

namespace pyinfer {

int process_id() { return static_cast<int>(::GetCurrentProcessId()); }

uint64_t peak_memory() {
  PROCESS_MEMORY_COUNTERS counters{};
  counters.cb = sizeof counters;
  return ::GetProcessMemoryInfo(::GetCurrentProcess(), &counters, sizeof counters) != 0 ? counters.PeakWorkingSetSize
                                                                                        : 0;
}

std::optional<uint64_t> available_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  if (::GlobalMemoryStatusEx(&status) == 0) return std::nullopt;
  return status.ullAvailPhys;
}

}  // namespace pyinfer
#endif
