// Chooses the instruction set once, when first asked.
#pragma once

#include <span>

#include "kernels/kernels.h"

namespace pyinfer {

struct Isa {
  const char* name;
  bool (*runs_here)();
  const Kernels* (*table)();
};

// Every instruction set of this build, slowest first.
std::span<const Isa> isas();
// The best that runs here, or the one that the environment variable PYINFER_ISA names.
// Throws a request error that lists what there is if that name is unknown or does not run here.
const Kernels& active_kernels();

}  // namespace pyinfer
