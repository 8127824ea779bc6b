// Picks tokens from logits: the chain of samplers.inc, then a seeded draw. Same parameters, same logits and same tokens
// accepted give the same picks, on every platform. Knows nothing of models, sessions or text.
#pragma once

#include "sampling/choice.h"
#include "sampling/logit_bias.h"
#include "sampling/min_p.h"
#include "sampling/params.h"
#include "sampling/penalties.h"
#include "sampling/rng.h"
#include "sampling/temperature.h"
#include "sampling/top_k.h"
#include "sampling/top_p.h"
#include "sampling/typical.h"

namespace pyinfer {

// Throws an error that names parameter, value and limits.
void validate(const SamplingParams& params, int n_vocab);

// Not to be used by two threads at once. Allocates when made and never again.
class Sampler {
 public:
  // Validates the parameters first.
  Sampler(int n_vocab, const SamplingParams& params);

  int n_vocab() const { return n_vocab_; }

  // The next token; `logits` (n_vocab) are not changed. Throws when one is NaN or +inf, or when all are -inf.
  int pick(const float* logits);

  // Tells the penalties of a token of the prompt or of the answer; `pick` does not do so by itself.
  void accept(int token);

 private:
  int n_vocab_;
  Choice choice_;
  Rng rng_;
#define PYINFER_SAMPLER(type, name) type name##_;
#include "sampling/samplers.inc"
#undef PYINFER_SAMPLER
};

}  // namespace pyinfer
