// The processor: what it can execute and how much of it this process may use.
#pragma once

#include <cstddef>

namespace pyinfer {

// Instruction sets as the kernels group them; see cmake/isas.cmake.
bool cpu_runs_scalar();
bool cpu_runs_avx2();        // AVX2, FMA, F16C: Haswell, Zen and later
bool cpu_runs_avxvnni();     // AVX2 with 256-bit VNNI: Alder Lake, Zen 5 and later
bool cpu_runs_avx512vnni();  // AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake, Zen 4 and later
bool cpu_runs_avx512amx();   // and AMX with bytes, where the system lets this process use it: Sapphire Rapids and later
bool cpu_runs_neon();        // Armv8.0: every 64-bit Arm
bool cpu_runs_neon_dotprod();  // dot products: Cortex-A55, A76, Apple A13, M1, Graviton 2 and later
bool cpu_runs_neon_i8mm();     // products of int8 matrices too: Cortex-A510, A710, X2, Apple M2, Graviton 3 and later

// Logical processors this process may run on: the affinity mask, cut to the cgroup's quota; at least 1.
int available_processors();
// Physical cores among them, at least 1. On hybrid CPUs only the fast ones.
int fast_cores();

inline constexpr int kMostThreads = 256;
// As many as there are fast cores, at most kMostThreads: what a memory-bound program should use.
int default_threads();

// Tells the system that someone waits for what this thread computes: macOS then prefers fast cores for it. Others have no such call.
void cpu_prefer_fast_cores();

// For loops that wait for another thread within microseconds, with the number of rounds so far: after many it lets others run.
void cpu_wait(int spin);

inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Asks for memory that will be read in about a microsecond; it need not be there.
inline void cpu_prefetch(const void* from, size_t bytes) {
#if defined(__GNUC__)
  for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
#else
  static_cast<void>(from), static_cast<void>(bytes);
#endif
}

}  // namespace pyinfer
