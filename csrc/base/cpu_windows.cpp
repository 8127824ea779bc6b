// How much of the machine this process may use, on Windows. Compiled to nothing elsewhere.
#if defined(_WIN32)
#include "base/cpu.h"

#include <windows.h>
#include <algorithm>
#include <bit>
#include <vector>

namespace pyinfer {
namespace {

// The processors this process may run on; 0 where it runs in several groups of 64, and so on all of them.
KAFFINITY affinity() {
  DWORD_PTR process = 0, system = 0;
  return ::GetProcessAffinityMask(::GetCurrentProcess(), &process, &system) != 0 ? process : 0;
}

// A record for each physical core, one after the other and of varying size; empty where the system does not say.
std::vector<unsigned char> core_records() {
  DWORD bytes = 0;
  ::GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
  std::vector<unsigned char> records(bytes);
  auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data());
  if (bytes == 0 || ::GetLogicalProcessorInformationEx(RelationProcessorCore, first, &bytes) == 0) return {};
  records.resize(bytes);
  return records;
}

}  // namespace

int available_processors() {
  const KAFFINITY mask = affinity();
  const int all = static_cast<int>(::GetActiveProcessorCount(ALL_PROCESSOR_GROUPS));
  return std::max(1, mask != 0 ? std::popcount(static_cast<unsigned long long>(mask)) : all);
}

int fast_cores() {
  const KAFFINITY mask = affinity();
  const std::vector<unsigned char> records = core_records();
  int fastest = -1, n_cores = 0;
  for (size_t at = 0; at < records.size();) {
    const auto* record = reinterpret_cast<const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data() + at);
    const PROCESSOR_RELATIONSHIP& core = record->Processor;
    // EfficiencyClass, the byte after Flags, which older headers do not name: the fast cores of a hybrid processor have the highest.
    const int speed = reinterpret_cast<const unsigned char*>(&core)[1];
    if (mask == 0 || (core.GroupMask[0].Mask & mask) != 0) {
      if (speed > fastest) fastest = speed, n_cores = 0;
      n_cores += speed == fastest;
    }
    at += record->Size;
  }
  return std::clamp(n_cores, 1, available_processors());
}

}  // namespace pyinfer
#endif
