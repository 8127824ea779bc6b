// The Python module _core: puts the bindings together and turns errors of the core into those of pyinfer/errors.py.
#include <pybind11/stl.h>
#include <exception>

#include "api/bind.h"
#include "base/cpu.h"
#include "base/process.h"
#include "kernels/dispatch.h"

namespace pyinfer {
namespace {

const char* exception_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::model_file:
      return "ModelFileError";
    case ErrorKind::unsupported:
      return "UnsupportedError";
    case ErrorKind::request:
      return "RequestError";
    case ErrorKind::context_full:
      return "ContextFullError";
    case ErrorKind::cancelled:
      return "Cancelled";
    case ErrorKind::memory:
      return "MemoryLimitError";
    case ErrorKind::system:
      break;
  }
  return "PyinferError";
}

void raise(const Error& error) {
  const std::string said = error.what();  // which may name a file whose name is no UTF-8
  const auto message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeFSDefaultAndSize(said.data(), static_cast<py::ssize_t>(said.size())));
  if (!message) return;
  if (error.kind() == ErrorKind::system) {
    const py::tuple arguments = py::make_tuple(error.code(), message);
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
    return;
  }
  const py::object type = py::module_::import("pyinfer.errors").attr(exception_name(error.kind()));
  PyErr_SetObject(type.ptr(), message.ptr());
}

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const Error& error) {
    raise(error);
  }
}

py::list list_isas() {
  py::list list;
  for (const Isa& isa : isas()) list.append(py::make_tuple(isa.name, isa.runs_here()));
  return list;
}

}  // namespace
}  // namespace pyinfer

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of pyinfer; see _core.pyi.";
  m.attr("__version__") = PYINFER_VERSION;
  pyinfer::py::register_exception_translator(pyinfer::translate);
  m.def("isas", pyinfer::list_isas);
  m.def("active_isa", [] { return pyinfer::active_kernels().isa; });
  m.def("default_threads", pyinfer::default_threads);
  m.def("peak_memory", pyinfer::peak_memory);
  m.def("available_memory", pyinfer::available_memory);
  pyinfer::bind_formats(m);
  pyinfer::bind_model_file(m);
  pyinfer::bind_engine(m);
  pyinfer::bind_adapters(m);
  pyinfer::bind_session(m);
  pyinfer::bind_sampler(m);
}
