// The C interface: models and what is in their files.
#include <string>

#include "api/capi.h"

using namespace pyinfer;
using capi::guarded;

namespace {

constexpr pyi_model_options kModelDefaults{sizeof(pyi_model_options), 0, PYI_INT8, 0, 1, PYI_KV_AUTO,
                                           PYI_HUGE_PAGES_AUTO,       0};

Activations activations_of(int32_t value) {
  if (value == PYI_INT8) return Activations::int8;
  if (value == PYI_FLOAT32) return Activations::f32;
  capi::refuse("activations", "PYI_INT8 or PYI_FLOAT32", std::to_string(value));
}

bool flag_of(int32_t value, const char* name) {
  if (value != 0 && value != 1) capi::refuse(name, "0 or 1", std::to_string(value));
  return value == 1;
}

HugePages huge_pages_of(int32_t value, bool prefetch) {
  if (value == PYI_HUGE_PAGES_AUTO) return HugePages::automatic;
  if (value == PYI_HUGE_PAGES_OFF) return HugePages::off;
  if (value != PYI_HUGE_PAGES_ON) {
    capi::refuse("huge_pages", "PYI_HUGE_PAGES_AUTO, _ON or _OFF", std::to_string(value));
  }
  if (!prefetch) capi::refuse("prefetch", "1 with PYI_HUGE_PAGES_ON, for which the file is read at once", "0");
  return HugePages::on;
}

size_t context_limit(uint64_t asked, size_t trained) {
  if (asked > trained) {
    capi::refuse("context_limit", "at most " + std::to_string(trained) + ", for which the model was trained",
                 std::to_string(asked));
  }
  return asked == 0 ? trained : static_cast<size_t>(asked);
}

std::shared_ptr<capi::Model> open_model(const char* path, const pyi_model_options& options) {
  if (path == nullptr) capi::refuse("path", "a path", "NULL");
  auto model = std::make_shared<capi::Model>();
  model->activations = activations_of(options.activations);
  const bool prefetch = flag_of(options.prefetch, "prefetch");
  const HugePages huge_pages = huge_pages_of(options.huge_pages, prefetch);
  capi::check_reserved(options.reserved, "pyi_model_options");
  model->file = std::make_shared<const ModelFile>(path, huge_pages);
  model->kv = capi::kv_of(*model, options.kv);
  model->context_limit = context_limit(options.context_limit, model->file->spec().context);
  model->engine = std::make_shared<Engine>(model->file, options.threads, model->activations);
  if (prefetch) model->engine->prefetch();
  return model;
}

pyi_model_info info_of(const capi::Model& model) {
  const ModelSpec& s = model.file->spec();
  pyi_model_info info{};
  info.n_layers = s.n_layers;
  info.dim = s.dim;
  info.n_heads = s.n_heads;
  info.n_kv_heads = s.n_kv_heads;
  info.head_dim = s.head_dim;
  info.n_ff = s.n_ff;
  info.n_vocab = s.n_vocab;
  info.rope_dim = s.rope_dim;
  info.context = s.context;
  info.norm_eps = s.norm_eps;
  info.rope_magnitude = s.rope_magnitude;
  info.attention_scale = s.attention_scale;
  info.tied_head = s.tied_head();
  info.threads = model.engine->n_threads();
  info.activations = model.activations == Activations::int8 ? PYI_INT8 : PYI_FLOAT32;
  info.file_bytes = model.file->file_bytes();
  info.n_tensors = model.file->tensors().size();
  return info;
}

const TensorRecord& tensor_at(const ModelFile& file, uint64_t index) {
  const auto tensors = file.tensors();
  if (index < tensors.size()) return tensors[static_cast<size_t>(index)];
  capi::refuse("tensor", "0 to " + std::to_string(tensors.size() - 1), std::to_string(index));
}

pyi_tensor tensor_of(const TensorRecord& record) {
  pyi_tensor tensor{};
  tensor.role = role_name(record.role);
  tensor.format = format_name(record.format);
  tensor.layer = record.layer == kNoLayer ? -1 : static_cast<int64_t>(record.layer);
  tensor.rows = record.rows;
  tensor.cols = record.cols;
  tensor.bytes = record.bytes;
  return tensor;
}

void give_blob(std::span<const uint8_t> blob, const uint8_t** data, size_t* size) {
  auto& where = capi::out(data, "data");
  capi::out(size, "size") = blob.size();
  where = blob.data();
}

}  // namespace

pyi_status pyi_model_options_init(pyi_model_options* options, size_t size) {
  return guarded([&] { capi::give(kModelDefaults, options, size, "pyi_model_options"); });
}

pyi_status pyi_model_open(const char* path, const pyi_model_options* options, pyi_model** model) {
  return guarded([&] {
    auto& to = capi::out(model, "model");
    to = capi::opened<pyi_model>(open_model(path, capi::taken(options, kModelDefaults, "pyi_model_options")));
  });
}

void pyi_model_close(pyi_model* model) { capi::closed(model); }

pyi_status pyi_model_get_info(const pyi_model* model, pyi_model_info* info, size_t size) {
  return guarded([&] { capi::give(info_of(*capi::get(model)), info, size, "pyi_model_info"); });
}

pyi_status pyi_model_get_memory(const pyi_model* model, uint64_t context, int32_t kv, pyi_memory* memory, size_t size) {
  return guarded([&] {
    const auto opened = capi::get(model);
    const MemoryNeeds needs = opened->engine->memory(checked_context(context), capi::kv_of(*opened, kv));
    capi::give(pyi_memory{size, needs.weights, needs.kv_cache, needs.workspace}, memory, size, "pyi_memory");
  });
}

pyi_status pyi_model_get_tokenizer(const pyi_model* model, const uint8_t** data, size_t* size) {
  return guarded([&] { give_blob(capi::get(model)->file->tokenizer(), data, size); });
}

pyi_status pyi_model_get_metadata(const pyi_model* model, const uint8_t** data, size_t* size) {
  return guarded([&] { give_blob(capi::get(model)->file->metadata(), data, size); });
}

pyi_status pyi_model_get_tensor(const pyi_model* model, uint64_t index, pyi_tensor* tensor, size_t size) {
  return guarded([&] { capi::give(tensor_of(tensor_at(*capi::get(model)->file, index)), tensor, size, "pyi_tensor"); });
}

pyi_status pyi_model_verify(const pyi_model* model, uint64_t index, int32_t* matches) {
  return guarded([&] {
    const auto opened = capi::get(model);
    auto& to = capi::out(matches, "matches");
    to = opened->file->verify(tensor_at(*opened->file, index));
  });
}
