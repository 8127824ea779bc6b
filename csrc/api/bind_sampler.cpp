// Sampler: picks tokens from logits.
#include <memory>
#include <string>

#include "api/bind.h"
#include "sampling/sampler.h"

namespace pyinfer {
namespace {

template <class T>
T number(const std::string& name, const py::handle& value) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw Error(ErrorKind::request, name + ": expected a number in range, found " + std::string(py::repr(value)));
  }
}

void set_logit_bias(SamplingParams& params, const py::handle& value) {
  if (!py::isinstance<py::dict>(value)) throw Error(ErrorKind::request, "logit_bias: expected a dict of token to bias");
  for (const auto& [token, bias] : value.cast<py::dict>()) {
    params.logit_bias.emplace_back(number<int>("logit_bias", token), number<float>("logit_bias", bias));
  }
}

void set_param(SamplingParams& params, const std::string& name, const py::handle& value) {
  if (name == "temperature")
    params.temperature = number<float>(name, value);
  else if (name == "top_k")
    params.top_k = number<int>(name, value);
  else if (name == "top_p")
    params.top_p = number<float>(name, value);
  else if (name == "min_p")
    params.min_p = number<float>(name, value);
  else if (name == "typical_p")
    params.typical_p = number<float>(name, value);
  else if (name == "repetition_penalty")
    params.repetition_penalty = number<float>(name, value);
  else if (name == "presence_penalty")
    params.presence_penalty = number<float>(name, value);
  else if (name == "frequency_penalty")
    params.frequency_penalty = number<float>(name, value);
  else if (name == "penalty_window")
    params.penalty_window = number<int>(name, value);
  else if (name == "seed")
    params.seed = number<uint64_t>(name, value);
  else if (name == "logit_bias")
    set_logit_bias(params, value);
  else
    throw Error(ErrorKind::request, "sampling: expected a parameter of SamplingParams, found " + name);
}

std::unique_ptr<Sampler> make_sampler(int n_vocab, const py::dict& values) {
  SamplingParams params;
  for (const auto& [name, value] : values) set_param(params, py::str(name), value);
  return std::make_unique<Sampler>(n_vocab, params);
}

int pick(Sampler& sampler, const FloatArray& logits) {
  if (logits.ndim() != 1 || logits.size() != sampler.n_vocab()) {
    throw Error(ErrorKind::request, "logits: expected shape (" + std::to_string(sampler.n_vocab()) + ",), found " +
                                        std::string(py::repr(logits.attr("shape"))));
  }
  return sampler.pick(logits.data());
}

}  // namespace

void bind_sampler(py::module_& m) {
  py::class_<Sampler>(m, "Sampler")
      .def(py::init(&make_sampler), py::arg("n_vocab"), py::arg("params"))
      .def("pick", pick, py::arg("logits"))
      .def("accept", &Sampler::accept, py::arg("token"));
}

}  // namespace pyinfer
