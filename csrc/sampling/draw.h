// The draw that ends the chain: one candidate at random, in proportion to its weight. It takes one uniform number a pick,
// whatever the logits and however few candidates are left, so that the n-th pick always has the n-th number of the seed.
#pragma once

#include "sampling/choice.h"
#include "sampling/rng.h"

namespace pyinfer {

inline int draw(const Choice& choice, Rng& rng) {
  const double mark = rng.uniform() * choice.total_weight();  // less than the total: uniform() <= 1 - 2^-53
  double sum = 0.0;
  for (const Candidate& one : choice.candidates) {
    sum += one.weight;
    if (sum > mark) return one.id;
  }
  return choice.candidates.back().id;
}

}  // namespace pyinfer
