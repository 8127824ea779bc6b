// What this machine can do at most: multiply-accumulates a second with operands in registers, and bytes a second read
// from memory. Prints one JSON object a line. Knows nothing of models or engines; built by limits.py for this machine.
//
//   limits compute|memory THREADS SECONDS MIB
//
// Every probe runs on THREADS threads at once for about SECONDS; the memory probes share MIB MiB, one stream a thread.

#include <sys/mman.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Hides a value from the optimiser without touching memory.
#if defined(__x86_64__)
#define OPAQUE(x) asm volatile("" : "+v"(x))
#else
#define OPAQUE(x) asm volatile("" : "+w"(x))
#endif

constexpr int kAccumulators =
    12;  // independent chains: latency 4-5 at two a cycle needs ten; with 2 operands they fit 16 registers

// Runs work(thread) on `threads` threads that start together; returns the sum of what they return.
template <class Work>
double on_threads(int threads, Work work) {
  std::atomic<int> waiting{threads};
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      rates[static_cast<size_t>(t)] = work(t, [&] {
        waiting.fetch_sub(1);
        while (waiting.load() > 0) std::this_thread::yield();
      });
    });
  }
  double sum = 0;
  for (int t = 0; t < threads; ++t) {
    pool[static_cast<size_t>(t)].join();
    sum += rates[static_cast<size_t>(t)];
  }
  return sum;
}

void print(const char* probe, int threads, const char* unit, double value) {
  std::printf("{\"probe\": \"%s\", \"threads\": %d, \"unit\": \"%s\", \"value\": %.2f}\n", probe, threads, unit, value);
  std::fflush(stdout);
}

// Operations a second of acc = op(acc, a, b), all operands in registers.
template <class V, class Op>
double operations(double seconds, Op op) {
  V acc[kAccumulators] = {}, a = {}, b = {};
  OPAQUE(b);
  const auto start = Clock::now();
  double count = 0, elapsed = 0;
  do {
    for (int i = 0; i < 20000; ++i) {
#pragma GCC unroll 12
      for (int j = 0; j < kAccumulators; ++j) {
        OPAQUE(a);  // no product may be shared between the chains
        acc[j] = op(acc[j], a, b);
      }
    }
    count += 20000.0 * kAccumulators;
    elapsed = seconds_since(start);
  } while (elapsed < seconds);
  for (V& v : acc) OPAQUE(v);
  return count / elapsed;
}

template <class V, class Op>
void compute(const char* probe, int threads, double seconds, double macs, Op op) {
  const double rate = on_threads(threads, [&](int, auto ready) {
    operations<V>(seconds / 4, op);  // clocks and vector units up to speed
    ready();
    return operations<V>(seconds, op);
  });
  print(probe, threads, "GMAC/s", rate * macs / 1e9);
}

#if defined(__AMX_INT8__) && defined(__linux__)
// Products a second of tiles: 16 rows of 64 bytes with 64 of 16. Nothing where the system does not let this process use them.
void tile_probe(int threads, double seconds) {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return;
  struct {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shapes;
  const auto products = [&](double for_seconds) {
    const auto start = Clock::now();
    double count = 0, elapsed = 0;
    do {
      for (int i = 0; i < 20000; ++i) {
        asm volatile(
            "tdpbssd %tmm6, %tmm4, %tmm0\n\ttdpbssd %tmm7, %tmm4, %tmm1\n\ttdpbssd %tmm6, %tmm5, %tmm2\n\t"
            "tdpbssd %tmm7, %tmm5, %tmm3");
      }
      count += 20000.0 * 4;
      elapsed = seconds_since(start);
    } while (elapsed < for_seconds);
    return count / elapsed;
  };
  const double rate = on_threads(threads, [&](int, auto ready) {
    asm volatile("ldtilecfg %0" : : "m"(shapes));
    products(seconds / 4);
    ready();
    const double here = products(seconds);
    asm volatile("tilerelease");
    return here;
  });
  print("tdpbssd", threads, "GMAC/s", rate * 16 * 16 * 64 / 1e9);
}
#endif

void compute_probes(int threads, double seconds) {
#if defined(__AMX_INT8__) && defined(__linux__)
  tile_probe(threads, seconds);
#endif
#if defined(__AVX512VNNI__)
  compute<__m512i>("vpdpbusd-512", threads, seconds, 64,
                   [](__m512i c, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(c, a, b); });
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  compute<__m256i>("vpdpbusd-256", threads, seconds, 32,
                   [](__m256i c, __m256i a, __m256i b) { return _mm256_dpbusd_epi32(c, a, b); });
#elif defined(__AVXVNNI__)
  compute<__m256i>("vpdpbusd-256", threads, seconds, 32,
                   [](__m256i c, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(c, a, b); });
#endif
#if defined(__AVX2__)
  // The multiplier's own limit: 32 products a step, summed in 16 bits; widening to 32 bits comes on top. The sum is assembly, or GCC 12
  // keeps two registers for each and spills them.
  compute<__m256i>("vpmaddubsw-256", threads, seconds, 32, [](__m256i c, __m256i a, __m256i b) {
    asm("vpaddw %1, %0, %0" : "+x"(c) : "x"(_mm256_maddubs_epi16(a, b)));
    return c;
  });
#endif
#if defined(__AVX512BF16__)
  compute<__m512>("vdpbf16ps-512", threads, seconds, 32,
                  [](__m512 c, __m512 a, __m512 b) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); });
#endif
#if defined(__AVX512F__)
  compute<__m512>("fma-f32-512", threads, seconds, 16,
                  [](__m512 c, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, c); });
#endif
#if defined(__FMA__)
  compute<__m256>("fma-f32-256", threads, seconds, 8,
                  [](__m256 c, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, c); });
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
  compute<int32x4_t>("smmla-128", threads, seconds, 32, [](int32x4_t c, int32x4_t a, int32x4_t b) {
    return vmmlaq_s32(c, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
  });
#endif
#if defined(__ARM_FEATURE_DOTPROD)
  compute<int32x4_t>("sdot-128", threads, seconds, 16, [](int32x4_t c, int32x4_t a, int32x4_t b) {
    return vdotq_s32(c, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
  });
#endif
#if defined(__ARM_NEON)
  compute<int16x8_t>("smlal-128", threads, seconds, 8, [](int16x8_t c, int16x8_t a, int16x8_t b) {
    return vmlal_s8(c, vget_low_s8(vreinterpretq_s8_s16(a)), vget_low_s8(vreinterpretq_s8_s16(b)));
  });
  compute<float32x4_t>("fma-f32-128", threads, seconds, 4,
                       [](float32x4_t c, float32x4_t a, float32x4_t b) { return vfmaq_f32(c, a, b); });
#endif
}

// One pass over `bytes` (a multiple of 512), every byte loaded once, in order.
typedef uint64_t Line __attribute__((vector_size(64), may_alias));

void read_once(const char* p, size_t bytes, size_t ahead) {
  Line s0{}, s1{}, s2{}, s3{};
  for (size_t i = 0; i < bytes; i += 256) {
    const Line* line = reinterpret_cast<const Line*>(p + i);
    if (ahead) {
      for (size_t k = 0; k < 256; k += 64) __builtin_prefetch(p + i + ahead + k);
    }
    s0 ^= line[0];
    s1 ^= line[1];
    s2 ^= line[2];
    s3 ^= line[3];
  }
  s0 ^= s1 ^ s2 ^ s3;
  uint64_t sink = s0[0] ^ s0[1] ^ s0[2] ^ s0[3] ^ s0[4] ^ s0[5] ^ s0[6] ^ s0[7];
  asm volatile("" : : "r"(sink));
}

// An own stream of `bytes`, touched first by the thread that reads it.
class Stream {
 public:
  Stream(size_t bytes, int advice) : bytes_(bytes) {
    base_ = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) {
      std::fprintf(stderr, "limits: cannot map %zu bytes\n", bytes);
      std::exit(1);
    }
    data_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(base_) + kHuge - 1) / kHuge * kHuge);
#if defined(__linux__)
    madvise(data_, bytes, advice);
#else
    (void)advice;
#endif
    std::memset(data_, 1, bytes);
  }
  ~Stream() { munmap(base_, bytes_ + kHuge); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Bytes a second, prefetching `ahead` bytes ahead.
  double read(double seconds, size_t ahead) const {
    const auto start = Clock::now();
    double passes = 0, elapsed = 0;
    do {
      read_once(data_, bytes_, ahead);
      ++passes;
      elapsed = seconds_since(start);
    } while (elapsed < seconds);
    return passes * static_cast<double>(bytes_) / elapsed;
  }

 private:
  static constexpr size_t kHuge = size_t{2} << 20;
  size_t bytes_;
  void* base_;
  char* data_;
};

void read_probe(const char* pages, int threads, double seconds, size_t mib, int advice) {
  constexpr size_t kAhead = 4096;  // bytes; past the hardware's own reach, short of the next stream
  const size_t bytes = (mib << 20) / static_cast<size_t>(threads) / 4096 * 4096;
  std::vector<std::unique_ptr<Stream>> streams(static_cast<size_t>(threads));
  for (const size_t ahead : {size_t{0}, kAhead}) {
    const double rate = on_threads(threads, [&](int thread, auto ready) {
      std::unique_ptr<Stream>& stream = streams[static_cast<size_t>(thread)];
      if (!stream) stream = std::make_unique<Stream>(bytes, advice);
      ready();
      return stream->read(seconds, ahead);
    });
    print((std::string("read-") + pages + (ahead ? "-prefetch" : "")).c_str(), threads, "GB/s", rate / 1e9);
  }
}

void memory_probes(int threads, double seconds, size_t mib) {
#if defined(__linux__)
  read_probe("4k", threads, seconds, mib, MADV_NOHUGEPAGE);
  read_probe("2m", threads, seconds, mib, MADV_HUGEPAGE);
#else
  read_probe("default", threads, seconds, mib, 0);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: limits compute|memory THREADS SECONDS MIB\n");
    return 2;
  }
  const int threads = std::atoi(argv[2]);
  const double seconds = std::atof(argv[3]);
  const int mib = std::atoi(argv[4]);
  if (threads < 1 || !(seconds > 0) || mib < 1) {
    std::fprintf(stderr, "limits: threads, seconds and MiB must be positive\n");
    return 2;
  }
  if (std::strcmp(argv[1], "compute") == 0) {
    compute_probes(threads, seconds);
  } else if (std::strcmp(argv[1], "memory") == 0) {
    memory_probes(threads, seconds, static_cast<size_t>(mib));
  } else {
    std::fprintf(stderr, "limits: expected compute or memory, found %s\n", argv[1]);
    return 2;
  }
  return 0;
}
