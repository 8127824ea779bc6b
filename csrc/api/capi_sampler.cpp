// The C interface: samplers.
#include <limits>
#include <string>

#include "api/capi.h"
#include "sampling/sampler.h"

using namespace pyinfer;
using capi::guarded;

namespace pyinfer::capi {

struct OpenSampler {
  Sampler sampler;
  std::atomic<bool> busy{false};

  OpenSampler(int n_vocab, const SamplingParams& params) : sampler(n_vocab, params) {}
};

}  // namespace pyinfer::capi

namespace {

// Marks a sampler as busy while it lives; throws if it is.
class Busy {
 public:
  explicit Busy(capi::OpenSampler& opened) : opened_(opened) {
    if (opened_.busy.exchange(true)) capi::refuse("sampler", "one call at a time", "a second one");
  }
  ~Busy() { opened_.busy.store(false); }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  capi::OpenSampler& opened_;
};

constexpr int kMaxInt = std::numeric_limits<int>::max();

pyi_sampling sampling_defaults() {
  const SamplingParams p;
  return {sizeof(pyi_sampling),
          p.seed,
          nullptr,
          0,
          p.repetition_penalty,
          p.presence_penalty,
          p.frequency_penalty,
          p.penalty_window,
          p.top_k,
          p.typical_p,
          p.top_p,
          p.min_p,
          p.temperature,
          0};
}

SamplingParams params_of(const pyi_sampling& s, uint32_t n_vocab) {
  capi::check_reserved(s.reserved, "pyi_sampling");
  if (s.logit_bias == nullptr && s.n_logit_bias > 0) capi::refuse("logit_bias", "an array", "NULL");
  if (s.n_logit_bias > n_vocab)
    capi::refuse("n_logit_bias", "at most one for each of " + std::to_string(n_vocab) + " tokens",
                 std::to_string(s.n_logit_bias));
  SamplingParams params;
  params.temperature = s.temperature;
  params.top_k = s.top_k;
  params.top_p = s.top_p;
  params.min_p = s.min_p;
  params.typical_p = s.typical_p;
  params.repetition_penalty = s.repetition_penalty;
  params.presence_penalty = s.presence_penalty;
  params.frequency_penalty = s.frequency_penalty;
  params.penalty_window = s.penalty_window;
  params.seed = s.seed;
  for (size_t i = 0; i < s.n_logit_bias; ++i)
    params.logit_bias.emplace_back(s.logit_bias[i].token, s.logit_bias[i].bias);
  return params;
}

}  // namespace

pyi_status pyi_sampling_init(pyi_sampling* sampling, size_t size) {
  return guarded([&] { capi::give(sampling_defaults(), sampling, size, "pyi_sampling"); });
}

pyi_status pyi_sampler_open(uint32_t n_vocab, const pyi_sampling* sampling, pyi_sampler** sampler) {
  return guarded([&] {
    auto& to = capi::out(sampler, "sampler");
    const pyi_sampling given = capi::taken(sampling, sampling_defaults(), "pyi_sampling");
    const int n = n_vocab > static_cast<uint32_t>(kMaxInt) ? kMaxInt : static_cast<int>(n_vocab);  // refused below
    to = capi::opened<pyi_sampler>(std::make_shared<capi::OpenSampler>(n, params_of(given, n_vocab)));
  });
}

void pyi_sampler_close(pyi_sampler* sampler) { capi::closed(sampler); }

pyi_status pyi_sampler_pick(pyi_sampler* sampler, const float* logits, size_t n_logits, int32_t* token) {
  return guarded([&] {
    const auto opened = capi::get(sampler);
    auto& to = capi::out(token, "token");
    if (logits == nullptr) capi::refuse("logits", "an array", "NULL");
    const auto n_vocab = static_cast<size_t>(opened->sampler.n_vocab());
    if (n_logits != n_vocab) capi::refuse("n_logits", std::to_string(n_vocab), std::to_string(n_logits));
    const Busy busy(*opened);
    to = opened->sampler.pick(logits);
  });
}

pyi_status pyi_sampler_accept(pyi_sampler* sampler, int32_t token) {
  return guarded([&] {
    const auto opened = capi::get(sampler);
    const Busy busy(*opened);
    opened->sampler.accept(token);
  });
}
