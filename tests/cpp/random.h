// Seeded data for tests: the same on every platform, and apart from the generator of csrc/sampling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // 0 ... n-1
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(bits() % n); }

  double uniform(double low, double high) { return low + (high - low) * (static_cast<double>(bits() >> 11) * 0x1p-53); }

  // Mean 0, variance 1, within ±6: near enough to normal for weights and activations.
  double normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += uniform(0, 1);
    return sum;
  }

  std::vector<float> normals(std::size_t n, double scale = 1.0) {
    std::vector<float> values(n);
    for (float& value : values) value = static_cast<float>(normal() * scale);
    return values;
  }

 private:
  std::uint64_t state_;
};
