// Which instruction sets an Arm processor has, as its system says: the auxiliary vector on Linux, sysctl on macOS.
#include "base/cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#include <cstddef>
#endif

namespace pyinfer {

#if defined(__aarch64__) && defined(__linux__)
namespace {
// Linux's numbers, which never change (its arch/arm64/include/uapi/asm/hwcap.h): musl has no header of them, and old systems lack names.
constexpr unsigned long kAsimd = 1ul << 1, kDotProducts = 1ul << 20;  // of AT_HWCAP
constexpr unsigned long kI8mm = 1ul << 13;                            // of AT_HWCAP2
}  // namespace

bool cpu_runs_neon() { return (::getauxval(AT_HWCAP) & kAsimd) != 0; }
bool cpu_runs_neon_dotprod() { return cpu_runs_neon() && (::getauxval(AT_HWCAP) & kDotProducts) != 0; }
bool cpu_runs_neon_i8mm() { return cpu_runs_neon_dotprod() && (::getauxval(AT_HWCAP2) & kI8mm) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
namespace {
bool has(const char* feature) {
  int value = 0;
  std::size_t size = sizeof value;
  return ::sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
}  // namespace

bool cpu_runs_neon() { return true; }
bool cpu_runs_neon_dotprod() { return true; }  // every Mac with Arm has them; macOS 11 does not say so
bool cpu_runs_neon_i8mm() { return cpu_runs_neon_dotprod() && has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__aarch64__)
bool cpu_runs_neon() { return true; }
bool cpu_runs_neon_dotprod() { return false; }
bool cpu_runs_neon_i8mm() { return false; }
#else
bool cpu_runs_neon() { return false; }
bool cpu_runs_neon_dotprod() { return false; }
bool cpu_runs_neon_i8mm() { return false; }
#endif

}  // namespace pyinfer
