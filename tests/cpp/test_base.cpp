// Halves, checksums and buffers: csrc/base without threads.
#include <cstring>

#include "base/angle.h"
#include "base/anonymous_memory.h"
#include "base/buffer.h"
#include "base/cpu.h"
#include "base/crc32.h"
#include "base/half.h"
#include "base/process.h"
#include "check.h"
#include "random.h"
#include "reference.h"

using namespace pyinfer;

namespace {

std::uint32_t slow_crc32(const std::vector<std::uint8_t>& bytes) {
  std::uint32_t crc = 0xffffffffu;
  for (const std::uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return ~crc;
}

bool same_or_both_nan(float a, double b) { return (std::isnan(a) && std::isnan(b)) || static_cast<double>(a) == b; }

}  // namespace

TEST(base, every_half_has_its_value_and_comes_back) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(half);
    CHECK(same_or_both_nan(value, reference::half_value(half)));
    if (!std::isnan(value)) CHECK_EQUAL(float_to_half(value), half);
  }
}

TEST(base, cosines_and_sines) {
  Random random(2);
  for (const double magnitude : {0.0, 1e-30, 1e-9, 0.7, 0.8, 3.0, 100.0, 1e4, 1e6, 0x1p27}) {
    for (int i = 0; i < 2000; ++i) {
      const double x = magnitude * random.uniform(-1, 1);
      const auto [cosine, sine] = cosine_and_sine(x);
      CHECK_NEAR(cosine, std::cos(x), 4e-16);
      CHECK_NEAR(sine, std::sin(x), 4e-16 * std::min(1.0, std::abs(x)));
    }
  }
}

TEST(base, cosines_and_sines_of_what_is_out_of_reach_are_nan) {
  for (const double x : {0x1p27, -0x1p27, 1e30, -1e300, static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
    const auto [cosine, sine] = cosine_and_sine(x);
    CHECK(std::isnan(cosine) && std::isnan(sine));
  }
}

TEST(base, floats_round_to_the_nearest_half) {
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    const float value = static_cast<float>(random.normal() * std::pow(2.0, random.uniform(-28, 18)));
    CHECK_EQUAL(float_to_half(value), reference::nearest_half(value));
  }
}

// Half-way between two halves, and one float to either side.
TEST(base, ties_round_to_the_even_half) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const double low = reference::half_value(static_cast<std::uint16_t>(bits));
    const double high = reference::half_value(static_cast<std::uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    CHECK_EQUAL(float_to_half(middle), bits + (bits & 1));
    CHECK_EQUAL(float_to_half(std::nextafter(middle, 0.0f)), bits);
    CHECK_EQUAL(float_to_half(std::nextafter(middle, 1e9f)), bits + 1);
  }
  CHECK_EQUAL(float_to_half(65519.996f), 0x7bff);
  CHECK_EQUAL(float_to_half(65520.0f), 0x7c00);
  CHECK_EQUAL(float_to_half(-INFINITY), 0xfc00);
  CHECK(std::isnan(half_to_float(float_to_half(NAN))));
}

TEST(base, bfloat16_is_the_upper_half_of_a_float) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = bf16_to_float(half);
    CHECK(same_or_both_nan(value, reference::bf16_value(half)));
    if (!std::isnan(value)) CHECK_EQUAL(float_to_bf16(value), half);
  }
  CHECK(std::isnan(bf16_to_float(float_to_bf16(bits_to_float(0x7f800001u)))));
}

TEST(base, floats_round_to_the_nearest_bfloat16) {
  Random random(2);
  for (int i = 0; i < 100000; ++i) {
    const float value = static_cast<float>(random.normal());
    const std::uint16_t found = float_to_bf16(value);
    const double error = std::abs(bf16_to_float(found) - value);
    for (const int step : {-1, 1}) {
      const double other = std::abs(reference::bf16_value(static_cast<std::uint16_t>(found + step)) - value);
      CHECK(error < other || (error == other && found % 2 == 0));
    }
  }
}

TEST(base, crc32_of_the_check_string) { CHECK_EQUAL(crc32(0, "123456789", 9), 0xCBF43926u); }

TEST(base, crc32_of_odd_sizes_and_in_pieces) {
  Random random(3);
  for (std::size_t size = 0; size < 100; ++size) {
    std::vector<std::uint8_t> bytes(size + 3);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.bits());
    const std::size_t cut = random.below(size + 1);
    const std::vector<std::uint8_t> part(bytes.begin() + 3, bytes.end());  // unaligned
    CHECK_EQUAL(crc32(0, bytes.data() + 3, size), slow_crc32(part));
    CHECK_EQUAL(crc32(crc32(0, part.data(), cut), part.data() + cut, size - cut), slow_crc32(part));
  }
}

TEST(base, buffers_are_aligned_and_zeroed) {
  for (const std::size_t size : {0u, 1u, 63u, 64u, 1000u}) {
    Buffer<std::uint16_t> buffer(size);
    CHECK_EQUAL(buffer.size(), size);
    CHECK_EQUAL(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0u);
    for (std::size_t i = 0; i < size; ++i) CHECK_EQUAL(buffer[i], 0);
  }
}

TEST(base, processors) {
  CHECK(cpu_runs_scalar());
  CHECK(available_processors() >= 1);
  CHECK(default_threads() >= 1);
  CHECK(default_threads() <= available_processors());
}

TEST(base, peak_memory_grows_with_what_is_touched) {
  const std::uint64_t before = peak_memory();
  constexpr std::size_t bytes = std::size_t{256} << 20;
  CHECK(before > 0 && before < bytes);
  const AnonymousMemory memory(bytes);
  std::memset(memory.data(), 1, bytes);
  CHECK(peak_memory() >= bytes);
}

TEST(base, available_memory_is_told_where_python_does_not_ask_for_it) {
#if defined(__linux__)
  CHECK(!available_memory().has_value());
#else
  CHECK(available_memory().value_or(0) >= std::uint64_t{1} << 20);
#endif
}
