// Which instruction sets an x86 processor has and its system saves: CPUID and XCR0 read here, since not every compiler's run-time
// library can be asked, and none knows all names.
#include "base/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace pyinfer {

#if defined(__x86_64__)
namespace {

// The registers of a leaf of CPUID; zeros where the processor has no such leaf.
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit Leaf(unsigned leaf, unsigned subleaf = 0) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has(unsigned bits, int bit) { return (bits >> bit & 1u) != 0; }

// Whether the system saves all of these parts of a thread's state; bits of XCR0.
bool system_saves(unsigned parts) {
  if (!has(Leaf(1).c, 27)) return false;  // OSXSAVE: XCR0 may be read
  unsigned low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & parts) == parts;
}

constexpr unsigned kYmm = 0x06;                         // the low and the high halves of 256-bit registers
[[maybe_unused]] constexpr unsigned kZmm = 0xe6;        // and masks, and all of 32 512-bit registers
[[maybe_unused]] constexpr unsigned kTiles = 3u << 17;  // how the registers of AMX are divided, and their data

// Asks for the registers of AMX, which a thread gets with its first instruction for them: Documentation/arch/x86/xstate.rst of Linux. Refused where a
// signal's stack would be too small for them; from then on the system refuses such stacks to the process.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace

bool cpu_runs_avx2() {
  const Leaf one(1), seven(7);
  return system_saves(kYmm) && has(one.c, 12) /* FMA */ && has(one.c, 29) /* F16C */ && has(seven.b, 5);
}

bool cpu_runs_avxvnni() { return cpu_runs_avx2() && Leaf(7).a >= 1 && has(Leaf(7, 1).a, 4); }

#if defined(__APPLE__)
// macOS gives a thread 512-bit registers when it first uses them, so XCR0 does not say whether it may; before 12.1 a signal's return
// broke its masks.
bool cpu_runs_avx512vnni() { return false; }
bool cpu_runs_avx512amx() { return false; }
#else
bool cpu_runs_avx512vnni() {
  const Leaf seven(7);
  const bool f_dq_bw_vl = has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31);
  return cpu_runs_avx2() && system_saves(kZmm) && f_dq_bw_vl && has(seven.c, 11);
}

bool cpu_runs_avx512amx() {
  const Leaf seven(7);
  const bool tiles_of_bytes = has(seven.d, 24) && has(seven.d, 25);
  return cpu_runs_avx512vnni() && system_saves(kTiles) && tiles_of_bytes && may_use_tiles();
}
#endif
#else
bool cpu_runs_avx2() { return false; }
bool cpu_runs_avxvnni() { return false; }
bool cpu_runs_avx512vnni() { return false; }
bool cpu_runs_avx512amx() { return false; }
#endif

}  // namespace pyinfer
