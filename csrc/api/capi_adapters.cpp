// The C interface: stacks of adapters, from arrays.
#include <string>
#include <vector>

#include "api/capi.h"

using namespace pyinfer;
using capi::guarded;

namespace {

constexpr pyi_adapters_options kAdaptersDefaults{
    sizeof(pyi_adapters_options), nullptr, 0, sizeof(pyi_adapter_module), nullptr, 0, sizeof(pyi_replaced_tensor)};
constexpr size_t kMaxSide = 4294967295;

std::string name_of(const char* role, const char* what) {
  if (role == nullptr) capi::refuse(std::string(what) + ".role", "a name", "NULL");
  return role;
}

Format type_of(int32_t type, bool floats_only, const std::string& name) {
  if (type == PYI_F32) return Format::f32;
  if (!floats_only && type == PYI_F16) return Format::f16;
  if (!floats_only && type == PYI_BF16) return Format::bf16;
  capi::refuse(name, floats_only ? "PYI_F32" : "PYI_F32, PYI_F16 or PYI_BF16", std::to_string(type));
}

AdapterValues values_of(const pyi_values& values, bool floats_only, const std::string& name) {
  if (values.data == nullptr) return {};
  capi::check_reserved(values.reserved, name.c_str());
  const Format format = type_of(values.type, floats_only, name);
  if (values.rows > kMaxSide || values.cols > kMaxSide)
    capi::refuse(name, "at most 4294967295 rows and columns",
                 std::to_string(values.rows) + " and " + std::to_string(values.cols));
  return {format, values.rows, values.cols, static_cast<const uint8_t*>(values.data)};
}

AdapterModule module_of(const pyi_adapter_module& m) {
  const std::string role = name_of(m.role, "module");
  const std::string where = place_name(role, m.layer);
  return {role,
          m.layer,
          values_of(m.a, false, where + ", a"),
          values_of(m.b, false, where + ", b"),
          values_of(m.scale, true, where + ", scale"),
          values_of(m.gain, true, where + ", gain"),
          values_of(m.bias, true, where + ", bias")};
}

ReplacedTensor replaced_of(const pyi_replaced_tensor& t) {
  const std::string role = name_of(t.role, "replaced");
  const auto format = find_format(t.format == nullptr ? "f32" : t.format);
  if (!format) capi::refuse(role, "a format of docs/model-file.md", t.format);
  return {role, t.layer, *format, values_of(t.values, true, place_name(role, t.layer))};
}

// Element by element, each a struct of `size` bytes.
template <class T, class Work>
void each(const T* items, size_t n, size_t size, const char* name, const Work& work) {
  constexpr size_t kMost = size_t{1} << 20;  // far above any model
  if (items == nullptr && n > 0) capi::refuse(name, "an array", "NULL");
  if (n > kMost) capi::refuse(name, "at most " + std::to_string(kMost), std::to_string(n));
  for (size_t i = 0; i < n; ++i)
    work(capi::taken<T>(reinterpret_cast<const uint8_t*>(items) + i * size, size, T{}, name));
}

std::shared_ptr<AdapterSet> open_adapters(const capi::Model& model, const pyi_adapters_options& options) {
  std::vector<AdapterModule> modules;
  std::vector<ReplacedTensor> replaced;
  each(options.modules, options.n_modules, options.module_size, "modules",
       [&](const pyi_adapter_module& m) { modules.push_back(module_of(m)); });
  each(options.replaced, options.n_replaced, options.replaced_size, "replaced",
       [&](const pyi_replaced_tensor& t) { replaced.push_back(replaced_of(t)); });
  return std::make_shared<AdapterSet>(model.engine, modules, replaced);
}

}  // namespace

pyi_status pyi_adapters_options_init(pyi_adapters_options* options, size_t size) {
  return guarded([&] { capi::give(kAdaptersDefaults, options, size, "pyi_adapters_options"); });
}

pyi_status pyi_adapters_open(pyi_model* model, const pyi_adapters_options* options, pyi_adapters** adapters) {
  return guarded([&] {
    const auto opened = capi::get(model);
    auto& to = capi::out(adapters, "adapters");
    if (options == nullptr) capi::refuse("options", "what the stack consists of", "NULL");
    to = capi::opened<pyi_adapters>(
        open_adapters(*opened, capi::taken(options, kAdaptersDefaults, "pyi_adapters_options")));
  });
}

void pyi_adapters_close(pyi_adapters* adapters) { capi::closed(adapters); }

pyi_status pyi_adapters_get_bytes(const pyi_adapters* adapters, uint64_t* bytes) {
  return guarded([&] {
    const auto opened = capi::get(adapters);
    capi::out(bytes, "bytes") = opened->bytes();
  });
}
