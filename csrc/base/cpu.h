// The processor: what it can execute and how much of it this process may use.
#pragma once

namespace pyinfer {

// Instruction sets as the kernels group them; see cmake/isas.cmake.
bool cpu_runs_scalar();
bool cpu_runs_avx2();        // AVX2, FMA, F16C: Haswell, Zen and later
bool cpu_runs_avxvnni();     // AVX2 with 256-bit VNNI: Alder Lake, Zen 5 and later
bool cpu_runs_avx512vnni();  // AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake, Zen 4 and later

// Logical processors this process may run on: the affinity mask, cut to the cgroup's quota; at least 1.
int available_processors();
// Physical cores among them, at least 1: what a memory-bound program should use. On hybrid CPUs only the fast ones.
int default_threads();

// For loops that wait for another thread within microseconds, with the number of rounds so far: after many it lets others run.
void cpu_wait(int spin);

inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace pyinfer
