#include "model/model.h"

namespace pyinfer {

void Model::place(Role role, uint32_t layer_index, const Matrix& matrix, const float* vector) {
  Layer* layer = layer_index == kNoLayer ? nullptr : &layers[layer_index];
  switch (role) {
    case Role::embedding:
      embedding = matrix;
      break;
    case Role::final_norm:
      final_norm = vector;
      break;
    case Role::head:
      head = matrix;
      break;
    case Role::rope_freqs:
      rope_freqs = vector;
      break;
    case Role::rope_freqs_local:
      rope_freqs_local = vector;
      break;
    case Role::rope_freqs_long:
      rope_freqs_long = vector;
      break;
    case Role::attn_norm:
      layer->attn_norm = vector;
      break;
    case Role::q:
      layer->q = matrix;
      break;
    case Role::k:
      layer->k = matrix;
      break;
    case Role::v:
      layer->v = matrix;
      break;
    case Role::o:
      layer->o = matrix;
      break;
    case Role::ffn_norm:
      layer->ffn_norm = vector;
      break;
    case Role::gate:
      layer->gate = matrix;
      break;
    case Role::up:
      layer->up = matrix;
      break;
    case Role::down:
      layer->down = matrix;
      break;
    case Role::q_bias:
      layer->q_bias = vector;
      break;
    case Role::k_bias:
      layer->k_bias = vector;
      break;
    case Role::v_bias:
      layer->v_bias = vector;
      break;
    case Role::o_bias:
      layer->o_bias = vector;
      break;
    case Role::q_norm:
      layer->q_norm = vector;
      break;
    case Role::k_norm:
      layer->k_norm = vector;
      break;
    case Role::post_attn_norm:
      layer->post_attn_norm = vector;
      break;
    case Role::post_ffn_norm:
      layer->post_ffn_norm = vector;
      break;
  }
}

Model::Model(const ModelFile& file, Activations how)
    : spec(file.spec()),
      activations(how),
      embedding{},
      layers(spec.n_layers),
      final_norm(nullptr),
      head{},
      rope_freqs(nullptr),
      rope_freqs_local(nullptr),
      rope_freqs_long(nullptr) {
  for (const TensorRecord& tensor : file.tensors()) {
    const uint8_t* bytes = file.bytes_of(tensor);
    const bool vector = tensor.format == Format::vector;
    place(tensor.role, tensor.layer, vector ? Matrix{} : Matrix::view(tensor.format, tensor.rows, tensor.cols, bytes),
          reinterpret_cast<const float*>(bytes));
  }
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
  return {max_rows,
          spec.dim,
          spec.q_width(),
          spec.kv_width(),
          spec.n_ff,
          spec.rope_dim / 2,
          int8 && quantised,
          !int8 || floats,
          spec.has(kLocalRope) ? size_t{2} : size_t{1},
          spec.has(kPostNorms),
          0};
}

}  // namespace pyinfer
