#include "base/cpu.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "base/cores.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <pthread/qos.h>
#include <sys/sysctl.h>
#endif

namespace pyinfer {

bool cpu_runs_scalar() { return true; }

#if defined(__linux__)
namespace {

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

double quota() { return read_quota("/sys/fs/cgroup", "/proc/self/cgroup"); }

}  // namespace

int available_processors() {
  const size_t n = affinity().size();
  const double most = std::ceil(quota());
  return std::max(
      1, static_cast<int>(std::min(static_cast<double>(n > 0 ? n : std::thread::hardware_concurrency()), most)));
}

int fast_cores() {
  const std::vector<int> mine = affinity();
  if (mine.empty()) return available_processors();  // more of them than a mask of the usual size holds
  return threads_for(read_processors("/sys/devices", mine), quota());
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

int fast_cores() {
  const int fast = sysctl_int("hw.perflevel0.physicalcpu");
  return fast > 0 ? fast : std::max(1, sysctl_int("hw.physicalcpu"));
}
#elif !defined(_WIN32)  // cpu_windows.cpp
int available_processors() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }
int fast_cores() { return available_processors(); }
#endif

int default_threads() { return std::clamp(fast_cores(), 1, kMostThreads); }

void cpu_prefer_fast_cores() {
#if defined(__APPLE__)
  ::pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
#endif
}

void cpu_wait(int spin) {
  constexpr int kSpins = 4000;
  if (spin < kSpins) {
    cpu_pause();
  } else {
    std::this_thread::yield();
  }
}

}  // namespace pyinfer
