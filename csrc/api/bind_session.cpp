// Session and batches: the calls that run the model. All of them release the GIL.
#include <pybind11/stl.h>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "api/bind.h"
#include "engine/engine.h"
#include "engine/session.h"

namespace pyinfer {
namespace {

Wanted wanted_named(const std::string& name) {
  if (name == "none") return Wanted::none;
  if (name == "last") return Wanted::last;
  if (name == "all") return Wanted::all;
  throw Error(ErrorKind::request, "logits: expected none, last or all, found " + name);
}

// A session as Python holds it: may be closed before it is collected.
class PySession {
 public:
  PySession(std::shared_ptr<Engine> engine, size_t context, const std::string& kv)
      : session_(std::make_shared<Session>(engine, context, kv_named(*engine, kv))),
        n_vocab_(engine->spec().n_vocab),
        logits_(new float[n_vocab_], [](void* logits) { delete[] static_cast<float*>(logits); }) {}

  std::shared_ptr<Session> get() const {
    if (session_ == nullptr) throw Error(ErrorKind::request, "session: expected an open one, found it closed");
    return session_;
  }
  // A new view each time, of memory that is not its own: whatever is done to its shape, the next step has its place.
  py::array_t<float> logits() const {
    return py::array_t<float>(static_cast<py::ssize_t>(n_vocab_), static_cast<float*>(logits_.get_pointer()), logits_);
  }
  void close() {
    session_.reset();
    logits_ = py::capsule();
  }

 private:
  std::shared_ptr<Session> session_;
  size_t n_vocab_;
  py::capsule logits_;  // (n_vocab), of the last step
};

py::array_t<float> new_logits(const Session& session, Wanted wanted, size_t n_tokens) {
  return py::array_t<float>({static_cast<py::ssize_t>(rows_wanted(wanted, n_tokens)),
                             static_cast<py::ssize_t>(session.engine().spec().n_vocab)});
}

py::array_t<float> eval(PySession& self, const py::object& given, const std::string& logits, py::ssize_t chunk) {
  if (chunk < 1) throw Error(ErrorKind::request, "chunk: expected at least 1, found " + std::to_string(chunk));
  const auto session = self.get();
  const TokenArray tokens = tokens_of(given);
  const auto span = token_span(tokens);
  const Wanted wanted = wanted_named(logits);
  session->check(span);  // before the result is allocated
  py::array_t<float> result = new_logits(*session, wanted, span.size());
  float* to = result.size() > 0 ? result.mutable_data() : nullptr;
  without_gil(
      [&](const Poll& poll) { session->eval(span, to, wanted == Wanted::all, static_cast<size_t>(chunk), poll); });
  return result;
}

py::array_t<float> step(PySession& self, int32_t token) {
  const auto session = self.get();
  py::array_t<float> logits = self.logits();
  float* to = logits.mutable_data();
  without_gil([&](const Poll& poll) { session->eval({&token, 1}, to, false, 1, poll); });
  return logits;
}

// (session, tokens, logits) with references: a batch that Python makes as it goes holds none.
using PyItem = std::tuple<py::object, py::object, std::string>;

py::list forward_batch(Engine& engine, const std::vector<PyItem>& batch) {
  std::vector<std::shared_ptr<Session>> sessions;  // keeps them alive if one is closed meanwhile
  std::vector<TokenArray> kept;
  std::vector<BatchItem> items;
  py::list results;
  for (const auto& [session, tokens, logits] : batch) {
    if (!py::isinstance<PySession>(session))
      throw Error(ErrorKind::request, "batch: expected a session in every item, found " +
                                          std::string(py::str(py::type::of(session).attr("__name__"))));
    sessions.push_back(session.cast<PySession&>().get());
    kept.push_back(tokens_of(tokens));
    const auto span = token_span(kept.back());
    const Wanted wanted = wanted_named(logits);
    py::array_t<float> result = new_logits(*sessions.back(), wanted, span.size());
    items.push_back(
        {sessions.back().get(), span, result.size() > 0 ? result.mutable_data() : nullptr, wanted == Wanted::all});
    results.append(std::move(result));
  }
  without_gil([&](const Poll& poll) { engine.step(items, poll); });
  return results;
}

}  // namespace

void bind_session(py::module_& m) {
  py::class_<PySession>(m, "Session")
      .def(py::init<std::shared_ptr<Engine>, size_t, const std::string&>(), py::arg("engine").none(false),
           py::arg("context"), py::arg("kv") = "auto")
      .def_property_readonly("position", [](const PySession& s) { return s.get()->position(); })
      .def_property_readonly("context", [](const PySession& s) { return s.get()->context(); })
      .def_property(
          "adapters", [](const PySession& s) { return std::const_pointer_cast<AdapterSet>(s.get()->adapters()); },
          [](const PySession& s, std::shared_ptr<AdapterSet> adapters) { s.get()->set_adapters(std::move(adapters)); })
      .def(
          "truncate", [](const PySession& s, size_t position) { s.get()->truncate(position); }, py::arg("position"))
      .def("eval", eval, py::arg("tokens"), py::arg("logits") = "last", py::arg("chunk") = Engine::kMaxRows)
      .def("step", step, py::arg("token"))
      .def("cancel", [](const PySession& s) { s.get()->cancel(); })
      .def("close", &PySession::close);
  m.def("forward", forward_batch, py::arg("engine"), py::arg("batch"));
}

}  // namespace pyinfer
