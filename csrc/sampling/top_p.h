// Top-p, or nucleus sampling (A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019): keeps the fewest
// likeliest tokens that together hold the probability top_p among the candidates so far.
#pragma once

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class TopP {
 public:
  TopP(int, const SamplingParams& params) : p_(params.top_p) {}

  static void validate(const SamplingParams& params, int) { require_between("top_p", params.top_p, 0, 1); }

  void apply(Choice& choice) const {
    if (p_ == 1.0f) return;
    choice.weigh_once();
    choice.keep_share(p_, likelier);
  }

  void accept(int) {}

 private:
  float p_;
};

}  // namespace pyinfer
