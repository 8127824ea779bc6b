// Nothing is allocated on the token path: every call of the allocator is counted while tokens are made.
// Not built with sanitizers, which replace the allocator themselves.
#include <atomic>
#include <cstdlib>
#include <new>

#include "check.h"
#include "engine/engine.h"
#include "engine/session.h"
#include "sampling/sampler.h"
#include "tiny_model.h"

using namespace pyinfer;

namespace {

std::atomic<bool> counting{false};
std::atomic<long> n_allocations{0};

void count() {
  if (counting.load(std::memory_order_relaxed)) ++n_allocations;
}

// Calls of the allocator, by any thread, while `work` runs.
template <class Work>
long allocations(const Work& work) {
  n_allocations = 0;
  counting = true;
  work();
  counting = false;
  return n_allocations;
}

constexpr Poll never{[](void*) { return false; }, nullptr};

}  // namespace

#if defined(__GLIBC__)
// Or the C++ library would go on calling the C library's.
#define SEEN_BY_LIBRARIES __attribute__((visibility("default")))

// The C library's own names for what is replaced here; operator new comes here too.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

SEEN_BY_LIBRARIES void* malloc(std::size_t bytes) {
  count();
  return __libc_malloc(bytes);
}
SEEN_BY_LIBRARIES void* calloc(std::size_t n, std::size_t bytes) {
  count();
  return __libc_calloc(n, bytes);
}
SEEN_BY_LIBRARIES void* realloc(void* old, std::size_t bytes) {
  count();
  return __libc_realloc(old, bytes);
}
SEEN_BY_LIBRARIES void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  count();
  return __libc_memalign(alignment, bytes);
}
}
#else
void* operator new(std::size_t bytes) {
  count();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif

TEST(allocations, are_counted) {
  static void* volatile seen;  // or the compiler leaves the allocation out
  CHECK_EQUAL(allocations([] { seen = ::operator new(1); }), 1);
  ::operator delete(seen);
  std::vector<float> values;
  CHECK_EQUAL(allocations([&] { values.resize(1000); }), 1);
  CHECK_EQUAL(allocations([] {}), 0);
}

TEST(allocations, none_in_decode_prefill_and_batches) {
  tiny::Shape shape;
  shape.formats = {Format::q4, Format::q8, Format::f16};
  const tiny::TemporaryFile file(tiny::Model(shape, 1).file());
  for (const Activations activations : {Activations::int8, Activations::f32}) {
    const auto engine = std::make_shared<Engine>(std::make_shared<const ModelFile>(file.path()), 3, activations);
    Session one(engine, 1000), other(engine, 1000);
    std::vector<float> logits(40 * 101);
    const std::vector<std::int32_t> prompt(200, 7), token(1, 3);
    const BatchItem items[] = {{&one, prompt, nullptr, false}, {&other, token, logits.data(), false}};
    const auto everything = [&] {
      one.eval(prompt, logits.data(), false, 64, never);
      for (int i = 0; i < 20; ++i) one.eval(token, logits.data(), false, 1, never);
      engine->step(items, never);
      one.truncate(0);
    };
    everything();  // what is made once, on first use
    CHECK_EQUAL(allocations(everything), 0);
  }
}

TEST(allocations, none_with_adapters) {
  const tiny::Model tiny(tiny::Shape(), 1);
  const tiny::TemporaryFile file(tiny.file());
  const auto engine = std::make_shared<Engine>(std::make_shared<const ModelFile>(file.path()), 3, Activations::int8);
  const std::vector<float> ones(48 * 5, 1.0f);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(ones.data());
  const std::vector<AdapterModule> modules = {
      {"q", 0, {Format::f32, 5, 48, bytes}, {Format::f32, 48, 5, bytes}, {}, {}, {}}};
  const std::vector<ReplacedTensor> replaced = {{"final_norm", -1, Format::f32, {Format::f32, 1, 48, bytes}}};
  Session one(engine, 1000), other(engine, 1000);
  const auto plain = std::make_shared<AdapterSet>(engine, modules, std::vector<ReplacedTensor>());
  const auto replacing = std::make_shared<AdapterSet>(engine, modules, replaced);
  other.set_adapters(replacing);
  std::vector<float> logits(40 * 101);
  const std::vector<std::int32_t> prompt(200, 7), token(1, 3);
  const BatchItem items[] = {{&one, prompt, nullptr, false}, {&other, token, logits.data(), false}};
  const auto everything = [&] {
    one.set_adapters(plain);
    one.eval(prompt, logits.data(), false, 64, never);
    for (int i = 0; i < 20; ++i) one.eval(token, logits.data(), false, 1, never);
    engine->step(items, never);
    one.set_adapters(nullptr);
    one.truncate(0);
  };
  everything();
  CHECK_EQUAL(allocations(everything), 0);
}

TEST(allocations, none_in_picking) {
  Random random(1);
  const std::vector<float> logits = random.normals(32001, 2.0);
  for (int i = 0; i < 5; ++i) {
    SamplingParams params;
    if (i == 1) params.temperature = 0;
    if (i == 2) params.top_k = 0, params.typical_p = 0.5f;
    if (i == 3) params.repetition_penalty = 1.2f, params.logit_bias = {{5, 1.0f}};
    if (i == 4) params.top_k = 20000, params.top_p = 1.0f;
    Sampler sampler(32001, params);
    const auto pick = [&] {
      for (int token = 0; token < 100; ++token) sampler.accept(sampler.pick(logits.data()));
    };
    CHECK_EQUAL(allocations(pick), 0);
  }
}
