#include "base/cores.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>

namespace pyinfer {
namespace {

constexpr double kNoQuota = 1e9;

long read_number(const std::string& path, long otherwise) {
  std::ifstream file(path);
  long value = otherwise;
  return file >> value ? value : otherwise;
}

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The list of processors that share the core names it best: core numbers repeat between packages and clusters.
std::string core_of(const std::string& folder, int number) {
  for (const char* name : {"/topology/core_cpus_list", "/topology/thread_siblings_list"}) {
    const std::string siblings = read_line(folder + name);
    if (!siblings.empty()) return siblings;
  }
  return std::to_string(number);
}

// Numbers as Linux lists them, "0-3,8"; none where there is no such file.
std::set<int> read_list(const std::string& path) {
  std::set<int> numbers;
  std::ifstream file(path);
  for (std::string range; std::getline(file, range, ',');) {
    int first = 0, last = 0;
    const int found = std::sscanf(range.c_str(), "%d-%d", &first, &last);
    if (found < 1) break;
    for (int number = first; number <= (found == 2 ? last : first); ++number) numbers.insert(number);
  }
  return numbers;
}

double quota_v2(const std::string& group) {
  std::ifstream file(group + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || period <= 0) return kNoQuota;
  const double most = std::strtod(quota.c_str(), nullptr);  // 0 for "max"
  return most > 0 ? most / period : kNoQuota;
}

double quota_v1(const std::string& group) {
  const long quota = read_number(group + "/cpu.cfs_quota_us", -1);
  const long period = read_number(group + "/cpu.cfs_period_us", 100000);
  return quota > 0 && period > 0 ? static_cast<double>(quota) / static_cast<double>(period) : kNoQuota;
}

// The tightest quota of a group and those above it.
double up_from(const std::string& root, std::string group, double (*quota)(const std::string&)) {
  double tightest = kNoQuota;
  for (;;) {
    tightest = std::min(tightest, quota(root + group));
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return tightest;
    group.resize(slash);
  }
}

}  // namespace

int threads_for(const std::vector<Processor>& processors, double quota) {
  long fastest = 0;
  for (const Processor& processor : processors) fastest = std::max(fastest, processor.speed);
  std::set<std::string> cores;
  for (const Processor& processor : processors) {
    if (processor.speed >= fastest - fastest / 4) cores.insert(processor.core);
  }
  const double n = std::min(static_cast<double>(cores.size()), std::ceil(quota));
  return std::max(1, static_cast<int>(n));
}

std::vector<Processor> read_processors(const std::string& devices, const std::vector<int>& numbers) {
  const std::string folder = devices + "/system/cpu";
  std::set<int> slow =
      read_list(devices + "/cpu_atom/cpus");  // Intel's, whose frequencies may be close to those of its fast cores
  slow.merge(read_list(devices + "/cpu_lowpower/cpus"));
  std::vector<Processor> processors;
  for (const int number : numbers) {
    const std::string own = folder + "/cpu" + std::to_string(number);
    const long capacity = read_number(own + "/cpu_capacity", 0);
    const long speed = capacity > 0 ? capacity : read_number(own + "/cpufreq/cpuinfo_max_freq", 1);
    processors.push_back({core_of(own, number), slow.count(number) != 0 ? 0 : speed});
  }
  return processors;
}

double read_quota(const std::string& folder, const std::string& membership) {
  double tightest = std::min(quota_v2(folder), quota_v1(folder + "/cpu"));
  std::ifstream file(membership);
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") tightest = std::min(tightest, up_from(folder, group, quota_v2));
    if (controllers.find(",cpu,") != std::string::npos)
      tightest = std::min(tightest, up_from(folder + "/cpu", group, quota_v1));
  }
  return tightest;
}

}  // namespace pyinfer
