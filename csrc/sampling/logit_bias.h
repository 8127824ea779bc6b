// Logit bias: adds a number to the logits of chosen tokens; -inf forbids one.
#pragma once

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class LogitBias {
 public:
  LogitBias(int, const SamplingParams& params) : biases_(params.logit_bias) {}

  static void validate(const SamplingParams& params, int n_vocab) {
    for (const auto& [token, bias] : params.logit_bias) {
      require_between("token of logit_bias", token, 0, n_vocab - 1);
      if (bias != -std::numeric_limits<float>::infinity() && !(bias >= -1000 && bias <= 1000))
        refuse("logit_bias[" + std::to_string(token) + "]", bias, "-1000 to 1000, or -inf");
    }
    auto sorted = params.logit_bias;
    const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end(), same);
    if (twice != sorted.end())
      throw Error(ErrorKind::request,
                  "logit_bias: expected each token once, found token " + std::to_string(twice->first) + " twice");
  }

  void apply(Choice& choice) const {
    if (biases_.empty()) return;
    float* logits = choice.writable_logits();
    for (const auto& [token, bias] : biases_) logits[token] += bias;
  }

  void accept(int) {}

 private:
  std::vector<std::pair<int, float>> biases_;
};

}  // namespace pyinfer
