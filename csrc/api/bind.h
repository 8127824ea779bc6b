// What the binding files share: one function a class, and how errors and arrays cross over.
#pragma once

#include <chrono>
#include <cstdint>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <span>
#include <string>

#include "base/error.h"
#include "model/decoder.h"

namespace pyinfer {

namespace py = pybind11;

// Read-only views of Python's arrays, converted where the element type differs.
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using ByteArray = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;
using TokenArray = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

void bind_formats(py::module_& m);
void bind_model_file(py::module_& m);
void bind_engine(py::module_& m);
void bind_session(py::module_& m);
void bind_sampler(py::module_& m);

inline std::span<const int32_t> token_span(const TokenArray& tokens) {
  if (tokens.ndim() != 1) throw Error(ErrorKind::request, "tokens: expected one dimension, found " + std::to_string(tokens.ndim()));
  return {tokens.data(), static_cast<size_t>(tokens.size())};
}

// Lets Ctrl-C reach Python while a step runs without the GIL: looks every 20 ms, since taking the GIL has its price.
class SignalPoll {
 public:
  Poll poll() { return {&SignalPoll::look, this}; }
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
    const py::gil_scoped_acquire gil;
    interrupted_ = PyErr_CheckSignals() != 0;
    return interrupted_;
  }
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool interrupted_ = false;
};

// Runs `work(poll)` without the GIL.
template <class Work>
void without_gil(const Work& work) {
  SignalPoll signals;
  try {
    const py::gil_scoped_release release;
    work(signals.poll());
  } catch (const Error&) {
    signals.rethrow();
    throw;
  }
}

}  // namespace pyinfer
