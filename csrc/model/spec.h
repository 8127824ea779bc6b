// The shape of a LLaMA-like model: numbers and flags, as they lie in model.bin (docs/model-file.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyinfer {

inline constexpr uint64_t kMostPositions = 16777216;  // of a sequence

// What a family has or has not; bits of ModelSpec::flags.
enum SpecFlag : uint32_t {
  kTiedHead = 1u << 0,    // the head is the embedding
  kQkvBias = 1u << 1,     // q, k and v have biases
  kOBias = 1u << 2,       // o has a bias
  kQkNorm = 1u << 3,      // each head of q and of k is normed before it rotates
  kPostNorms = 1u << 4,   // what a block adds to the residual stream is normed before
  kGelu = 1u << 5,        // the gate is gelu (its tanh form) instead of silu
  kLocalRope = 1u << 6,   // layers with a window rotate by frequencies of their own
  kNormOffset = 1u << 7,  // norms hold 1 + w of their source: nothing to the decoder, much to who replaces a norm
  kSpecFlags = (1u << 8) - 1,
};

struct ModelSpec {
  static constexpr size_t kMarkedLayers = 128;  // layers that can be marked one by one

  uint32_t spec_version;  // 1: all that follows `flags` is 0, and of the flags all but kTiedHead
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
  float embedding_scale;  // factor on embeddings; 0: none
  float attn_softcap;     // scores become cap · tanh(score / cap); 0: they do not
  float logit_softcap;    // likewise logits
  uint32_t window;        // positions that a layer with a window sees, its own included; 0: no layer has one
  uint32_t long_context;  // sequences made for more positions rotate by rope_freqs_long; 0: none do
  uint32_t windowed[4];   // bit i: layer i has the window
  uint32_t unrotated[4];  // bit i: layer i does not rotate q and k
  uint32_t reserved[5];

  bool has(SpecFlag flag) const { return (flags & flag) != 0; }
  bool tied_head() const { return has(kTiedHead); }
  size_t q_width() const { return size_t{n_heads} * head_dim; }
  size_t kv_width() const { return size_t{n_kv_heads} * head_dim; }
  // Positions that a layer sees; 0: all.
  uint32_t window_of(size_t layer) const { return marked(windowed, layer) ? window : 0; }
  bool rotates(size_t layer) const { return !marked(unrotated, layer); }

  static bool marked(const uint32_t (&layers)[4], size_t layer) {
    return layer < kMarkedLayers && (layers[layer / 32] >> layer % 32 & 1u) != 0;
  }
};
static_assert(sizeof(ModelSpec) == 128);

}  // namespace pyinfer
