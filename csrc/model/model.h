// A model ready to run: views into the mapped file, in the order in which a step meets them.
#pragma once

#include <vector>

#include "model/file.h"
#include "model/spec.h"
#include "nn/kv_cache.h"
#include "nn/tensor.h"
#include "nn/workspace.h"

namespace pyinfer {

// What a family does not have is nullptr.
struct Layer {
  const float* attn_norm;        // (dim)
  Matrix q;                      // (n_heads · head_dim, dim)
  Matrix k, v;                   // (n_kv_heads · head_dim, dim)
  const float* q_bias;           // (n_heads · head_dim)
  const float *k_bias, *v_bias;  // (n_kv_heads · head_dim)
  const float *q_norm, *k_norm;  // (head_dim)
  Matrix o;                      // (dim, n_heads · head_dim)
  const float* o_bias;           // (dim)
  const float* post_attn_norm;   // (dim)
  const float* ffn_norm;         // (dim)
  Matrix gate, up;               // (n_ff, dim)
  Matrix down;                   // (dim, n_ff)
  const float* post_ffn_norm;    // (dim)
};

struct Model {
  Model(const ModelFile& file, Activations activations);

  ModelSpec spec;
  Activations activations;
  Matrix embedding;  // (n_vocab, dim)
  std::vector<Layer> layers;
  const float* final_norm;        // (dim)
  Matrix head;                    // (n_vocab, dim); the embedding where the head is tied
  const float* rope_freqs;        // (rope_dim / 2)
  const float* rope_freqs_local;  // (rope_dim / 2) of layers with a window
  const float* rope_freqs_long;   // (rope_dim / 2) of long sequences

  // Makes a tensor the one of its role: the matrix, or the vector where the role is one. The layer is kNoLayer outside the layers.
  void place(Role role, uint32_t layer, const Matrix& matrix, const float* vector);
  WorkspaceShape workspace_shape(size_t max_rows) const;
  KvShape kv_shape(KvFormat format) const { return {spec.n_layers, spec.n_kv_heads, spec.head_dim, format}; }
};

}  // namespace pyinfer
