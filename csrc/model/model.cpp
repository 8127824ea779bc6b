#include "model/model.h"

namespace pyinfer {
namespace {

// The place in the model that a tensor fills; ModelFile has checked that each is filled once.
void place(Model& model, const TensorRecord& tensor, const uint8_t* bytes) {
  const auto* vector = reinterpret_cast<const float*>(bytes);
  const Matrix matrix =
      tensor.format == Format::vector ? Matrix{} : Matrix::view(tensor.format, tensor.rows, tensor.cols, bytes);
  Layer* layer = tensor.layer == kNoLayer ? nullptr : &model.layers[tensor.layer];
  switch (tensor.role) {
    case Role::embedding: model.embedding = matrix; break;
    case Role::final_norm: model.final_norm = vector; break;
    case Role::head: model.head = matrix; break;
    case Role::rope_freqs: model.rope_freqs = vector; break;
    case Role::attn_norm: layer->attn_norm = vector; break;
    case Role::q: layer->q = matrix; break;
    case Role::k: layer->k = matrix; break;
    case Role::v: layer->v = matrix; break;
    case Role::o: layer->o = matrix; break;
    case Role::ffn_norm: layer->ffn_norm = vector; break;
    case Role::gate: layer->gate = matrix; break;
    case Role::up: layer->up = matrix; break;
    case Role::down: layer->down = matrix; break;
  }
}

}  // namespace

Model::Model(const ModelFile& file, Activations how)
    : spec(file.spec()), activations(how), embedding{}, layers(spec.n_layers), final_norm(nullptr), head{}, rope_freqs(nullptr) {
  for (const TensorRecord& tensor : file.tensors()) place(*this, tensor, file.bytes_of(tensor));
  if (spec.tied_head()) head = embedding;
}

WorkspaceShape Model::workspace_shape(size_t max_rows) const {
  bool quantised = !head.is_float(), floats = head.is_float();
  for (const Layer& layer : layers) {
    for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      (m->is_float() ? floats : quantised) = true;
    }
  }
  const bool int8 = activations == Activations::int8;
  return {max_rows, spec.dim, spec.q_width(), spec.kv_width(), spec.n_ff, spec.rope_dim / 2, int8 && quantised, !int8 || floats};
}

}  // namespace pyinfer
