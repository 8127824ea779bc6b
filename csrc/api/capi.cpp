// The C interface: errors, handles and structs of any version.
#include "api/capi.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <new>
#include <unordered_map>

#include "base/cpu.h"
#include "base/fork.h"
#include "kernels/dispatch.h"

namespace pyinfer::capi {
namespace {

// Errors

// Without a destructor: calls may still fail when those of the thread have run.
struct LastError {
  char text[4096];
  int32_t code;
};
thread_local LastError last_error{};

pyi_status status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::model_file:
      return PYI_MODEL_FILE;
    case ErrorKind::unsupported:
      return PYI_UNSUPPORTED;
    case ErrorKind::request:
      return PYI_REQUEST;
    case ErrorKind::context_full:
      return PYI_CONTEXT_FULL;
    case ErrorKind::cancelled:
      return PYI_CANCELLED;
    case ErrorKind::memory:
      return PYI_MEMORY;
    case ErrorKind::system:
      return PYI_SYSTEM;
  }
  return PYI_INTERNAL;
}

pyi_status keep(pyi_status status, const char* text, int code = 0) noexcept {
  last_error.code = code;
  std::snprintf(last_error.text, sizeof last_error.text, "%s", text);
  return status;
}

// Handles

struct Handles {
  std::mutex mutex;
  uintptr_t next = 0;
  std::unordered_map<uintptr_t, std::shared_ptr<void>> objects;
};

constexpr int kKindBits = 4;

// Never destroyed: threads may be in a call while the process ends.
Handles& handles() {
  static Handles& all = []() -> Handles& {
    auto* made = new Handles;
    around_forks([] { handles().mutex.lock(); }, [] { handles().mutex.unlock(); });
    return *made;
  }();
  return all;
}

// As the library is loaded, before a program can have registered a lock of its own: a fork takes locks in the reverse order, so that a
// thread that holds the program's while it calls the library waits for nobody.
[[maybe_unused]] const Handles& made_early = handles();

const char* kind_name(Kind kind) {
  constexpr const char* names[] = {"", "model", "session", "sampler", "adapters"};
  return names[static_cast<unsigned>(kind)];
}

}  // namespace

pyi_status keep(std::exception_ptr thrown) noexcept {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    return keep(status_of(error.kind()), error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return keep(PYI_MEMORY, "expected memory for a small object, the system refused it");
  } catch (const std::exception& error) {
    return keep(PYI_INTERNAL, error.what());
  } catch (...) {
    return keep(PYI_INTERNAL, "expected no exception, found one of an unknown type");
  }
}

void* add_handle(Kind kind, std::shared_ptr<void> object) {
  Handles& all = handles();
  const std::lock_guard<std::mutex> lock(all.mutex);
  uintptr_t number;
  do {
    number = ++all.next << kKindBits | static_cast<uintptr_t>(kind);
  } while (all.objects.count(number) != 0);
  all.objects.emplace(number, std::move(object));
  return reinterpret_cast<void*>(number);
}

std::shared_ptr<void> find_handle(Kind kind, const void* handle) {
  const auto number = reinterpret_cast<uintptr_t>(handle);
  if (handle == nullptr) refuse(kind_name(kind), "an open one", "NULL");
  if ((number & ((1u << kKindBits) - 1)) != static_cast<uintptr_t>(kind))
    refuse(kind_name(kind), "a handle of its kind", "another value");
  Handles& all = handles();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.objects.find(number);
  if (found == all.objects.end()) refuse(kind_name(kind), "an open one", "it closed");
  return found->second;
}

void close_handle(Kind kind, const void* handle) noexcept {
  const auto number = reinterpret_cast<uintptr_t>(handle);
  if ((number & ((1u << kKindBits) - 1)) != static_cast<uintptr_t>(kind)) return;
  std::shared_ptr<void> object;  // freed after the lock
  Handles& all = handles();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.objects.find(number);
  if (found == all.objects.end()) return;
  object = std::move(found->second);
  all.objects.erase(found);
}

// Structs

void check_size(size_t size, const char* name) {
  constexpr size_t kMost = 4096;  // far above any struct: a size that was never set
  if (size >= sizeof size && size <= kMost && size % sizeof size == 0) return;
  refuse(std::string(name) + " size", "that of a struct of pyinfer.h", std::to_string(size));
}

void check_rest(const void* from, size_t size, size_t known, const char* name) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  if (size <= known || std::all_of(bytes + known, bytes + size, [](uint8_t byte) { return byte == 0; })) return;
  throw Error(ErrorKind::unsupported, std::string(name) + ": expected 0 in fields behind the " + std::to_string(known) +
                                          " bytes that this version knows, found something else");
}

KvFormat kv_of(const Model& model, int32_t value) {
  if (value == PYI_KV_AUTO) return usual_kv(model.activations, model.file->spec().has(kQkvBias));
  if (value == PYI_KV_F16) return kKvF16;
  if (value == PYI_KV_I16) return kKvI16;
  if (value == PYI_KV_Q8) return kKvQ8;
  refuse("kv", "PYI_KV_AUTO, _F16, _I16 or _Q8", std::to_string(value));
}

}  // namespace pyinfer::capi

using namespace pyinfer;

uint32_t pyi_abi_version(void) { return PYI_ABI_VERSION; }

const char* pyi_version(void) { return PYINFER_VERSION; }

const char* pyi_status_name(pyi_status status) {
  constexpr const char* names[] = {"PYI_OK",      "PYI_MODEL_FILE",   "PYI_UNSUPPORTED",
                                   "PYI_REQUEST", "PYI_CONTEXT_FULL", "PYI_CANCELLED",
                                   "PYI_MEMORY",  "PYI_SYSTEM",       "PYI_INTERNAL"};
  return status >= PYI_OK && status <= PYI_INTERNAL ? names[status] : "unknown";
}

const char* pyi_last_error(void) { return capi::last_error.text; }

int32_t pyi_last_error_code(void) { return capi::last_error.code; }

const char* pyi_isa(void) {
  const char* name = nullptr;
  capi::guarded([&] { name = active_kernels().isa; });
  return name;
}

int32_t pyi_default_threads(void) {
  int32_t threads = 1;
  capi::guarded([&] { threads = default_threads(); });
  return threads;
}
