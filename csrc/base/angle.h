// Cosine and sine from additions and multiplications alone, so that rotary embedding has the same bits on every platform: those of the
// C libraries differ in the last place between systems.
//
// x = n π/2 + r with |r| ≤ π/4 + a little; the Taylor series to r^16 and r^17 are off by less than 1e-17, the results by a few 1e-16.
// π/2 is taken in parts, the first two of 26 bits, so that n times each is exact (Cody and Waite, 1980), for |x| < 2^27; beyond, and for
// what is not finite, both are NaN.
// Needs -ffp-contract=off, like the whole core.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace pyinfer {

constexpr double kAngleLimit = 0x1p27;

struct CosineSine {
  double cosine, sine;
};

inline CosineSine cosine_and_sine(double x) {
  constexpr double half_pi_high = 0x1.921fb5p+0, half_pi_middle = 0x1.110b46p-26, half_pi_low = 0x1.1a62633145c07p-54;
  constexpr double two_over_pi = 0.6366197723675814, nan = std::numeric_limits<double>::quiet_NaN();
  if (!(std::abs(x) < kAngleLimit)) return {nan, nan};
  const auto n = static_cast<std::int64_t>(x * two_over_pi + (x < 0 ? -0.5 : 0.5));
  const auto turns = static_cast<double>(n);
  const double r = ((x - turns * half_pi_high) - turns * half_pi_middle) - turns * half_pi_low, square = r * r;
  constexpr double steps[][2] = {{16 * 15, 16 * 17}, {14 * 13, 14 * 15}, {12 * 11, 12 * 13}, {10 * 9, 10 * 11},
                                 {8 * 7, 8 * 9},     {6 * 5, 6 * 7},     {4 * 3, 4 * 5},     {2 * 1, 2 * 3}};
  double cosine = 1, sine = 1;
  for (const auto& [of_cosine, of_sine] : steps) {
    cosine = 1 - cosine * (square / of_cosine);
    sine = 1 - sine * (square / of_sine);
  }
  sine *= r;
  switch (n & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace pyinfer
