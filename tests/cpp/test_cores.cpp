// How many threads are taken unless told otherwise: on boards, laptops, servers and in containers, from the files that they show.
#include <filesystem>
#include <fstream>
#include <numeric>

#include "base/cores.h"
#include "check.h"
#include "tiny_model.h"

using namespace pyinfer;

namespace {

constexpr double kNone = 1e9;

// A folder with files in it, removed at the end.
class Files {
 public:
  Files() { std::filesystem::create_directories(root()); }
  ~Files() { std::filesystem::remove_all(root()); }
  std::string root() const { return name_.path() + "-files"; }
  void put(const std::string& path, const std::string& text) const {
    const std::filesystem::path whole = root() + "/" + path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text << "\n";
  }
  void cpu(int number, const std::string& siblings, long frequency = 0, long capacity = 0) const {
    const std::string own = "system/cpu/cpu" + std::to_string(number);
    if (!siblings.empty()) put(own + "/topology/thread_siblings_list", siblings);
    if (frequency > 0) put(own + "/cpufreq/cpuinfo_max_freq", std::to_string(frequency));
    if (capacity > 0) put(own + "/cpu_capacity", std::to_string(capacity));
  }
  int threads(int n, double quota = kNone) const {
    std::vector<int> numbers(static_cast<std::size_t>(n));
    std::iota(numbers.begin(), numbers.end(), 0);
    return threads_for(read_processors(root(), numbers), quota);
  }

 private:
  tiny::TemporaryFile name_;
};

}  // namespace

TEST(cores, four_on_a_raspberry_pi) {
  const Files pi4, pi5, bare;
  for (int i = 0; i < 4; ++i) {
    pi4.cpu(i, std::to_string(i), 1800000);
    pi5.cpu(i, std::to_string(i), 2400000, 1024);
  }
  CHECK_EQUAL(pi4.threads(4), 4);
  CHECK_EQUAL(pi5.threads(4), 4);
  CHECK_EQUAL(bare.threads(4), 4);  // a kernel that says nothing of its processors
  CHECK_EQUAL(pi4.threads(2), 2);   // an affinity mask
}

TEST(cores, one_a_core_where_two_threads_share_it) {
  const Files adjacent, apart, cluster;
  for (int i = 0; i < 8; ++i) {
    adjacent.cpu(i, std::to_string(i / 2 * 2) + "-" + std::to_string(i / 2 * 2 + 1));
    apart.cpu(i, std::to_string(i % 4) + "," + std::to_string(i % 4 + 4));
    const std::string topology = "system/cpu/cpu" + std::to_string(i) + "/topology";
    cluster.put(topology + "/core_cpus_list", std::to_string(i));
    cluster.put(topology + "/core_id", std::to_string(i % 4));  // repeats between clusters
  }
  CHECK_EQUAL(adjacent.threads(8), 4);
  CHECK_EQUAL(apart.threads(8), 4);
  CHECK_EQUAL(cluster.threads(8), 8);
}

TEST(cores, only_fast_ones) {
  const Files rockchip, intel, turbo;
  for (int i = 0; i < 8; ++i) rockchip.cpu(i, std::to_string(i), 0, i < 4 ? 400 : 1024);
  for (int i = 0; i < 12; ++i) {  // four fast cores of two threads, four slow ones
    const int first = i / 2 * 2;
    intel.cpu(i, i < 8 ? std::to_string(first) + "-" + std::to_string(first + 1) : std::to_string(i),
              i < 8 ? 5000000 : 3600000);
  }
  for (int i = 0; i < 4; ++i) turbo.cpu(i, std::to_string(i), i == 0 ? 4500000 : 4300000);  // a favoured core
  CHECK_EQUAL(rockchip.threads(8), 4);
  CHECK_EQUAL(rockchip.threads(4), 4);  // the slow ones alone
  CHECK_EQUAL(intel.threads(12), 4);
  CHECK_EQUAL(turbo.threads(4), 4);
}

TEST(cores, slow_ones_of_intel_whatever_their_frequency) {
  const Files hybrid, unnamed;
  for (const Files* files : {&hybrid, &unnamed}) {
    for (int i = 0; i < 8; ++i)
      files->cpu(i, std::to_string(i), i < 4 ? 5400000 : 4300000, files == &unnamed ? 1024 : 0);
  }
  CHECK_EQUAL(hybrid.threads(8), 8);
  hybrid.put("cpu_core/cpus", "0-3");
  hybrid.put("cpu_atom/cpus", "4-5,6");
  hybrid.put("cpu_lowpower/cpus", "7");
  CHECK_EQUAL(hybrid.threads(8), 4);
  CHECK_EQUAL(hybrid.threads(2), 2);
  unnamed.put("cpu_atom/cpus", "4-7");
  CHECK_EQUAL(unnamed.threads(8), 4);
  const Files bare, odd;
  bare.put("cpu_atom/cpus", "0-7");
  odd.put("cpu_atom/cpus", "nonsense");
  CHECK_EQUAL(bare.threads(4), 4);  // the slow ones alone
  CHECK_EQUAL(odd.threads(4), 4);
}

TEST(cores, no_more_than_the_quota) {
  const Files files;
  CHECK_EQUAL(files.threads(4, 2.0), 2);
  CHECK_EQUAL(files.threads(4, 1.5), 2);
  CHECK_EQUAL(files.threads(4, 0.1), 1);
  CHECK_EQUAL(files.threads(4, 16.0), 4);
  CHECK_EQUAL(threads_for({}, kNone), 1);
}

TEST(cores, the_tightest_quota_of_all_groups) {
  const Files files;
  const std::string root = files.root() + "/cgroup", self = files.root() + "/self";
  CHECK_EQUAL(read_quota(root, self), kNone);
  files.put("self", "0::/outer/inner");
  files.put("cgroup/outer/cpu.max", "150000 100000");
  files.put("cgroup/outer/inner/cpu.max", "max 100000");
  CHECK_EQUAL(read_quota(root, self), 1.5);
  files.put("cgroup/outer/inner/cpu.max", "50000 100000");
  CHECK_EQUAL(read_quota(root, self), 0.5);
  files.put("cgroup/cpu.max", "20000 100000");
  CHECK_EQUAL(read_quota(root, self), 0.2);
  for (const char* odd : {"nonsense", "-1 100000", "50000 0", "50000", ""}) {
    files.put("cgroup/cpu.max", odd);
    CHECK_EQUAL(read_quota(root, self), 0.5);
  }
}

TEST(cores, quotas_of_the_first_version) {
  const Files files;
  const std::string root = files.root() + "/cgroup", self = files.root() + "/self";
  files.put("self", "5:cpuset:/other\n4:cpu,cpuacct:/job\n0::/");
  files.put("cgroup/cpu/cpu.cfs_quota_us", "-1");
  files.put("cgroup/cpu/job/cpu.cfs_quota_us", "300000");
  files.put("cgroup/cpu/job/cpu.cfs_period_us", "100000");
  CHECK_EQUAL(read_quota(root, self), 3.0);
  files.put("cgroup/cpu/cpu.cfs_quota_us", "200000");  // as a container sees its own
  CHECK_EQUAL(read_quota(root, self), 2.0);
}
