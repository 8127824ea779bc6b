// Where a thread goes that may neither go on nor end.
#pragma once

#include <chrono>
#include <thread>

namespace pyinfer {

[[noreturn]] inline void park() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace pyinfer
