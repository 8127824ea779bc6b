// Engine: a model with its threads.
#include <memory>
#include <string>

#include "api/bind.h"
#include "engine/engine.h"

namespace pyinfer {
namespace {

Activations activations_named(const std::string& name) {
  if (name == "int8") return Activations::int8;
  if (name == "f32") return Activations::f32;
  throw Error(ErrorKind::request, "activations: expected int8 or f32, found " + name);
}

py::dict memory_dict(const Engine& engine, size_t context, const std::string& kv) {
  const MemoryNeeds needs = engine.memory(context, kv_named(engine, kv));
  py::dict d;
  d["weights"] = needs.weights;
  d["kv_cache"] = needs.kv_cache;
  d["workspace"] = needs.workspace;
  return d;
}

}  // namespace

void bind_engine(py::module_& m) {
  m.attr("MOST_THREADS") = kMostThreads;
  m.attr("PAGE_POSITIONS") = size_t{kPagePositions};
  m.def(
      "kv_cache_bytes",
      [](size_t n_layers, size_t n_kv_heads, size_t head_dim, size_t context, const std::string& kv) {
        return KvShape::n_pages(context) * KvShape{n_layers, n_kv_heads, head_dim, kv_named(kv)}.page_bytes();
      },
      py::arg("n_layers"), py::arg("n_kv_heads"), py::arg("head_dim"), py::arg("context"), py::arg("kv"));
  m.def(
      "usual_kv",
      [](const std::string& activations, bool biased_keys) {
        return usual_kv(activations_named(activations), biased_keys) == kKvI16 ? "i16" : "f16";
      },
      py::arg("activations"), py::arg("biased_keys"));
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def(py::init([](std::shared_ptr<ModelFile> file, int threads, const std::string& activations, bool prefetch) {
             auto engine = std::make_shared<Engine>(std::move(file), threads, activations_named(activations));
             if (prefetch) without_gil([&](const Poll&) { engine->prefetch(); });
             return engine;
           }),
           py::arg("file").none(false), py::arg("threads") = 0, py::arg("activations") = "int8",
           py::arg("prefetch") = true)
      .def_property_readonly("threads", &Engine::n_threads)
      .def_property_readonly("isa", &Engine::isa)
      .def("memory", memory_dict, py::arg("context"), py::arg("kv") = "auto")
      .def("prefetch", [](Engine& engine) { without_gil([&](const Poll&) { engine.prefetch(); }); });
}

}  // namespace pyinfer
