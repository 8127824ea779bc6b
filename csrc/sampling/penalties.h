// Penalties on tokens among the last `penalty_window` ones accepted, with n the times a token stands there:
//   logit = logit > 0 ? logit / repetition : logit * repetition      (N. S. Keskar et al., "CTRL", 2019, section 4.1)
//   logit = logit - presence - n * frequency                         (as the OpenAI API defines them)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class Penalties {
 public:
  Penalties(int n_vocab, const SamplingParams& params)
      : repetition_(params.repetition_penalty),
        presence_(params.presence_penalty),
        frequency_(params.frequency_penalty) {
    if (repetition_ == 1.0f && presence_ == 0.0f && frequency_ == 0.0f) return;
    window_.assign(static_cast<std::size_t>(params.penalty_window), none);
    seen_.assign(static_cast<std::size_t>(n_vocab), Seen{0, 0});
  }

  static void validate(const SamplingParams& params, int) {
    require_between("repetition_penalty", params.repetition_penalty, 0.01f, 100);
    require_between("presence_penalty", params.presence_penalty, -100, 100);
    require_between("frequency_penalty", params.frequency_penalty, -100, 100);
    require_between("penalty_window", params.penalty_window, 0, 1048576);
  }

  void apply(Choice& choice) const {
    if (window_.empty()) return;
    float* logits = choice.writable_logits();
    for (std::size_t slot = 0; slot < window_.size(); ++slot) {
      const int token = window_[slot];
      if (token == none || seen_[static_cast<std::size_t>(token)].slot != slot)
        continue;  // once a token: at its latest slot
      if (!std::isfinite(logits[token])) continue;
      const float scaled = logits[token] > 0 ? logits[token] / repetition_ : logits[token] * repetition_;
      const float lowered =
          scaled - (presence_ + static_cast<float>(seen_[static_cast<std::size_t>(token)].count) * frequency_);
      logits[token] = std::clamp(lowered, -kLargest, kLargest);  // what is finite stays so
    }
  }

  void accept(int token) {
    if (window_.empty()) return;
    const int leaving = window_[next_];
    if (leaving != none) --seen_[static_cast<std::size_t>(leaving)].count;
    window_[next_] = token;
    Seen& seen = seen_[static_cast<std::size_t>(token)];
    ++seen.count;
    seen.slot = next_;
    next_ = (next_ + 1) % window_.size();
  }

 private:
  static constexpr int none = -1;

  static constexpr float kLargest = std::numeric_limits<float>::max();

  struct Seen {
    int count;         // slots of the window that hold the token
    std::size_t slot;  // the latest of them; meaningless when count is 0
  };

  float repetition_, presence_, frequency_;
  std::vector<int> window_;  // (penalty_window) a ring of tokens; empty when no penalty is asked for
  std::vector<Seen> seen_;   // (n_vocab)
  std::size_t next_ = 0;     // the slot that the next token takes: the oldest
};

}  // namespace pyinfer
