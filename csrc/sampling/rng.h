// The generator behind the draw: PCG32 (XSH-RR, 64 bits of state, 32 of output; M. E. O'Neill, "PCG: A Family of Simple Fast
// Space-Efficient Statistically Good Algorithms for Random Number Generation", 2014, www.pcg-random.org), because it is
// eight lines of integer arithmetic that give the same numbers on every platform.
#pragma once

#include <cstdint>

namespace pyinfer {

class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) : state_(0), increment_((stream << 1) | 1) {
    next();
    state_ += seed;
    next();
  }

  // 32 random bits.
  std::uint32_t next() {
    const std::uint64_t old = state_;
    state_ = old * 6364136223846793005u + increment_;
    const auto mixed = static_cast<std::uint32_t>(((old >> 18) ^ old) >> 27);
    const auto turn = static_cast<std::uint32_t>(old >> 59);
    return (mixed >> turn) | (mixed << ((32 - turn) & 31));
  }

  // In [0, 1), all multiples of 2^-53 alike; takes two numbers, the first for the upper bits.
  double uniform() {
    const std::uint64_t high = next() >> 5;
    const std::uint64_t low = next() >> 6;
    return static_cast<double>((high << 26) | low) * 0x1p-53;
  }

 private:
  std::uint64_t state_;
  std::uint64_t increment_;
};

}  // namespace pyinfer
