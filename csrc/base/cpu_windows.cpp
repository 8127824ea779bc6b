// How much of the machine this process may use, on Windows. Compiled to nothing elsewhere.
#if defined(_WIN32)
#include "base/cpu.h"

#include <windows.h>
#include <algorithm>
#include <bit>
#include <vector>

namespace pyinfer {
namespace {

// The processors of one group of 64 that this process may run on; a mask of 0 where it runs in several groups, and so on all of them.
struct Affinity {
  USHORT group = 0;
  KAFFINITY mask = 0;
  bool holds(const GROUP_AFFINITY& core) const { return mask == 0 || (core.Group == group && (core.Mask & mask) != 0); }
};

Affinity affinity() {
  Affinity own;
  USHORT n_groups = 1;  // more of them than there is room for are an error
  DWORD_PTR process = 0, system = 0;
  if (::GetProcessGroupAffinity(::GetCurrentProcess(), &n_groups, &own.group) != 0 &&
      ::GetProcessAffinityMask(::GetCurrentProcess(), &process, &system) != 0)
    own.mask = process;
  return own;
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
  const KAFFINITY mask = affinity().mask;
  const int all = static_cast<int>(::GetActiveProcessorCount(ALL_PROCESSOR_GROUPS));
  return std::max(1, mask != 0 ? std::popcount(static_cast<unsigned long long>(mask)) : all);
}

int fast_cores() {
  const Affinity own = affinity();
  const std::vector<unsigned char> records = core_records();
  int fastest = -1, n_cores = 0;
  for (size_t at = 0; at < records.size();) {
    const auto* record = reinterpret_cast<const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data() + at);
    const PROCESSOR_RELATIONSHIP& core = record->Processor;
    // EfficiencyClass, the byte after Flags, which older headers do not name: the fast cores of a hybrid processor have the highest.
    const int speed = reinterpret_cast<const unsigned char*>(&core)[1];
    if (own.holds(core.GroupMask[0])) {
      if (speed > fastest) fastest = speed, n_cores = 0;
      n_cores += speed == fastest;
    }
    at += record->Size;
  }
  return n_cores > 0 ? std::min(n_cores, available_processors()) : available_processors();
}

}  // namespace pyinfer
#endif
