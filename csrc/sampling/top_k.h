// Top-k: turns the logits into candidates, the k likeliest tokens (all of them when it is off).
// Temperature 0 is the same as k = 1, so greedy picking is this one pass over the logits and needs no code of its own.
#pragma once

#include <cstddef>
#include <limits>

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class TopK {
 public:
  TopK(int n_vocab, const SamplingParams& params) : k_(candidates(n_vocab, params)) {}

  static void validate(const SamplingParams& params, int) {
    require_between("top_k", params.top_k, 0, std::numeric_limits<int>::max());
  }

  // How many candidates it leaves at most.
  static std::size_t candidates(int n_vocab, const SamplingParams& params) {
    if (params.temperature == 0.0f) return 1;
    const bool off = params.top_k == 0 || params.top_k > n_vocab;
    return static_cast<std::size_t>(off ? n_vocab : params.top_k);
  }

  void apply(Choice& choice) const { choice.gather(k_); }
  void accept(int) {}

 private:
  std::size_t k_;
};

}  // namespace pyinfer
