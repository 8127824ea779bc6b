// Each sampler by itself, on distributions small enough to work out by hand; limits and errors.
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "check.h"
#include "random.h"
#include "sampling/exponential.h"
#include "sampling/rng.h"
#include "sampling/sampler.h"

using namespace pyinfer;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

// Everything off: draws from the softmax of the logits.
SamplingParams plain() {
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_k = 0;
  params.top_p = 1.0f;
  params.min_p = 0.0f;
  return params;
}

SamplingParams greedy() {
  SamplingParams params;
  params.temperature = 0.0f;
  return params;
}

std::vector<float> logs(std::initializer_list<double> probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

// The share of each token in many picks.
std::map<int, double> shares(const std::vector<float>& logits, const SamplingParams& params, int n_picks = 20000) {
  Sampler sampler(static_cast<int>(logits.size()), params);
  std::map<int, double> found;
  for (int i = 0; i < n_picks; ++i) found[sampler.pick(logits.data())] += 1;
  for (auto& [token, share] : found) share /= n_picks;
  return found;
}

// Five standard deviations of a share of 20000 picks.
double tolerance(double p) { return 5 * std::sqrt(p * (1 - p) / 20000); }

void check_shares(const std::vector<float>& logits, const SamplingParams& params,
                  const std::map<int, double>& expected) {
  std::map<int, double> found = shares(logits, params);
  CHECK_EQUAL(found.size(), expected.size());
  for (const auto& [token, share] : expected) CHECK_NEAR(found[token], share, tolerance(share));
}

int pick_after(const SamplingParams& params, const std::vector<float>& logits, const std::vector<int>& seen) {
  Sampler sampler(static_cast<int>(logits.size()), params);
  for (const int token : seen) sampler.accept(token);
  return sampler.pick(logits.data());
}

void check_refused(void (*change)(SamplingParams&), const std::string& part) {
  SamplingParams params;
  change(params);
  CHECK_ERROR(validate(params, 100), request, part);
  CHECK_ERROR(Sampler(100, params), request, part);
}

}  // namespace

// The first numbers of the published demonstration program of PCG32 (seed 42, stream 54).
TEST(sampling, rng_is_pcg32) {
  Rng rng(42, 54);
  for (const std::uint32_t expected : {0xa15c02b7u, 0x7b47f409u, 0xba1d3330u, 0x83d2f293u, 0xbfa4784bu, 0xcbed606eu})
    CHECK_EQUAL(rng.next(), expected);
}

TEST(sampling, uniform_fills_the_unit_interval) {
  Rng rng(7);
  double sum = 0, least = 1, greatest = 0;
  for (int i = 0; i < 100000; ++i) {
    const double u = rng.uniform();
    sum += u;
    least = std::min(least, u);
    greatest = std::max(greatest, u);
  }
  CHECK(least >= 0 && least < 1e-3);
  CHECK(greatest < 1 && greatest > 1 - 1e-3);
  CHECK_NEAR(sum / 100000, 0.5, 5 * std::sqrt(1.0 / 12 / 100000));
}

TEST(sampling, exponential_is_within_one_ulp_or_two) {
  Random random(1);
  CHECK_EQUAL(exponential(0.0), 1.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = random.uniform(-1, 0) * std::pow(10.0, random.uniform(-6, 2.85));
    CHECK_NEAR(exponential(x), std::exp(x), 2 * 0x1p-52 * std::exp(x));
  }
  CHECK_EQUAL(exponential(-709.0), 0.0);
  CHECK_EQUAL(exponential(-1e300), 0.0);
  CHECK_EQUAL(exponential(-std::numeric_limits<double>::infinity()), 0.0);
}

TEST(sampling, greedy_picks_the_greatest) {
  for (const int n : {1, 2, 31, 32, 33, 255, 256, 257, 1000, 32001}) {
    Random random(static_cast<std::uint64_t>(n));
    std::vector<float> logits = random.normals(static_cast<std::size_t>(n));
    Sampler sampler(n, greedy());
    for (int i = 0; i < 10; ++i) {
      const int place = static_cast<int>(random.below(static_cast<std::size_t>(n)));
      logits[static_cast<std::size_t>(place)] = 10.0f + static_cast<float>(i);
      CHECK_EQUAL(sampler.pick(logits.data()), place);
    }
  }
}

TEST(sampling, greedy_ties_go_to_the_lowest_id) {
  for (const int n : {1, 5, 64, 100, 1000, 5000}) {
    const std::vector<float> logits(static_cast<std::size_t>(n), -3.5f);
    Sampler sampler(n, greedy());
    CHECK_EQUAL(sampler.pick(logits.data()), 0);
  }
  std::vector<float> logits(3000, 0.0f);
  logits[2999] = logits[1234] = logits[1777] = 1.0f;
  CHECK_EQUAL(Sampler(3000, greedy()).pick(logits.data()), 1234);
}

TEST(sampling, greedy_of_rising_and_falling_logits) {
  std::vector<float> rising(4099), falling(4099);
  for (std::size_t i = 0; i < rising.size(); ++i) {
    rising[i] = static_cast<float>(i);
    falling[i] = -static_cast<float>(i);
  }
  CHECK_EQUAL(Sampler(4099, greedy()).pick(rising.data()), 4098);
  CHECK_EQUAL(Sampler(4099, greedy()).pick(falling.data()), 0);
}

TEST(sampling, pick_leaves_the_logits_as_they_are) {
  SamplingParams params;
  params.repetition_penalty = 1.5f;
  params.logit_bias = {{3, -inf}};
  const std::vector<float> logits = Random(3).normals(500), before = logits;
  Sampler sampler(500, params);
  sampler.accept(7);
  sampler.pick(logits.data());
  CHECK(logits == before);
}

TEST(sampling, softmax_at_temperature_one) {
  check_shares(logs({0.5, 0.3, 0.15, 0.05}), plain(), {{0, 0.5}, {1, 0.3}, {2, 0.15}, {3, 0.05}});
}

TEST(sampling, temperature_raises_probabilities_to_a_power) {
  SamplingParams params = plain();
  params.temperature = 0.5f;  // squares: 0.36, 0.09, 0.01 of 0.46
  check_shares(logs({0.6, 0.3, 0.1}), params, {{0, 0.36 / 0.46}, {1, 0.09 / 0.46}, {2, 0.01 / 0.46}});
}

TEST(sampling, tiny_temperature_is_greedy) {
  SamplingParams params = plain();
  params.temperature = std::numeric_limits<float>::denorm_min();
  check_shares({1.0f, 3e38f, -3e38f, 2.9e38f}, params, {{1, 1.0}});
}

TEST(sampling, top_k) {
  SamplingParams params = plain();
  params.top_k = 2;
  check_shares(logs({0.1, 0.4, 0.2, 0.3}), params, {{1, 4.0 / 7}, {3, 3.0 / 7}});
  params.top_k = 3;  // four tie for two places
  check_shares({1.0f, 2.0f, 1.0f, 1.0f, 1.0f}, params,
               {{1, std::exp(1) / (std::exp(1) + 2)}, {0, 1 / (std::exp(1) + 2)}, {2, 1 / (std::exp(1) + 2)}});
  params.top_k = 99;
  check_shares(logs({0.7, 0.3}), params, {{0, 0.7}, {1, 0.3}});
}

TEST(sampling, top_p) {
  SamplingParams params = plain();
  params.top_p = 0.7f;  // 0.5 is too little, 0.5 + 0.3 is enough
  check_shares(logs({0.3, 0.05, 0.5, 0.15}), params, {{2, 0.625}, {0, 0.375}});
  params.top_p = 0.0f;
  check_shares(logs({0.3, 0.05, 0.5, 0.15}), params, {{2, 1.0}});
}

TEST(sampling, min_p) {
  SamplingParams params = plain();
  params.min_p = 0.25f;  // of 0.5
  check_shares(logs({0.3, 0.05, 0.5, 0.15}), params, {{2, 0.5 / 0.95}, {0, 0.3 / 0.95}, {3, 0.15 / 0.95}});
  params.min_p = 1.0f;
  check_shares(logs({0.3, 0.05, 0.5, 0.15}), params, {{2, 1.0}});
}

// H = 1.1 nats; -log p is 0.69 for 0.5, 1.2 for 0.3, 1.9 for 0.15, 3 for 0.05: 0.3 is the most typical, then 0.5.
TEST(sampling, typical) {
  SamplingParams params = plain();
  params.typical_p = 0.25f;
  check_shares(logs({0.15, 0.5, 0.05, 0.3}), params, {{3, 1.0}});
  params.typical_p = 0.6f;
  check_shares(logs({0.15, 0.5, 0.05, 0.3}), params, {{1, 0.625}, {3, 0.375}});
  params.typical_p = 0.0f;
  check_shares(logs({0.15, 0.5, 0.05, 0.3}), params, {{3, 1.0}});
}

TEST(sampling, logit_bias) {
  SamplingParams params = plain();
  params.logit_bias = {{0, -inf}, {2, static_cast<float>(std::log(2.0))}};
  check_shares(logs({0.5, 0.3, 0.2}), params, {{1, 3.0 / 7}, {2, 4.0 / 7}});
}

TEST(sampling, repetition_penalty) {
  SamplingParams params = greedy();
  params.repetition_penalty = 2.0f;
  CHECK_EQUAL(pick_after(params, {4.0f, 3.0f}, {}), 0);
  CHECK_EQUAL(pick_after(params, {4.0f, 3.0f}, {0}), 1);     // 2 against 3
  CHECK_EQUAL(pick_after(params, {4.0f, 1.5f}, {0, 0}), 0);  // 2 against 1.5: once, however often it was seen
  CHECK_EQUAL(pick_after(params, {-4.0f, -7.0f}, {0}), 1);   // -8 against -7
  CHECK_EQUAL(pick_after(params, {-4.0f, -7.9f, -8.1f}, {1, 0, 1}), 0);
}

TEST(sampling, penalties_keep_finite_logits_finite) {
  SamplingParams params = greedy();
  params.repetition_penalty = 0.5f;
  CHECK_EQUAL(pick_after(params, {3e38f, 1.0f, -3e38f}, {0}), 0);
  params.repetition_penalty = 100.0f;
  CHECK_EQUAL(pick_after(params, {-3e38f, -3e38f}, {0, 1}), 0);
}

TEST(sampling, presence_and_frequency_penalties) {
  SamplingParams params = greedy();
  params.presence_penalty = 1.5f;
  CHECK_EQUAL(pick_after(params, {4.0f, 3.0f}, {0, 0, 0}), 1);
  CHECK_EQUAL(pick_after(params, {4.0f, 2.0f}, {0, 0, 0}), 0);
  params.presence_penalty = 0.0f;
  params.frequency_penalty = 0.75f;
  CHECK_EQUAL(pick_after(params, {4.0f, 2.0f}, {0, 0}), 0);     // 2.5 against 2
  CHECK_EQUAL(pick_after(params, {4.0f, 2.0f}, {0, 0, 0}), 1);  // 1.75 against 2
  params.frequency_penalty = -0.75f;
  CHECK_EQUAL(pick_after(params, {4.0f, 2.0f}, {1, 1, 1}), 1);
}

TEST(sampling, penalty_window_forgets) {
  SamplingParams params = greedy();
  params.presence_penalty = 5.0f;
  params.penalty_window = 3;
  const std::vector<float> logits = {4.0f, 3.0f, -9.0f};
  CHECK_EQUAL(pick_after(params, logits, {0, 2, 2}), 1);
  CHECK_EQUAL(pick_after(params, logits, {0, 2, 2, 2}), 0);
  CHECK_EQUAL(pick_after(params, logits, {0, 2, 0, 2, 2}), 1);
  CHECK_EQUAL(pick_after(params, logits, {0, 2, 0, 2, 2, 2}), 0);
  params.penalty_window = 0;
  CHECK_EQUAL(pick_after(params, logits, {0}), 0);
}

TEST(sampling, forbidden_tokens_stay_forbidden) {
  SamplingParams params = plain();
  params.presence_penalty = -100.0f;
  params.logit_bias = {{0, -inf}};
  CHECK_EQUAL(pick_after(params, {9.0f, -9.0f}, {0}), 1);
}

TEST(sampling, same_seed_same_tokens_other_seed_others) {
  const std::vector<float> logits = Random(5).normals(1000);
  std::set<std::vector<int>> different;
  for (const std::uint64_t seed : {0ull, 1ull, 0xffffffffffffffffull}) {
    SamplingParams params;
    params.seed = seed;
    Sampler one(1000, params), other(1000, params);
    std::vector<int> tokens;
    for (int i = 0; i < 50; ++i) {
      tokens.push_back(one.pick(logits.data()));
      CHECK_EQUAL(other.pick(logits.data()), tokens.back());
    }
    different.insert(tokens);
  }
  CHECK_EQUAL(different.size(), 3u);
}

// The n-th pick has the n-th number of the seed, whatever was left to choose from before.
TEST(sampling, a_certain_pick_takes_a_number_too) {
  const std::vector<float> flat(100, 0.0f);
  std::vector<float> certain(100, -inf);
  certain[42] = 0.0f;
  Sampler one(100, plain()), other(100, plain());
  one.pick(flat.data());
  CHECK_EQUAL(other.pick(certain.data()), 42);
  for (int i = 0; i < 20; ++i) CHECK_EQUAL(one.pick(flat.data()), other.pick(flat.data()));
}

TEST(sampling, logits_that_are_no_numbers_are_errors) {
  for (const int n : {1, 7, 32, 64, 1000}) {
    for (const SamplingParams& params : {greedy(), plain(), SamplingParams()}) {
      Sampler sampler(n, params);
      std::vector<float> logits(static_cast<std::size_t>(n), -inf);
      CHECK_ERROR(sampler.pick(logits.data()), request, "found none");
      for (const int place : {0, n / 2, n - 1}) {
        logits.assign(static_cast<std::size_t>(n), 1.0f);
        logits[static_cast<std::size_t>(place)] = nan_value;
        CHECK_ERROR(sampler.pick(logits.data()), request, "logit of token " + std::to_string(place));
        logits[static_cast<std::size_t>(place)] = inf;
        CHECK_ERROR(sampler.pick(logits.data()), request, "found inf");
        logits[static_cast<std::size_t>(place)] = 2.0f;
        CHECK(sampler.pick(logits.data()) < n);  // usable after the error
      }
    }
  }
}

TEST(sampling, parameters_outside_their_limits_are_refused) {
  check_refused([](SamplingParams& p) { p.temperature = nan_value; }, "temperature: expected 0 to 100, found nan");
  check_refused([](SamplingParams& p) { p.temperature = -0.1f; }, "temperature: expected 0 to 100, found -0.1");
  check_refused([](SamplingParams& p) { p.temperature = inf; }, "temperature: expected 0 to 100, found inf");
  check_refused([](SamplingParams& p) { p.top_k = -1; }, "top_k: expected 0 to 2147483647, found -1");
  check_refused([](SamplingParams& p) { p.top_p = 1.01f; }, "top_p: expected 0 to 1, found 1.01");
  check_refused([](SamplingParams& p) { p.top_p = nan_value; }, "top_p: expected 0 to 1, found nan");
  check_refused([](SamplingParams& p) { p.min_p = -1; }, "min_p: expected 0 to 1, found -1");
  check_refused([](SamplingParams& p) { p.min_p = nan_value; }, "min_p: expected 0 to 1, found nan");
  check_refused([](SamplingParams& p) { p.typical_p = 2; }, "typical_p: expected 0 to 1, found 2");
  check_refused([](SamplingParams& p) { p.typical_p = nan_value; }, "typical_p: expected 0 to 1, found nan");
  check_refused([](SamplingParams& p) { p.repetition_penalty = 0; },
                "repetition_penalty: expected 0.01 to 100, found 0");
  check_refused([](SamplingParams& p) { p.repetition_penalty = nan_value; }, "repetition_penalty: expected");
  check_refused([](SamplingParams& p) { p.presence_penalty = 101; },
                "presence_penalty: expected -100 to 100, found 101");
  check_refused([](SamplingParams& p) { p.presence_penalty = nan_value; }, "presence_penalty: expected");
  check_refused([](SamplingParams& p) { p.frequency_penalty = -inf; },
                "frequency_penalty: expected -100 to 100, found -inf");
  check_refused([](SamplingParams& p) { p.frequency_penalty = nan_value; }, "frequency_penalty: expected");
  check_refused([](SamplingParams& p) { p.penalty_window = -1; }, "penalty_window: expected 0 to 1048576, found -1");
  check_refused([](SamplingParams& p) { p.penalty_window = 1048577; }, "penalty_window: expected");
  check_refused([](SamplingParams& p) { p.logit_bias = {{100, 0.0f}}; },
                "token of logit_bias: expected 0 to 99, found 100");
  check_refused([](SamplingParams& p) { p.logit_bias = {{-1, 0.0f}}; },
                "token of logit_bias: expected 0 to 99, found -1");
  check_refused([](SamplingParams& p) { p.logit_bias = {{5, nan_value}}; }, "logit_bias[5]: expected");
  check_refused([](SamplingParams& p) { p.logit_bias = {{5, inf}}; }, "logit_bias[5]: expected");
  check_refused([](SamplingParams& p) { p.logit_bias = {{5, 1.0f}, {6, 1.0f}, {5, 2.0f}}; }, "token 5 twice");
}

TEST(sampling, vocabulary_and_accepted_tokens_have_limits) {
  CHECK_ERROR(validate(SamplingParams(), 0), request, "n_vocab: expected 1 to 4194304, found 0");
  CHECK_ERROR(validate(SamplingParams(), -5), request, "n_vocab");
  Sampler sampler(10, SamplingParams());
  CHECK_ERROR(sampler.accept(10), request, "accepted token: expected 0 to 9, found 10");
  CHECK_ERROR(sampler.accept(-1), request, "accepted token");
}

TEST(sampling, parameters_at_their_limits_are_accepted) {
  SamplingParams params;
  for (const float temperature : {0.0f, 100.0f}) {
    for (const float share : {0.0f, 1.0f}) {
      params.temperature = temperature;
      params.top_p = params.min_p = params.typical_p = share;
      params.top_k = std::numeric_limits<int>::max();
      params.repetition_penalty = 100;
      params.penalty_window = 1048576;
      params.logit_bias = {{0, -1000.0f}, {49, 1000.0f}};
      const std::vector<float> logits = Random(9).normals(50);
      CHECK_EQUAL(Sampler(50, params).pick(logits.data()), 49);
    }
  }
}
