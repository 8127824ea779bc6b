// The whole chain against a slow one written apart from it: a full sort for everything, the C library's exp, 128-bit integers
// for the generator. Both must pick the same tokens.
#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "check.h"
#include "random.h"
#include "sampling/sampler.h"

using namespace pyinfer;

namespace {

struct Token {
  int id;
  double logit;
  double p;
};

class SlowSampler {
 public:
  SlowSampler(int n_vocab, const SamplingParams& params) : n_vocab_(n_vocab), params_(params) {
    step();
    state_ += params.seed;
    step();
  }

  void accept(int token) {
    seen_.push_back(token);
    if (static_cast<int>(seen_.size()) > params_.penalty_window) seen_.pop_front();
  }

  int pick(const std::vector<float>& logits) {
    tokens_.clear();
    for (int id = 0; id < n_vocab_; ++id) {
      const float logit = penalised(id, logits[static_cast<std::size_t>(id)]);
      if (!std::isinf(logit)) tokens_.push_back({id, logit, 0});
    }
    if (params_.temperature == 0) return likeliest_first().front().id;
    cut_top_k();
    cut_typical();
    cut_top_p();
    cut_min_p();
    return draw();
  }

 private:
  // In float like the logits themselves, or ties would come out otherwise.
  float penalised(int id, float logit) const {
    for (const auto& [token, bias] : params_.logit_bias)
      if (token == id) logit += bias;
    const auto n = std::count(seen_.begin(), seen_.end(), id);
    if (n == 0) return logit;
    logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    return logit - (params_.presence_penalty + static_cast<float>(n) * params_.frequency_penalty);
  }

  std::vector<Token>& likeliest_first() {
    std::stable_sort(tokens_.begin(), tokens_.end(), [](const Token& a, const Token& b) {
      return std::pair(-a.logit, a.id) < std::pair(-b.logit, b.id);
    });
    return tokens_;
  }

  void softmax(double temperature) {
    double greatest = -std::numeric_limits<double>::infinity(), total = 0;
    for (const Token& one : tokens_) greatest = std::max(greatest, one.logit);
    for (Token& one : tokens_) total += one.p = std::exp((one.logit - greatest) / temperature);
    for (Token& one : tokens_) one.p /= total;
  }

  void cut_after(double share) {
    double sum = 0;
    std::size_t kept = 0;
    while (kept < tokens_.size() && (kept == 0 || sum < share)) sum += tokens_[kept++].p;
    tokens_.resize(kept);
  }

  void cut_top_k() {
    if (params_.top_k == 0 || params_.top_k >= n_vocab_) return;
    likeliest_first();
    tokens_.resize(std::min(tokens_.size(), static_cast<std::size_t>(params_.top_k)));
  }

  void cut_typical() {
    if (params_.typical_p == 1) return;
    softmax(1);
    double entropy = 0;
    for (const Token& one : tokens_) entropy -= one.p > 0 ? one.p * std::log(one.p) : 0;
    std::stable_sort(tokens_.begin(), tokens_.end(), [entropy](const Token& a, const Token& b) {
      return std::pair(std::abs(-std::log(a.p) - entropy), a.id) < std::pair(std::abs(-std::log(b.p) - entropy), b.id);
    });
    cut_after(params_.typical_p);
  }

  void cut_top_p() {
    if (params_.top_p == 1) return;
    likeliest_first();
    softmax(1);
    cut_after(params_.top_p);
  }

  void cut_min_p() {
    if (params_.min_p == 0) return;
    softmax(1);
    double greatest = 0;
    for (const Token& one : tokens_) greatest = std::max(greatest, one.p);
    std::erase_if(tokens_, [&](const Token& one) { return one.p < params_.min_p * greatest; });
  }

  int draw() {
    softmax(params_.temperature);
    const double high = step() >> 5, low = step() >> 6;
    const double u = (high * 67108864 + low) / 9007199254740992;
    double sum = 0;
    for (const Token& one : tokens_)
      if ((sum += one.p) > u) return one.id;
    return tokens_.back().id;
  }

  std::uint32_t step() {
    const std::uint64_t old = state_;
    state_ = static_cast<std::uint64_t>(static_cast<unsigned __int128>(old) * 6364136223846793005u + 1);
    const std::uint32_t word = static_cast<std::uint32_t>((old ^ (old >> 18)) >> 27);
    const int turn = static_cast<int>(old >> 59);
    return turn == 0 ? word : word >> turn | word << (32 - turn);
  }

  int n_vocab_;
  SamplingParams params_;
  std::deque<int> seen_;
  std::vector<Token> tokens_;
  std::uint64_t state_ = 0;
};

SamplingParams random_params(Random& random, int n_vocab) {
  const auto sometimes = [&](double off, double low, double high) {
    return static_cast<float>(random.below(3) == 0 ? off : random.uniform(low, high));
  };
  SamplingParams params;
  params.temperature = sometimes(0.0, 0.1, 3.0);
  params.top_k = static_cast<int>(random.below(2) == 0 ? 0 : random.below(static_cast<std::size_t>(n_vocab) + 5));
  params.top_p = sometimes(1.0, 0.1, 1.0);
  params.min_p = sometimes(0.0, 0.0, 0.5);
  params.repetition_penalty = sometimes(1.0, 0.5, 2.0);
  params.presence_penalty = sometimes(0.0, -1.0, 2.0);
  params.frequency_penalty = sometimes(0.0, -0.5, 1.0);
  params.penalty_window = static_cast<int>(random.below(80));
  for (int token = 0; token < std::min(n_vocab - 1, 5); ++token)
    params.logit_bias.emplace_back(token, token == 0 ? -INFINITY : static_cast<float>(random.uniform(-3, 3)));
  params.seed = random.bits();
  return params;
}

void check_same_picks(int n_vocab, const SamplingParams& params, Random& random, double step) {
  Sampler sampler(n_vocab, params);
  SlowSampler slow(n_vocab, params);
  for (int i = 0; i < 20; ++i) {
    std::vector<float> logits = random.normals(static_cast<std::size_t>(n_vocab), 3.0);
    if (step > 0)
      for (float& logit : logits) logit = static_cast<float>(std::round(logit / step) * step);
    for (std::size_t id = 0; id + 1 < logits.size(); ++id)
      if (random.below(20) == 0) logits[id] = -INFINITY;
    const int token = sampler.pick(logits.data());
    CHECK_EQUAL(token, slow.pick(logits));
    sampler.accept(token);
    slow.accept(token);
  }
}

}  // namespace

TEST(sampling_chain, picks_what_the_slow_one_picks) {
  Random random(11);
  for (const int n_vocab : {1, 2, 3, 31, 32, 33, 100, 257, 1000})
    for (int i = 0; i < 40; ++i) check_same_picks(n_vocab, random_params(random, n_vocab), random, 0);
}

// Logits on a coarse grid: most of them tie, and only the rule "lowest id first" decides who stays.
TEST(sampling_chain, ties_are_resolved_alike) {
  Random random(12);
  for (const int n_vocab : {5, 33, 257, 1000})
    for (int i = 0; i < 40; ++i) check_same_picks(n_vocab, random_params(random, n_vocab), random, 0.5);
}

// Distances to the entropy that tie would be rounded apart by the logarithms of the slow one, so typical has no coarse grid.
TEST(sampling_chain, typical_too) {
  Random random(13);
  for (const int n_vocab : {2, 33, 300, 1000}) {
    for (int i = 0; i < 40; ++i) {
      SamplingParams params = random_params(random, n_vocab);
      params.typical_p = static_cast<float>(random.uniform(0.05, 0.99));
      check_same_picks(n_vocab, params, random, 0);
    }
  }
}

TEST(sampling_chain, a_large_vocabulary_of_odd_size) {
  Random random(14);
  for (int i = 0; i < 4; ++i) check_same_picks(32001, random_params(random, 32001), random, i % 2 ? 0.25 : 0);
}
