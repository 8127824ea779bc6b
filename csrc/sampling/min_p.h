// Min-p (M. Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", 2024): keeps the tokens
// that have at least the share min_p of the likeliest token's probability.
#pragma once

#include <algorithm>
#include <vector>

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class MinP {
 public:
  MinP(int, const SamplingParams& params) : p_(params.min_p) {}

  static void validate(const SamplingParams& params, int) { require_between("min_p", params.min_p, 0, 1); }

  void apply(Choice& choice) const {
    if (p_ == 0.0f) return;
    choice.weigh_once();
    double greatest = 0.0;
    for (const Candidate& one : choice.candidates) greatest = std::max(greatest, one.weight);
    const double least = p_ * greatest;
    std::erase_if(choice.candidates, [least](const Candidate& one) { return one.weight < least; });
  }

  void accept(int) {}

 private:
  float p_;
};

}  // namespace pyinfer
