// What the files of the C interface share: handles, structs of any version, and how errors cross over. Not installed.
#pragma once

#include <cstring>
#include <exception>
#include <memory>
#include <string>
#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "api/pyinfer.h"
#include "base/error.h"
#include "engine/adapter_set.h"
#include "engine/engine.h"
#include "engine/session.h"

namespace pyinfer::capi {

[[noreturn]] inline void refuse(const std::string& what, const std::string& expected, const std::string& found) {
  throw Error(ErrorKind::request, what + ": expected " + expected + ", found " + found);
}

// Errors

// Keeps an error for pyi_last_error() of this thread; returns its status.
pyi_status keep(std::exception_ptr thrown) noexcept;

// Runs the body of a function of the interface. What is thrown ends here, but for the unwinding of a thread that is cancelled by the
// system, which must reach its end.
template <class Work>
pyi_status guarded(const Work& work) {
  try {
    work();
    return PYI_OK;
#if defined(__GLIBCXX__)
  } catch (abi::__forced_unwind&) {
    throw;
#endif
  } catch (...) {
    return keep(std::current_exception());
  }
}

// Handles: numbers that are never given out twice and never followed as pointers, so that whatever a caller passes can be checked.

struct Model {
  std::shared_ptr<const ModelFile> file;
  std::shared_ptr<Engine> engine;
  Activations activations;
  size_t context_limit;
  KvFormat kv;
};

struct OpenSession {
  std::shared_ptr<Session> session;
  std::unique_ptr<float[]> logits;  // (n_vocab), of the last token
  size_t n_vocab() const { return session->engine().spec().n_vocab; }
};

struct OpenSampler;

enum class Kind : unsigned { model = 1, session, sampler, adapters };

template <class Handle>
struct Of;  // what a handle stands for
template <>
struct Of<pyi_model> {
  using Object = Model;
  static constexpr Kind kind = Kind::model;
};
template <>
struct Of<pyi_session> {
  using Object = OpenSession;
  static constexpr Kind kind = Kind::session;
};
template <>
struct Of<pyi_sampler> {
  using Object = OpenSampler;
  static constexpr Kind kind = Kind::sampler;
};
template <>
struct Of<pyi_adapters> {
  using Object = AdapterSet;
  static constexpr Kind kind = Kind::adapters;
};

void* add_handle(Kind kind, std::shared_ptr<void> object);
std::shared_ptr<void> find_handle(Kind kind, const void* handle);  // throws a request error
void close_handle(Kind kind, const void* handle) noexcept;

template <class Handle>
Handle* opened(std::shared_ptr<typename Of<Handle>::Object> object) {
  return static_cast<Handle*>(add_handle(Of<Handle>::kind, std::move(object)));
}

// What an open handle stands for, kept alive for the call.
template <class Handle>
std::shared_ptr<typename Of<Handle>::Object> get(const Handle* handle) {
  return std::static_pointer_cast<typename Of<Handle>::Object>(find_handle(Of<Handle>::kind, handle));
}

template <class Handle>
void closed(const Handle* handle) noexcept {
  close_handle(Of<Handle>::kind, handle);
}

// Where a result goes.
template <class T>
T& out(T* pointer, const char* name) {
  if (pointer == nullptr) refuse(name, "a place for the result", "NULL");
  return *pointer;
}

// Structs

// Throws unless a struct of a caller may have such a size.
void check_size(size_t size, const char* name);
// Throws an unsupported error unless what lies behind the `known` bytes of a caller's struct is 0.
void check_rest(const void* from, size_t size, size_t known, const char* name);

// A caller's struct of `size` bytes over the defaults.
template <class T>
T taken(const void* from, size_t size, const T& defaults, const char* name) {
  check_size(size, name);
  T value = defaults;
  std::memcpy(&value, from, size < sizeof(T) ? size : sizeof(T));
  check_rest(from, size, sizeof(T), name);
  return value;
}

// The same of a struct that begins with its size; the defaults where there is none.
template <class T>
T taken(const T* from, const T& defaults, const char* name) {
  return from == nullptr ? defaults : taken<T>(from, from->size, defaults, name);
}

// Fills in a caller's struct of `size` bytes.
template <class T>
void give(T value, T* to, size_t size, const char* name) {
  static_cast<void>(out(to, name));
  check_size(size, name);
  value.size = size;
  std::memset(static_cast<void*>(to), 0, size);
  std::memcpy(static_cast<void*>(to), &value, size < sizeof(T) ? size : sizeof(T));
}

inline void check_reserved(int32_t value, const char* name) {
  if (value != 0)
    throw Error(ErrorKind::unsupported, std::string(name) + ".reserved: expected 0, found " + std::to_string(value));
}

KvFormat kv_of(const Model& model, int32_t value);

}  // namespace pyinfer::capi
