// What a caller may ask of the sampler, with its defaults and limits. Knows nothing of how the samplers work.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace pyinfer {

struct SamplingParams {
  float temperature = 0.8f;  // 0 ... 100; 0 picks the greatest logit, and ties go to the lowest id
  int top_k = 40;            // 0 ... ; the k greatest logits stay; 0 = off
  float top_p = 0.95f;       // 0 ... 1; the likeliest tokens that hold this probability stay; 1 = off
  float min_p = 0.05f;       // 0 ... 1; tokens stay that have this share of the likeliest one's probability; 0 = off
  float typical_p = 1.0f;    // 0 ... 1; the most typical tokens that hold this probability stay; 1 = off
  float repetition_penalty = 1.0f;  // 0.01 ... 100; divides positive logits, multiplies the others; 1 = off
  float presence_penalty = 0.0f;    // -100 ... 100; subtracted once from tokens that were seen; 0 = off
  float frequency_penalty = 0.0f;   // -100 ... 100; subtracted for each time a token was seen; 0 = off
  int penalty_window = 64;          // 0 ... 1048576; how many of the last tokens count as seen; 0 = no penalties
  std::vector<std::pair<int, float>> logit_bias;  // (token, -1000 ... 1000, or -inf to forbid), a token once
  std::uint64_t seed = 0;                         // every value is a seed like any other
};

}  // namespace pyinfer
