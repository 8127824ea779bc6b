// ModelFile: what is in a model.bin, without running it.
#include <memory>
#include <string>

#include "api/bind.h"
#include "model/file.h"

namespace pyinfer {
namespace {

// The layers that are marked, in ascending order.
py::tuple marked_layers(const uint32_t (&layers)[4]) {
  py::list found;
  for (size_t i = 0; i < ModelSpec::kMarkedLayers; ++i) {
    if (ModelSpec::marked(layers, i)) found.append(i);
  }
  return py::tuple(found);
}

py::dict spec_dict(const ModelSpec& s) {
  py::dict d;
  d["n_layers"] = s.n_layers;
  d["dim"] = s.dim;
  d["n_heads"] = s.n_heads;
  d["n_kv_heads"] = s.n_kv_heads;
  d["head_dim"] = s.head_dim;
  d["n_ff"] = s.n_ff;
  d["n_vocab"] = s.n_vocab;
  d["context"] = s.context;
  d["rope_dim"] = s.rope_dim;
  d["norm_eps"] = s.norm_eps;
  d["rope_magnitude"] = s.rope_magnitude;
  d["attention_scale"] = s.attention_scale;
  d["tied_head"] = s.tied_head();
  d["qkv_bias"] = s.has(kQkvBias);
  d["o_bias"] = s.has(kOBias);
  d["qk_norm"] = s.has(kQkNorm);
  d["post_norms"] = s.has(kPostNorms);
  d["gelu"] = s.has(kGelu);
  d["local_rope"] = s.has(kLocalRope);
  d["norm_offset"] = s.has(kNormOffset);
  d["embedding_scale"] = s.embedding_scale;
  d["attn_softcap"] = s.attn_softcap;
  d["logit_softcap"] = s.logit_softcap;
  d["window"] = s.window;
  d["long_context"] = s.long_context;
  d["windowed"] = marked_layers(s.windowed);
  d["unrotated"] = marked_layers(s.unrotated);
  return d;
}

py::dict tensor_dict(const TensorRecord& t) {
  py::dict d;
  d["role"] = role_name(t.role);
  d["layer"] = t.layer == kNoLayer ? -1 : static_cast<int64_t>(t.layer);
  d["format"] = format_name(t.format);
  d["rows"] = t.rows;
  d["cols"] = t.cols;
  d["offset"] = t.offset;
  d["bytes"] = t.bytes;
  d["crc"] = t.crc;
  return d;
}

const TensorRecord& tensor_at(const ModelFile& file, py::ssize_t index) {
  const auto tensors = file.tensors();
  if (index >= 0 && static_cast<size_t>(index) < tensors.size()) return tensors[static_cast<size_t>(index)];
  throw Error(ErrorKind::request,
              "tensor: expected 0 to " + std::to_string(tensors.size() - 1) + ", found " + std::to_string(index));
}

py::bytes to_bytes(std::span<const uint8_t> data) { return {reinterpret_cast<const char*>(data.data()), data.size()}; }

py::array_t<uint8_t> read(const ModelFile& file, py::ssize_t index) {
  const TensorRecord& tensor = tensor_at(file, index);
  file.mapping().check_whole();
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(tensor.bytes), file.bytes_of(tensor));
}

HugePages huge_pages_named(const std::string& name) {
  if (name == "auto") return HugePages::automatic;
  if (name == "on") return HugePages::on;
  if (name == "off") return HugePages::off;
  throw Error(ErrorKind::request, "huge_pages: expected auto, on or off, found " + name);
}

}  // namespace

void bind_model_file(py::module_& m) {
  py::class_<ModelFile, std::shared_ptr<ModelFile>>(m, "ModelFile")
      .def(py::init([](const py::object& path, const std::string& huge_pages) {
             return std::make_shared<ModelFile>(path_of(path), huge_pages_named(huge_pages));
           }),
           py::arg("path"), py::arg("huge_pages") = "auto")
      .def_property_readonly("spec", [](const ModelFile& f) { return spec_dict(f.spec()); })
      .def_property_readonly("tensors",
                             [](const ModelFile& f) {
                               py::list list;
                               for (const TensorRecord& t : f.tensors()) list.append(tensor_dict(t));
                               return list;
                             })
      .def_property_readonly("file_bytes", &ModelFile::file_bytes)
      .def("metadata", [](const ModelFile& f) { return to_bytes(f.metadata()); })
      .def("tokenizer", [](const ModelFile& f) { return to_bytes(f.tokenizer()); })
      .def(
          "verify",
          [](const ModelFile& f, py::ssize_t index) {
            const TensorRecord& tensor = tensor_at(f, index);
            bool good = false;
            without_gil([&](const Poll&) { good = f.verify(tensor); });
            return good;
          },
          py::arg("tensor"))
      .def("read", read, py::arg("tensor"));
}

}  // namespace pyinfer
