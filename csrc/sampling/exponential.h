// exp(x) for x <= 0 from additions and multiplications alone, so that it has the same bits on every platform: the exp of
// the C libraries differs in the last place between systems, and a draw can hang on that place.
//
// x = k ln 2 + r with |r| <= ln(2)/2, exp(x) = 2^k exp(r); the Taylor series of exp(r) to r^13 is off by less than 1e-17.
// Needs -ffp-contract=off, like the whole core: a fused multiply-add would round once where this text rounds twice.
#pragma once

#include <bit>
#include <cstdint>

namespace pyinfer {

inline double exponential(double x) {
  constexpr double log2_e = 1.4426950408889634;
  constexpr double ln2_high = 6.93147180369123816490e-01;  // the upper 32 bits of ln 2: k * ln2_high is exact
  constexpr double ln2_low = 1.90821492927058770002e-10;
  constexpr double inverse_factorials[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
  if (!(x >= -708.0))
    return 0.0;  // below, 2^k is subnormal: such a weight is nothing next to the weight 1 of the maximum
  const auto k = static_cast<std::int64_t>(x * log2_e - 0.5);
  const double r = (x - static_cast<double>(k) * ln2_high) - static_cast<double>(k) * ln2_low;
  double sum = 0.0;
  for (const double factor : inverse_factorials) sum = sum * r + factor;
  return sum * std::bit_cast<double>(static_cast<std::uint64_t>(k + 1023) << 52);
}

}  // namespace pyinfer
