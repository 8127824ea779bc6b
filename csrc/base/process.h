// This process and the memory of its machine, as the system tells.
#pragma once

#include <cstdint>
#include <optional>

namespace pyinfer {

// Its number; a child of a fork has another than its parent.
int process_id();
// Most bytes that it had in memory at once.
uint64_t peak_memory();
// Bytes of the machine's memory that can be had without swapping, page cache included. None on Linux, where control groups count
// too: pyinfer/memory.py reads /proc and /sys.
std::optional<uint64_t> available_memory();

}  // namespace pyinfer
