// Locally typical sampling (C. Meister et al., "Locally Typical Sampling", 2022): keeps the tokens whose information -log p is
// nearest to the entropy H of the distribution, as many as hold the probability typical_p.
//
// -log p = C - logit with a constant C, and H is the mean of -log p under p: C cancels in
// |-log p - H| = |mean(logit) - logit|, so no logarithm is needed.
#pragma once

#include <algorithm>
#include <cmath>

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class Typical {
 public:
  Typical(int, const SamplingParams& params) : p_(params.typical_p) {}

  static void validate(const SamplingParams& params, int) { require_between("typical_p", params.typical_p, 0, 1); }

  void apply(Choice& choice) const {
    if (p_ == 1.0f) return;
    choice.weigh_once();
    double sum = 0.0;
    for (const Candidate& one : choice.candidates) sum += one.weight * one.logit;
    const double mean = sum / choice.total_weight();
    choice.keep_share(p_, [mean](const Candidate& a, const Candidate& b) {
      const double far_a = std::abs(a.logit - mean), far_b = std::abs(b.logit - mean);
      return far_a < far_b || (far_a == far_b && a.id < b.id);
    });
  }

  void accept(int) {}

 private:
  float p_;
};

}  // namespace pyinfer
