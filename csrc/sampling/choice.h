// The work in hand of one pick: first the logits of the whole vocabulary, then a short list of candidates with weights.
// Knows no sampler. Allocates when made and never again.
//
// Every order here is total (ties go by id), so the result does not hang on how a standard library selects or sorts.
// Weights are sums and products of doubles in that order; compile with -ffp-contract=off.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "sampling/exponential.h"
#include "sampling/limits.h"

namespace pyinfer {

struct Candidate {
  float logit;
  int id;
  double weight;  // exp(logit - the maximum), once weighed: the probability but for a common factor
};

// The likeliest first.
inline bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

class Choice {
 public:
  // `most` is how many candidates a pick may ever keep.
  Choice(int n_vocab, std::size_t most)
      : own_(static_cast<std::size_t>(n_vocab)), room_(std::min(own_.size(), std::max<std::size_t>(2 * most, 256))) {
    candidates.reserve(room_);
  }

  // Starts a pick. `logits` (n_vocab) must live until it ends; they are never written.
  void begin(const float* logits) {
    logits_ = logits;
    weighed_ = false;
    candidates.clear();
  }

  // The logits (n_vocab) as a copy that a sampler may change; copied when the first one asks.
  float* writable_logits() {
    if (logits_ != own_.data()) std::copy_n(logits_, own_.size(), own_.data());
    logits_ = own_.data();
    return own_.data();
  }

  // Makes the `k` likeliest tokens the candidates, in that order; all tokens in the order of their ids when k >= n_vocab.
  // Tokens with a logit of -inf are left out. Throws when none is left or a logit is NaN or +inf.
  void gather(std::size_t k) {
    float threshold = -std::numeric_limits<float>::infinity();
    for (std::size_t start = 0; start < own_.size(); start += scan_block) {
      const std::size_t end = std::min(start + scan_block, own_.size());
      if (end - start == scan_block && !any_above(logits_ + start, threshold)) continue;
      for (std::size_t id = start; id < end; ++id) {
        if (logits_[id] <= threshold) continue;
        add(id);
        if (candidates.size() == room_) threshold = keep_likeliest(k, threshold);
      }
    }
    if (candidates.empty()) throw Error(ErrorKind::request, "logits: expected one that is not -inf, found none");
    keep_likeliest(k, threshold);
    if (k < own_.size()) std::sort(candidates.begin(), candidates.end(), likelier);
  }

  // Gives every candidate its weight at a temperature > 0.
  void weigh(double temperature) {
    const double greatest = std::min_element(candidates.begin(), candidates.end(), likelier)->logit;
    for (Candidate& one : candidates) one.weight = exponential((one.logit - greatest) / temperature);
    weighed_ = true;
  }

  // Weighs at temperature 1 unless it is done. Filters that drop candidates need not weigh again: only ratios matter.
  void weigh_once() {
    if (!weighed_) weigh(1.0);
  }

  double total_weight() const {
    double total = 0.0;
    for (const Candidate& one : candidates) total += one.weight;
    return total;
  }

  // Keeps the fewest candidates, first ones first in the order of `before`, that hold the share `p` of the weight; at
  // least one. Sorts no further than it must.
  template <class Before>
  void keep_share(double p, Before before) {
    const double wanted = p * total_weight();
    std::size_t kept = 0, sorted = 0;
    double weight = 0.0;
    do {
      if (kept == sorted) sorted = sort_more(sorted, before);
      weight += candidates[kept++].weight;
    } while (kept < candidates.size() && weight < wanted);
    candidates.resize(kept);
  }

  std::vector<Candidate> candidates;

 private:
  static constexpr std::size_t scan_block = 32;

  // Whether a logit of a block exceeds the threshold or is NaN: a loop without branches, for the compiler to vectorise.
  static bool any_above(const float* block, float threshold) {
    int any = 0;
    for (std::size_t i = 0; i < scan_block; ++i) any |= !(block[i] <= threshold);
    return any != 0;
  }

  void add(std::size_t id) {
    const float logit = logits_[id];
    if (!(logit <= std::numeric_limits<float>::max()))
      refuse("logit of token " + std::to_string(id), logit, "a finite number or -inf");
    candidates.push_back({logit, static_cast<int>(id), 0.0});
  }

  // Drops all but the `k` likeliest; returns the logit that a token with a higher id has to exceed to be among them.
  float keep_likeliest(std::size_t k, float threshold) {
    if (candidates.size() <= k) return threshold;
    const auto last = candidates.begin() + static_cast<std::ptrdiff_t>(k) - 1;
    std::nth_element(candidates.begin(), last, candidates.end(), likelier);
    candidates.resize(k);
    return candidates.back().logit;
  }

  // Puts the next candidates behind the first `sorted` in order, four times as many as there are; returns how many are.
  template <class Before>
  std::size_t sort_more(std::size_t sorted, Before before) {
    const std::size_t next = std::min(candidates.size(), std::max<std::size_t>(64, 4 * sorted));
    const auto first = candidates.begin() + static_cast<std::ptrdiff_t>(sorted);
    const auto middle = candidates.begin() + static_cast<std::ptrdiff_t>(next);
    if (middle != candidates.end()) std::nth_element(first, middle, candidates.end(), before);
    std::sort(first, middle, before);
    return next;
  }

  std::vector<float> own_;         // (n_vocab) the changed logits
  std::size_t room_;               // candidates held at most while gathering
  const float* logits_ = nullptr;  // (n_vocab) the caller's, or own_
  bool weighed_ = false;
};

}  // namespace pyinfer
