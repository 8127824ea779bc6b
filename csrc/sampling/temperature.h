// Temperature: the weights of the candidates that are left become exp(logit / temperature), but for a common factor.
// With temperature 0 there is one candidate (see top_k.h), whose weight is 1 at any temperature.
#pragma once

#include "sampling/choice.h"
#include "sampling/limits.h"
#include "sampling/params.h"

namespace pyinfer {

class Temperature {
 public:
  Temperature(int, const SamplingParams& params)
      : temperature_(params.temperature == 0.0f ? 1.0f : params.temperature) {}

  static void validate(const SamplingParams& params, int) {
    require_between("temperature", params.temperature, 0, 100);
  }

  void apply(Choice& choice) const { choice.weigh(temperature_); }
  void accept(int) {}

 private:
  float temperature_;
};

}  // namespace pyinfer
