#include "sampling/sampler.h"

#include "sampling/draw.h"
#include "sampling/limits.h"

namespace pyinfer {
namespace {

const SamplingParams& validated(const SamplingParams& params, int n_vocab) {
  validate(params, n_vocab);
  return params;
}

}  // namespace

void validate(const SamplingParams& params, int n_vocab) {
  require_between("n_vocab", n_vocab, 1, 4194304);
#define PYINFER_SAMPLER(type, name) type::validate(params, n_vocab);
#include "sampling/samplers.inc"
#undef PYINFER_SAMPLER
}

Sampler::Sampler(int n_vocab, const SamplingParams& params)
    : n_vocab_(n_vocab),
      choice_(n_vocab, TopK::candidates(n_vocab, validated(params, n_vocab))),
      rng_(params.seed)
#define PYINFER_SAMPLER(type, name) , name##_(n_vocab, params)
#include "sampling/samplers.inc"
#undef PYINFER_SAMPLER
{
}

int Sampler::pick(const float* logits) {
  choice_.begin(logits);
#define PYINFER_SAMPLER(type, name) name##_.apply(choice_);
#include "sampling/samplers.inc"
#undef PYINFER_SAMPLER
  return draw(choice_, rng_);
}

void Sampler::accept(int token) {
  require_between("accepted token", token, 0, n_vocab_ - 1);
#define PYINFER_SAMPLER(type, name) name##_.accept(token);
#include "sampling/samplers.inc"
#undef PYINFER_SAMPLER
}

}  // namespace pyinfer
