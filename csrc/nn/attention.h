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
  float scale;                    // of q · k
  float softcap = 0.0f;           // of the scores; 0: none
  size_t window = 0;              // positions that a row sees; 0: all
  size_t rope_set = 0;            // of the workspace's angles
  const float* q_norm = nullptr;  // (head_dim) of each head before it rotates, or nullptr
  const float* k_norm = nullptr;
  float norm_eps = 0.0f;
};

// Radians a position of each pair; sequences made for more than `long_context` positions, unless that is 0, take the long ones.
struct RopeFrequencies {
  const float* usual;
  const float* stretched;
  size_t long_context;
  float magnitude;  // factor on cos and sin
};

// Fills a set of the workspace's cosines and sines: angle = position · frequency, computed in double.
void rope_angles(Workspace& workspace, std::span<const Segment> segments, const RopeFrequencies& frequencies,
                 size_t set);

// Reads the workspace's qkv, norms and rotates q and k in place, stores k and v in the caches, leaves the heads' outputs in `attended`.
void attention(Workspace& workspace, const AttentionShape& shape, std::span<const Segment> segments, size_t layer);

}  // namespace pyinfer
