// What the binding files share: one function a class, and how errors and arrays cross over.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <chrono>
#include <cstdint>
#include <exception>
#include <span>
#include <string>

#include "base/error.h"
#include "base/park.h"
#include "engine/engine.h"
#include "model/decoder.h"

namespace pyinfer {

namespace py = pybind11;

// Read-only views of Python's arrays, converted where the element type differs.
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using ByteArray = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;
using TokenArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using WideArray =
    py::array_t<int64_t, py::array::c_style | py::array::forcecast | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;

void bind_formats(py::module_& m);
void bind_model_file(py::module_& m);
void bind_engine(py::module_& m);
void bind_adapters(py::module_& m);
void bind_session(py::module_& m);
void bind_sampler(py::module_& m);

inline KvFormat kv_named(const std::string& name) {
  if (name == "f16") return kKvF16;
  if (name == "i16") return kKvI16;
  if (name == "q8") return kKvQ8;
  throw Error(ErrorKind::request, "kv: expected auto, f16, i16 or q8, found " + name);
}

inline KvFormat kv_named(const Engine& engine, const std::string& name) {
  return name == "auto" ? engine.usual_kv() : kv_named(name);
}

// Token ids of one dimension, from any integers; what no id can be is refused here, not wrapped.
inline TokenArray tokens_of(const py::handle& given) {
  const py::array array(py::reinterpret_borrow<py::object>(given));  // or throws what Python says
  if (array.ndim() != 1)
    throw Error(ErrorKind::request, "tokens: expected one dimension, found " + std::to_string(array.ndim()));
  const char kind = array.dtype().kind();
  if (array.size() > 0 && kind != 'i' && kind != 'u')
    throw Error(ErrorKind::request, "tokens: expected integers, found " + std::string(py::str(array.dtype())));
  const WideArray wide(array);
  TokenArray tokens(wide.size());
  int32_t* to = tokens.mutable_data();
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const int64_t token = wide.data()[i];
    if (token < 0 || token > INT32_MAX)
      throw Error(ErrorKind::request, "token: expected an id of 0 or more, found " + std::to_string(token));
    to[i] = static_cast<int32_t>(token);
  }
  return tokens;
}

inline std::span<const int32_t> token_span(const TokenArray& tokens) {
  return {tokens.data(), static_cast<size_t>(tokens.size())};
}

// The bytes of a path as the system has them: names of files need not be UTF-8.
inline std::string path_of(const py::handle& path) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &bytes) == 0) throw py::error_already_set();
  return py::reinterpret_steal<py::bytes>(bytes);
}

inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

// Gives the GIL away for a step and takes it back, and lets Ctrl-C reach Python meanwhile: looks every 20 ms, since taking the GIL
// has its price. Not pybind11's guards: they take the GIL in destructors, and a daemon thread that asks for it while the
// interpreter ends is unwound from there, which would end the process; such a thread sleeps instead.
class SignalPoll {
 public:
  Poll poll() { return {&SignalPoll::look, this}; }
  void give_gil() { thread_ = PyEval_SaveThread(); }
  void take_gil() {
    if (interpreter_ends()) park();
    PyEval_RestoreThread(thread_);
  }
  // To be called with the GIL held after a step was cancelled: throws the KeyboardInterrupt if that was the reason.
  void rethrow() const {
    if (interrupted_) throw py::error_already_set();
  }

 private:
  static bool look(void* self) { return static_cast<SignalPoll*>(self)->look_now(); }
  bool look_now() {
    const auto now = std::chrono::steady_clock::now();
    if (interrupted_ || now - last_ < std::chrono::milliseconds(20)) return interrupted_;
    last_ = now;
    take_gil();
    interrupted_ = PyErr_CheckSignals() != 0;
    give_gil();
    return interrupted_;
  }
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool interrupted_ = false;
  PyThreadState* thread_ = nullptr;
};

// Runs `work(poll)` without the GIL.
template <class Work>
void without_gil(const Work& work) {
  SignalPoll signals;
  std::exception_ptr error;
  signals.give_gil();
  try {
    work(signals.poll());
  } catch (const std::exception&) {
    error = std::current_exception();
  }
  signals.take_gil();
  if (!error) return;
  signals.rethrow();
  std::rethrow_exception(error);
}

}  // namespace pyinfer
