// Runs one entry of the kernel benchmarks: `run_kernel NAME CALLS` prints the bytes and the multiplications of a call and makes so many.
// For emulators, where instructions are counted and time says nothing: bench/count_instructions.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
int pyinfer_bench_count();
const char* pyinfer_bench_name(int index);
void* pyinfer_bench_open(int index);
double pyinfer_bench_bytes(const void* bench);
double pyinfer_bench_macs(const void* bench);
void pyinfer_bench_run(void* bench);
void pyinfer_bench_close(void* bench);
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: run_kernel NAME CALLS\n");
    return 2;
  }
  for (int i = 0; i < pyinfer_bench_count(); ++i) {
    if (std::strcmp(pyinfer_bench_name(i), argv[1]) != 0) continue;
    void* bench = pyinfer_bench_open(i);
    if (bench == nullptr) return 1;
    std::printf("%.0f %.0f\n", pyinfer_bench_bytes(bench), pyinfer_bench_macs(bench));
    for (int call = 0; call < std::atoi(argv[2]); ++call) pyinfer_bench_run(bench);
    pyinfer_bench_close(bench);
    return 0;
  }
  std::fprintf(stderr, "%s: expected the name of a benchmark of this machine, found none of that name\n", argv[1]);
  return 1;
}
