// Rotary embedding, writing K and V, and attention, for the rows of a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "nn/kv_cache.h"
#include "nn/workspace.h"

namespace pyinfer {

struct AttentionShape {
  size_t n_heads;
  size_t n_kv_heads;
  size_t head_dim;
  size_t rope_pairs;
  float scale;  // of q · k
};

// Fills the workspace's cosines and sines: angle = position · frequency, computed in double.
void rope_angles(Workspace& workspace, std::span<const Segment> segments, const float* frequencies, float magnitude);

// Reads the workspace's qkv, rotates q and k in place, stores k and v in the caches, leaves the heads' outputs in `attended`.
void attention(Workspace& workspace, const AttentionShape& shape, std::span<const Segment> segments, size_t layer);

}  // namespace pyinfer
