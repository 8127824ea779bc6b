#include "base/cpu.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pyinfer {

bool cpu_runs_scalar() { return true; }

#if defined(__linux__)
namespace {

long read_number(const std::string& path, long otherwise) {
  std::ifstream file(path);
  long value = otherwise;
  return file >> value ? value : otherwise;
}

std::vector<int> affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> processors;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return processors;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) processors.push_back(cpu);
  }
  return processors;
}

// Processors' worth of time that the cgroup allows, or a large number. Versions 2 and 1.
double cgroup_quota() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::stod(quota) / period;
  const long v1 = read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1);
  const long v1_period = read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000);
  return v1 > 0 && v1_period > 0 ? static_cast<double>(v1) / static_cast<double>(v1_period) : 1e9;
}

int within_quota(size_t n) {
  const double limit = std::min(static_cast<double>(n), std::ceil(cgroup_quota()));
  return std::max(1, static_cast<int>(limit));
}

// Processors slower than three quarters of the fastest (by capacity, else by maximum frequency) are left out.
std::vector<int> fast_ones(const std::vector<int>& processors) {
  std::vector<long> speeds;
  for (const int cpu : processors) {
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
    const long capacity = read_number(base + "/cpu_capacity", 0);
    speeds.push_back(capacity > 0 ? capacity : read_number(base + "/cpufreq/cpuinfo_max_freq", 0));
  }
  const long fastest = speeds.empty() ? 0 : *std::max_element(speeds.begin(), speeds.end());
  std::vector<int> fast;
  for (size_t i = 0; i < processors.size(); ++i) {
    if (speeds[i] * 4 >= fastest * 3) fast.push_back(processors[i]);
  }
  return fast;
}

}  // namespace

int available_processors() {
  const size_t n = affinity().size();
  return within_quota(n > 0 ? n : std::max(1u, std::thread::hardware_concurrency()));
}

int default_threads() {
  std::set<std::pair<long, long>> cores;
  for (const int cpu : fast_ones(affinity())) {
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    const long core = read_number(topology + "core_id", -1);
    cores.emplace(read_number(topology + "physical_package_id", 0), core >= 0 ? core : 1000000 + cpu);
  }
  return cores.empty() ? available_processors() : std::min(within_quota(cores.size()), available_processors());
}
#elif defined(__APPLE__)
namespace {
int sysctl_int(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return ::sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}
}  // namespace

int available_processors() { return std::max(1u, std::thread::hardware_concurrency()); }

int default_threads() {
  const int fast = sysctl_int("hw.perflevel0.physicalcpu");
  return fast > 0 ? fast : std::max(1, sysctl_int("hw.physicalcpu"));
}
#elif !defined(_WIN32)  // cpu_windows.cpp
int available_processors() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }
int default_threads() { return available_processors(); }
#endif

void cpu_wait(int spin) {
  constexpr int kSpins = 4000;
  if (spin < kSpins) {
    cpu_pause();
  } else {
    std::this_thread::yield();
  }
}

}  // namespace pyinfer
