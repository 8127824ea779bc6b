// The shape of a LLaMA-like model: numbers and flags, as they lie in model.bin (docs/model-file.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyinfer {

struct ModelSpec {
  uint32_t spec_version;
  uint32_t n_layers;
  uint32_t dim;  // width of the residual stream
  uint32_t n_heads;
  uint32_t n_kv_heads;  // divides n_heads
  uint32_t head_dim;
  uint32_t n_ff;  // width of the feed-forward layer
  uint32_t n_vocab;
  uint32_t context;   // positions the model was trained for
  uint32_t rope_dim;  // dimensions of a head that rotate
  float norm_eps;
  float rope_magnitude;   // factor on cos and sin
  float attention_scale;  // factor on q · k
  uint32_t flags;
  uint32_t reserved[18];

  bool tied_head() const { return (flags & 1u) != 0; }
  size_t q_width() const { return size_t{n_heads} * head_dim; }
  size_t kv_width() const { return size_t{n_kv_heads} * head_dim; }
};
static_assert(sizeof(ModelSpec) == 128);

}  // namespace pyinfer
