// How many threads a memory-bound program should use: the decision alone, and what it is made from. Asks the system nothing but files
// under the folder that it is given.
#pragma once

#include <string>
#include <vector>

namespace pyinfer {

// One logical processor that this process may run on.
struct Processor {
  std::string core;  // the same for processors that share a physical core
  long speed;        // relative capacity or maximum frequency; 1 where the system does not say, 0 of what it calls slow
};

// A thread for each physical core among the fast ones (at least three quarters of the fastest, so that no core waits for a slower one),
// but no more than the quota, in processors' worth of time, allows; at least 1. A quota that is no whole number is rounded up.
int threads_for(const std::vector<Processor>& processors, double quota);

// Linux: processors by their numbers, from a folder like /sys/devices.
std::vector<Processor> read_processors(const std::string& devices, const std::vector<int>& numbers);
// Linux: the tightest quota of the control groups, of version 2 or 1, that a process is in, from a folder like /sys/fs/cgroup and a file
// like /proc/self/cgroup; a large number where there is none.
double read_quota(const std::string& folder, const std::string& membership);

}  // namespace pyinfer
