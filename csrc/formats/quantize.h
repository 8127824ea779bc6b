// How 32 floats become one block of integers. Rounding is to nearest, halves away from zero, against the scale as stored (a half).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {

inline int8_t round_clamp(float x, int low, int high) {
  const float rounded = std::round(x);
  return static_cast<int8_t>(std::min(std::max(rounded, static_cast<float>(low)), static_cast<float>(high)));
}

// q = round((x − offset) / d) + bias, kept within low…high; d = 0 gives bias.
inline void quantize_with(const float* x, float d, float offset, int bias, int low, int high, int8_t* q) {
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  for (int i = 0; i < kBlock; ++i) {
    q[i] = round_clamp((x[i] - offset) * inverse + static_cast<float>(bias), low, high);
  }
}

inline float squared_error(const float* x, float d, float offset, int bias, const int8_t* q) {
  float sum = 0.0f;
  for (int i = 0; i < kBlock; ++i) {
    const float error = x[i] - (d * static_cast<float>(q[i] - bias) + offset);
    sum += error * error;
  }
  return sum;
}

// Symmetric: x ≈ d · (q − bias) with q in low…high. The value of largest magnitude meets the longer end of the range exactly;
// nearby scales are tried too and the one with the least squared error wins, the first on a tie.
inline Block quantize_symmetric(const float* x, int bias, int low, int high) {
  float extreme = 0.0f;
  for (int i = 0; i < kBlock; ++i) extreme = std::fabs(x[i]) > std::fabs(extreme) ? x[i] : extreme;
  const float reach = static_cast<float>(low - bias);
  Block best{};
  float best_error = 0.0f;
  for (const float stretch : {1.0f, 0.925f, 0.95f, 0.975f, 1.025f, 1.05f, 1.075f}) {
    Block block{};
    block.d = float_to_half(extreme / (reach * stretch));
    const float d = half_to_float(block.d);
    quantize_with(x, d, 0.0f, bias, low, high, block.q);
    const float error = squared_error(x, d, 0.0f, bias, block.q);
    if (stretch == 1.0f || error < best_error) {
      best = block;
      best_error = error;
    }
  }
  return best;
}

// With a minimum: x ≈ d · (q − low) + least, stored as d · q + m with m = least − d · low.
inline Block quantize_range(const float* x, int low, int high) {
  const auto [least, most] = std::minmax_element(x, x + kBlock);
  Block block{};
  block.d = float_to_half((*most - *least) / static_cast<float>(high - low));
  const float d = half_to_float(block.d);
  block.m = float_to_half(*least - d * static_cast<float>(low));
  const float m = half_to_float(block.m);
  if (std::isfinite(d) && std::isfinite(m))
    quantize_with(x, d, m, 0, low, high, block.q);  // else the caller refuses the block
  return block;
}

}  // namespace pyinfer
