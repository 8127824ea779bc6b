// The instruction sets that tests run on: all that run here, or the one that PYINFER_ISA names.
#pragma once

#include <cstdlib>
#include <string>

#include "kernels/dispatch.h"

inline bool is_tested(const pyinfer::Isa& isa) {
  const char* asked = std::getenv("PYINFER_ISA");
  return isa.runs_here() && (asked == nullptr || std::string(asked).empty() || std::string(asked) == isa.name);
}

template <class Each>
void on_every_isa(Each each) {
  for (const pyinfer::Isa& isa : pyinfer::isas())
    if (is_tested(isa)) each(*isa.table());
}
