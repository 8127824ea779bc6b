#include "kernels/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/cpu.h"
#include "base/error.h"

// Each unit compiled from table.cpp exports this one function; isas.inc is written by CMake from cmake/isas.cmake.
#define PYINFER_ISA(name) extern "C" const pyinfer::Kernels* pyinfer_kernels_##name();
#include "isas.inc"
#undef PYINFER_ISA

namespace pyinfer {
namespace {

constexpr Isa kIsas[] = {
#define PYINFER_ISA(name) {#name, cpu_runs_##name, pyinfer_kernels_##name},
#include "isas.inc"
#undef PYINFER_ISA
};

template <class Which>
std::string names_of(const Which& which) {
  std::string names;
  for (const Isa& isa : kIsas) {
    if (which(isa)) names += (names.empty() ? "" : ", ") + std::string(isa.name);
  }
  return names;
}

std::string available_names() {
  return names_of([](const Isa& isa) { return isa.runs_here(); });
}

std::string all_names() {
  return names_of([](const Isa&) { return true; });
}

const Kernels* choose() {
  const char* asked = std::getenv("PYINFER_ISA");
  const Kernels* best = nullptr;
  for (const Isa& isa : kIsas) {
    const bool wanted = asked == nullptr || *asked == '\0' || std::strcmp(asked, isa.name) == 0;
    if (wanted && isa.runs_here()) best = isa.table();
  }
  if (best == nullptr) {
    if (available_names().empty())
      throw Error(ErrorKind::unsupported, "processor: expected " + all_names() + ", found none");
    throw Error(ErrorKind::request,
                "PYINFER_ISA: expected one of " + available_names() + " on this machine, found " + asked);
  }
  return best;
}

}  // namespace

std::span<const Isa> isas() { return kIsas; }

const Kernels& active_kernels() {
  static const Kernels* const chosen = choose();
  return *chosen;
}

}  // namespace pyinfer
