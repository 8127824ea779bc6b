// Work on single rows: what int8 leaves of them, rms-norm, SwiGLU, GeGLU, soft caps, rotary embedding, storing keys and values.
#include <algorithm>

#include "check.h"
#include "every_isa.h"
#include "random.h"

using namespace pyinfer;

// To the bit, and no more than half a step of each block: what is added as int8 again has 16 bits.
TEST(rows, int8_remainder) {
  on_every_isa([](const Kernels& kernels) {
    Random random(18);
    for (const std::size_t n : {1, 31, 32, 33, 64, 172, 576}) {
      std::vector<float> x = random.normals(n, std::pow(10.0, random.uniform(-4, 4)));
      if (n == 64) std::fill_n(x.begin(), 32, 0.0f), x[3] = 1e-40f;
      std::vector<float> remainder(n + 1, untouched);
      kernels.int8_remainder(x.data(), n, remainder.data());
      const std::vector<reference::QuantizedBlock> blocks = reference::quantize_all(x, 1);
      const std::vector<float> expected = reference::remainder_of(x);
      for (std::size_t i = 0; i < n; ++i) {
        CHECK_EQUAL(remainder[i], expected[i]);
        if (n != 64) CHECK(std::abs(remainder[i]) <= 0.5001f * blocks[i / 32].scale);
      }
      CHECK_EQUAL(remainder[n], untouched);
    }
  });
}

TEST(rows, int8_remainder_passes_on_what_is_not_finite) {
  on_every_isa([](const Kernels& kernels) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> x(40, 1.0f), remainder(40);
      x[35] = bad;
      kernels.int8_remainder(x.data(), x.size(), remainder.data());
      CHECK(std::isfinite(remainder[0]));
      CHECK(!std::isfinite(remainder[35]));
    }
  });
}

// n squares, all positive, err by n u relative to their sum, half of it after the root; then a quotient, a root, two products.
TEST(rows, rms_norm) {
  on_every_isa([](const Kernels& kernels) {
    Random random(8);
    for (const std::size_t n : {1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 288, 576, 1000}) {
      const std::vector<float> x = random.normals(n, std::pow(10.0, random.uniform(-4, 4))), weight = random.normals(n);
      for (const float eps : {0.0f, 1e-5f}) {
        std::vector<float> out(n + 1, untouched);
        kernels.rms_norm(x.data(), weight.data(), eps, n, out.data());
        const std::vector<double> expected =
            reference::rms_norm({x.begin(), x.end()}, {weight.begin(), weight.end()}, eps);
        for (std::size_t i = 0; i < n; ++i)
          CHECK_NEAR(out[i], expected[i], (static_cast<double>(n) / 2 + 6) * u * std::abs(expected[i]));
        CHECK_EQUAL(out[n], untouched);
      }
    }
  });
}

// e^x within 2 ulp (4 u), then a sum, a quotient and a product. Below -88 the exponential stays at e^88.
TEST(rows, swiglu) {
  on_every_isa([](const Kernels& kernels) {
    Random random(9);
    for (const std::size_t n : {16, 48, 160, 1536}) {
      std::vector<float> gate = random.normals(n, std::pow(10.0, random.uniform(-3, 2)));
      const std::vector<float> up = random.normals(n);
      gate[0] = 0.0f, gate[1] = -0.0f, gate[2] = 88.5f, gate[3] = -88.5f, gate[4] = 1e30f, gate[5] = -1e30f,
      gate[6] = -87.3f;
      std::vector<float> out(n + 1, untouched);
      kernels.swiglu(gate.data(), up.data(), n, out.data());
      for (std::size_t i = 0; i < n; ++i) {
        const double expected = reference::silu(gate[i]) * up[i];
        CHECK_NEAR(out[i], expected,
                   8 * u * std::abs(expected) + std::abs(static_cast<double>(gate[i]) * up[i]) * std::exp(-87.99));
      }
      CHECK_EQUAL(out[n], untouched);
      std::vector<float> in_place = gate;
      kernels.swiglu(in_place.data(), up.data(), n, in_place.data());
      for (std::size_t i = 0; i < n; ++i) CHECK_EQUAL(in_place[i], out[i]);
    }
  });
}

// As SwiGLU, but that the exponent has six roundings of its own; and what the reference loses where 1 + tanh is near 0.
TEST(rows, geglu) {
  on_every_isa([](const Kernels& kernels) {
    Random random(16);
    for (const std::size_t n : {16, 48, 160, 1536}) {
      std::vector<float> gate = random.normals(n, std::pow(10.0, random.uniform(-3, 2)));
      const std::vector<float> up = random.normals(n);
      gate[0] = 0.0f, gate[1] = -0.0f, gate[2] = 9.0f, gate[3] = -9.0f, gate[4] = 1e30f, gate[5] = -1e30f;
      std::vector<float> out(n + 1, untouched);
      kernels.geglu(gate.data(), up.data(), n, out.data());
      for (std::size_t i = 0; i < n; ++i) {
        const double g = gate[i], expected = reference::gelu(g) * up[i];
        const double exponent = std::min(88.0, 1.6 * std::abs(g + 0.045 * g * g * g));
        CHECK_NEAR(out[i], expected,
                   (8 + 6 * exponent) * u * std::abs(expected) + std::abs(g * up[i]) * (1e-15 + std::exp(-87.99)));
      }
      CHECK_EQUAL(out[n], untouched);
      std::vector<float> in_place = gate;
      kernels.geglu(in_place.data(), up.data(), n, in_place.data());
      for (std::size_t i = 0; i < n; ++i) CHECK_EQUAL(in_place[i], out[i]);
    }
  });
}

TEST(rows, gated_units_pass_on_nan) {
  on_every_isa([](const Kernels& kernels) {
    for (const GatedUnit unit : {kernels.swiglu, kernels.geglu}) {
      for (std::size_t place = 0; place < 16; ++place) {
        std::vector<float> gate(16, 1.0f), up(16, 1.0f), out(16);
        gate[place] = NAN;
        unit(gate.data(), up.data(), 16, out.data());
        for (std::size_t i = 0; i < 16; ++i) CHECK_EQUAL(std::isnan(out[i]), i == place);
      }
    }
  });
}

// 1 - 2 / (e^2y + 1): the exponential within 2 ulp and a quotient of its argument, each of which tanh makes smaller, then four
// roundings of numbers up to 1.
TEST(rows, soft_cap) {
  on_every_isa([](const Kernels& kernels) {
    Random random(17);
    for (const std::size_t n : {1, 5, 16, 64, 301}) {
      for (const float cap : {0.5f, 30.0f, 50.0f}) {
        std::vector<float> x = random.normals(n + 1, cap * std::pow(10.0, random.uniform(-2, 2)));
        x[0] = random.below(2) ? 1e30f : -1e30f;
        std::vector<float> out = x;
        kernels.soft_cap(out.data(), n, cap);
        for (std::size_t i = 0; i < n; ++i) CHECK_NEAR(out[i], reference::soft_cap(x[i], cap), 8 * u * cap);
        CHECK_EQUAL(out[n], x[n]);
        x[n - 1] = NAN;
        kernels.soft_cap(x.data(), n, cap);
        CHECK(std::isnan(x[n - 1]));
      }
    }
  });
}

// Two products, a sum and the scale.
TEST(rows, rope) {
  on_every_isa([](const Kernels& kernels) {
    Random random(10);
    for (const auto& [half, n] : std::vector<std::pair<std::size_t, std::size_t>>{
             {1, 2}, {4, 8}, {3, 10}, {32, 64}, {16, 80}, {0, 6}, {64, 128}}) {
      std::vector<double> angles(half);
      std::vector<float> cosines(half), sines(half), head = random.normals(n + 1);
      for (std::size_t i = 0; i < half; ++i) {
        angles[i] = random.uniform(0, 10000);
        cosines[i] = static_cast<float>(std::cos(angles[i]));
        sines[i] = static_cast<float>(std::sin(angles[i]));
      }
      std::vector<double> expected(head.begin(), head.end());
      reference::rotate(expected.data(), angles, 1);
      const std::vector<float> before = head;
      const float scale = static_cast<float>(random.uniform(0.1, 2));
      kernels.rope(head.data(), cosines.data(), sines.data(), half, n, scale);
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t pair = half ? i % half : 0;
        const double terms =
            i < 2 * half ? std::abs(before[pair]) + std::abs(before[pair + half]) : std::abs(before[i]);
        CHECK_NEAR(head[i], expected[i] * scale, 4 * u * scale * terms);
      }
      CHECK_EQUAL(head[n], before[n]);
    }
  });
}

TEST(rows, keys_and_values_are_stored_as_the_nearest_halves) {
  on_every_isa([](const Kernels& kernels) {
    Random random(11);
    for (const std::size_t head_dim : {2, 6, 8, 14, 16, 48, 64, 80, 128, 1024}) {
      std::vector<float> k = random.normals(head_dim), v = random.normals(head_dim, 1e4);
      k[0] = 1e6f, v[0] = 65520.0f, k[1] = -INFINITY, v[1] = -1e-7f;
      const std::size_t stride = reference::padded(head_dim, 16);
      std::vector<std::uint16_t> keys(head_dim * kPagePositions, 0xabcd), values(stride * kPagePositions, 0xabcd);
      kernels.store_kv[kKvF16](k.data(), v.data(), static_cast<int>(head_dim), static_cast<int>(stride), 5,
                               reinterpret_cast<std::uint8_t*>(keys.data()),
                               reinterpret_cast<std::uint8_t*>(values.data()));
      const auto stored = [](float x) { return reference::nearest_half(std::clamp(x, -65504.0f, 65504.0f)); };
      for (std::size_t i = 0; i < keys.size(); ++i)
        CHECK_EQUAL(keys[i], i % kPagePositions == 5 ? stored(k[i / kPagePositions]) : 0xabcd);
      for (std::size_t i = 0; i < values.size(); ++i)
        CHECK_EQUAL(values[i], i / stride == 5 && i % stride < head_dim ? stored(v[i % stride]) : 0xabcd);
    }
  });
}

namespace {

// One scale a position: q = round(x * most / max|x|), ties to even, the scale behind the page's integers.
template <class Int>
void check_integers(KvFormat format, float most_key, float most_value) {
  on_every_isa([&](const Kernels& kernels) {
    Random random(15);
    for (const std::size_t head_dim : {2, 6, 8, 14, 16, 48, 64, 80, 128, 1024}) {
      const std::vector<float> k = random.normals(head_dim), v = random.normals(head_dim, 1e4);
      const std::size_t stride = reference::padded(head_dim, 16), slot = 63, together = sizeof(Int);
      std::vector<std::uint8_t> keys((head_dim * sizeof(Int) + 4) * kPagePositions, 0xab),
          values((stride * sizeof(Int) + 4) * kPagePositions, 0xab);
      kernels.store_kv[format](k.data(), v.data(), static_cast<int>(head_dim), static_cast<int>(stride),
                               static_cast<int>(slot), keys.data(), values.data());
      const auto check = [&](const std::vector<float>& x, const std::vector<std::uint8_t>& place, std::size_t width,
                             float most, const auto& index) {
        const float greatest = reference::greatest(x);
        float scale = 0;
        std::memcpy(&scale, &place[width * sizeof(Int) * kPagePositions + 4 * slot], 4);
        CHECK_EQUAL(scale, greatest / most);
        for (std::size_t i = 0; i < head_dim; ++i) {
          Int stored = 0;
          std::memcpy(&stored, &place[index(i) * sizeof(Int)], sizeof(Int));
          CHECK_EQUAL(static_cast<int>(stored), static_cast<int>(std::nearbyint(x[i] * (most / greatest))));
        }
        std::size_t touched = 0;
        for (const std::uint8_t byte : place) touched += byte != 0xab;
        CHECK(touched <= head_dim * sizeof(Int) + 4);
      };
      // Of integers of two bytes two dimensions of K, and two positions of V, stand side by side.
      check(k, keys, head_dim, most_key,
            [&](std::size_t i) { return i / together * kPagePositions * together + slot * together + i % together; });
      check(v, values, stride, most_value,
            [&](std::size_t i) { return slot / together * stride * together + i * together + slot % together; });
    }
  });
}

}  // namespace

TEST(rows, keys_and_values_are_stored_as_integers_with_a_scale) {
  check_integers<std::int8_t>(kKvQ8, 127, 127);
  check_integers<std::int16_t>(kKvI16, 8191, 4095);
}
