// AdapterSet: a packed stack of adapters, from arrays.
#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "api/bind.h"
#include "engine/adapter_set.h"

namespace pyinfer {
namespace {

// Views of arrays, which it keeps alive.
class Arrays {
 public:
  // The array of a key with one or two dimensions; no data where it is absent or None.
  AdapterValues view(const py::dict& from, const char* key, bool floats_only, const std::string& where) {
    if (!from.contains(key) || from[key].is_none()) return {};
    const std::string name = where + ", " + key;
    const auto array = py::array::ensure(from[key], py::array::c_style);
    if (!array) throw Error(ErrorKind::request, name + ": expected an array, found " + type_name(from[key]));
    const Format format = format_of(array, floats_only, name);
    if (array.ndim() != 1 && array.ndim() != 2) {
      throw Error(ErrorKind::request, name + ": expected one or two dimensions, found " + std::to_string(array.ndim()));
    }
    kept_.push_back(array);
    const bool flat = array.ndim() == 1;
    return {format, flat ? 1 : static_cast<size_t>(array.shape(0)), static_cast<size_t>(array.shape(flat ? 0 : 1)),
            static_cast<const uint8_t*>(array.data())};
  }

 private:
  static std::string type_name(const py::handle& value) { return py::str(py::type::handle_of(value).attr("__name__")); }

  static Format format_of(const py::array& array, bool floats_only, const std::string& name) {
    const py::dtype type = array.dtype();
    const bool native = type.byteorder() == '=';
    if (native && type.kind() == 'f' && type.itemsize() == 4) return Format::f32;
    if (native && !floats_only && type.kind() == 'f' && type.itemsize() == 2) return Format::f16;
    if (native && !floats_only && type.kind() == 'u' && type.itemsize() == 2) return Format::bf16;
    const std::string expected = floats_only ? "float32" : "float32, float16 or uint16 (bits of bfloat16)";
    throw Error(ErrorKind::request, name + ": expected " + expected + ", found " + std::string(py::str(type)));
  }

  std::vector<py::array> kept_;
};

void check_keys(const py::dict& from, std::initializer_list<const char*> known, const char* what) {
  for (const auto& [key, value] : from) {
    const std::string name = py::str(key);
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      throw Error(ErrorKind::request, std::string(what) + ": expected keys of _core.pyi, found " + name);
    }
  }
}

template <class T>
T required(const py::dict& from, const char* key, const char* what) {
  if (!from.contains(key))
    throw Error(ErrorKind::request, std::string(what) + ": expected the key " + key + ", found none");
  try {
    return from[key].cast<T>();
  } catch (const py::cast_error&) {
    throw Error(ErrorKind::request,
                std::string(what) + ": expected a proper " + key + ", found " + std::string(py::repr(from[key])));
  }
}

AdapterModule module_of(const py::dict& from, Arrays& arrays) {
  check_keys(from, {"role", "layer", "a", "b", "scale", "gain", "bias"}, "module");
  const auto role = required<std::string>(from, "role", "module");
  const auto layer = required<int64_t>(from, "layer", "module");
  const std::string where = place_name(role, layer);
  return {role,
          layer,
          arrays.view(from, "a", false, where),
          arrays.view(from, "b", false, where),
          arrays.view(from, "scale", true, where),
          arrays.view(from, "gain", true, where),
          arrays.view(from, "bias", true, where)};
}

Format format_named(const std::string& name, const std::string& role) {
  const auto format = find_format(name);
  if (!format) throw Error(ErrorKind::request, role + ": expected a format of pyinfer._core.FORMATS, found " + name);
  return *format;
}

ReplacedTensor replaced_of(const py::dict& from, Arrays& arrays) {
  check_keys(from, {"role", "layer", "values", "format"}, "replaced");
  const auto role = required<std::string>(from, "role", "replaced");
  const auto format = from.contains("format") ? required<std::string>(from, "format", "replaced") : "f32";
  return {role, required<int64_t>(from, "layer", "replaced"), format_named(format, role),
          arrays.view(from, "values", true, role)};
}

std::shared_ptr<AdapterSet> make_set(std::shared_ptr<Engine> engine, const py::sequence& modules,
                                     const py::sequence& replaced) {
  if (engine == nullptr) throw Error(ErrorKind::request, "engine: expected one, found None");
  Arrays arrays;
  std::vector<AdapterModule> linears;
  std::vector<ReplacedTensor> tensors;
  for (const auto& module : modules) linears.push_back(module_of(module.cast<py::dict>(), arrays));
  for (const auto& tensor : replaced) tensors.push_back(replaced_of(tensor.cast<py::dict>(), arrays));
  std::shared_ptr<AdapterSet> set;
  without_gil([&](const Poll&) { set = std::make_shared<AdapterSet>(std::move(engine), linears, tensors); });
  return set;
}

}  // namespace

void bind_adapters(py::module_& m) {
  py::class_<AdapterSet, std::shared_ptr<AdapterSet>>(m, "AdapterSet")
      .def(py::init(&make_set), py::arg("engine"), py::arg("modules"), py::arg("replaced") = py::tuple())
      .def_property_readonly("bytes", &AdapterSet::bytes);
}

}  // namespace pyinfer
