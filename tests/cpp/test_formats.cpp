// csrc/formats against docs/model-file.md as reference.h reads it, for every format of formats.inc and odd sizes.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "check.h"
#include "random.h"
#include "reference.h"

using namespace pyinfer;

namespace {

const std::vector<Format> formats = {
#define PYINFER_FORMAT(name, type) Format::name,
#include "formats/formats.inc"
#undef PYINFER_FORMAT
};

// Those that hold what a source has; floats cannot be packed to them.
const std::vector<Format> source_formats = {Format::q4k, Format::q5k,  Format::q6k, Format::q2k,
                                            Format::q3k, Format::iq4k, Format::iq4, Format::q4z};

std::vector<Format> packable_formats() {
  std::vector<Format> packable;
  for (const Format format : formats)
    if (std::find(source_formats.begin(), source_formats.end(), format) == source_formats.end())
      packable.push_back(format);
  return packable;
}

const std::vector<std::pair<std::size_t, std::size_t>> shapes = {{1, 1},    {1, 4},   {2, 31},   {15, 32}, {16, 33},
                                                                 {17, 63},  {16, 64}, {31, 65},  {32, 96}, {33, 172},
                                                                 {48, 576}, {3, 1},   {100, 257}};

std::vector<std::uint8_t> packed(Format format, const std::vector<float>& values, std::size_t rows, std::size_t cols) {
  std::vector<std::uint8_t> bytes(packed_bytes(format, rows, cols), 0xaa);  // what pack leaves out stays visible
  pack(format, values.data(), rows, cols, bytes.data());
  return bytes;
}

std::vector<float> unpacked(Format format, const std::vector<std::uint8_t>& bytes, std::size_t rows, std::size_t cols) {
  std::vector<float> values(rows * cols);
  for (std::size_t row = 0; row < rows; ++row) unpack_row(format, bytes.data(), cols, row, values.data() + row * cols);
  return values;
}

// Squared error of 32 values (fewer at the end of a row) with the plainest quantiser: the scale that maps the extremes onto
// the range, as a half, then rounding.
double plain_error(Format format, const float* x, std::size_t n) {
  double low = 0, high = 0, extreme = 0, sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    low = i ? std::min<double>(low, x[i]) : x[i];
    high = i ? std::max<double>(high, x[i]) : x[i];
    extreme = std::abs(x[i]) > std::abs(extreme) ? x[i] : extreme;
  }
  const bool ranged = reference::has_minimum(format), four = reference::bits(format) == 4;
  if (ranged && n < 32) low = std::min(low, 0.0), high = std::max(high, 0.0);  // the padding is part of the block
  const int least = ranged ? 0 : (four ? -8 : -127), most = ranged ? (four ? 15 : 255) : (four ? 7 : 127);
  const double d = reference::half_value(reference::nearest_half(ranged ? (high - low) / most : extreme / least));
  for (std::size_t i = 0; i < n; ++i) {
    const double q = d == 0 ? 0 : std::clamp<double>(std::round((x[i] - (ranged ? low : 0)) / d), least, most);
    sum += std::pow(x[i] - (d * q + (ranged ? low : 0)), 2);
  }
  return sum;
}

// Random bytes of a source's blocks; its halves (scales) are kept small and finite.
std::vector<std::uint8_t> random_blocks(Random& random, Source source, std::size_t n_blocks,
                                        const std::vector<std::size_t>& halves) {
  const std::size_t size = source_info(source).bytes;
  std::vector<std::uint8_t> data(n_blocks * size);
  for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(random.bits());
  for (std::size_t block = 0; block < n_blocks; ++block) {
    for (const std::size_t offset : halves) {
      const std::uint16_t half = reference::nearest_half(random.normal() * 0.1);
      std::memcpy(&data[block * size + offset], &half, 2);
    }
  }
  return data;
}

// Block types, and where their halves lie.
std::vector<std::pair<Source, std::vector<std::size_t>>> sources_with_halves() {
  return {{Source::Q4_0, {0}},      {Source::Q4_1, {0, 2}}, {Source::Q5_0, {0}},    {Source::Q5_1, {0, 2}},
          {Source::Q8_0, {0}},      {Source::Q4_K, {0, 2}}, {Source::Q5_K, {0, 2}}, {Source::Q6_K, {208}},
          {Source::Q2_K, {80, 82}}, {Source::Q3_K, {108}},  {Source::IQ4_NL, {0}},  {Source::IQ4_XS, {0}},
          {Source::Q4_Z, {0}}};
}

}  // namespace

TEST(formats, numbers_and_names_are_those_of_the_page) {
  const char* names[] = {"f32", "f16", "bf16", "q4",  "q4m",  "q8",  "q8m", "q4k",
                         "q5k", "q6k", "q2k",  "q3k", "iq4k", "iq4", "q4z"};
  CHECK_EQUAL(formats.size(), std::size(names));
  for (std::size_t i = 0; i < std::size(names); ++i) {
    CHECK_EQUAL(static_cast<std::size_t>(formats[i]), i + 1);
    CHECK_EQUAL(std::string(format_name(formats[i])), names[i]);
    CHECK(find_format(names[i]) == formats[i]);
  }
  CHECK_EQUAL(static_cast<int>(Format::vector), 0);
  CHECK(!find_format("vector"));
  CHECK(!find_format("q5"));
}

TEST(formats, packed_bytes_are_those_of_the_page) {
  CHECK_EQUAL(packed_bytes(Format::vector, 1, 77), 308u);
  for (const Format format : formats) {
    for (std::size_t rows = 1; rows < 70; rows += 3)
      for (std::size_t cols = 1; cols < 200; ++cols)
        CHECK_EQUAL(packed_bytes(format, rows, cols), reference::packed_bytes(format, rows, cols));
    const std::size_t most = 0xffffffff;
    CHECK(packed_bytes(format, most, 4096) / 4096 >= most / 8 * reference::bits(format));  // does not wrap
  }
}

TEST(formats, values_lie_where_the_page_says) {
  Random random(1);
  for (const Format format : packable_formats()) {
    for (const auto& [rows, cols] : shapes) {
      const std::vector<std::uint8_t> bytes = packed(format, random.normals(rows * cols), rows, cols);
      const std::vector<float> values = unpacked(format, bytes, rows, cols);
      const reference::Matrix expected = reference::unpack(format, bytes, rows, cols);
      for (std::size_t i = 0; i < values.size(); ++i) CHECK_EQUAL(values[i], static_cast<float>(expected.values[i]));
    }
  }
}

TEST(formats, float_formats_round_to_the_nearest) {
  Random random(2);
  for (const auto& [rows, cols] : shapes) {
    const std::vector<float> values = random.normals(rows * cols);
    CHECK(unpacked(Format::f32, packed(Format::f32, values, rows, cols), rows, cols) == values);
    const std::vector<float> halves = unpacked(Format::f16, packed(Format::f16, values, rows, cols), rows, cols);
    const std::vector<float> bf16 = unpacked(Format::bf16, packed(Format::bf16, values, rows, cols), rows, cols);
    for (std::size_t i = 0; i < values.size(); ++i) {
      CHECK_EQUAL(halves[i], static_cast<float>(reference::half_value(reference::nearest_half(values[i]))));
      CHECK_NEAR(bf16[i], values[i], std::abs(values[i]) * 0x1p-8);
    }
  }
}

TEST(formats, quantising_is_no_worse_than_the_plain_way) {
  Random random(3);
  for (const Format format : {Format::q4, Format::q4m, Format::q8, Format::q8m}) {
    double found = 0, plain = 0;
    for (const auto& [rows, cols] : shapes) {
      const std::vector<float> x = random.normals(rows * cols, std::pow(10.0, random.uniform(-3, 3)));
      const std::vector<float> y = unpacked(format, packed(format, x, rows, cols), rows, cols);
      for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t col = 0; col < cols; col += 32) {
          const std::size_t n = std::min<std::size_t>(32, cols - col);
          double square = 0, error = 0;
          for (std::size_t i = row * cols + col; i < row * cols + col + n; ++i) {
            error += std::pow(static_cast<double>(x[i]) - y[i], 2);
            square += static_cast<double>(x[i]) * x[i];
          }
          found += error / square;
          plain += plain_error(format, &x[row * cols + col], n) / square;
        }
      }
    }
    CHECK(found <= plain * 1.02);  // the stored minimum is a half as well, which the plain way does not charge for
    CHECK(found > plain * 0.5);
  }
}

TEST(formats, representable_values_are_kept_exactly) {
  Random random(4);
  const std::size_t rows = 17, cols = 160;
  for (const Format format : {Format::q4, Format::q4m, Format::q8, Format::q8m}) {
    const bool four = reference::bits(format) == 4, ranged = reference::has_minimum(format);
    const int low = four ? (ranged ? 0 : -8) : (ranged ? -128 : -127), high = four ? (ranged ? 15 : 7) : 127;
    std::vector<float> values(rows * cols);
    for (std::size_t start = 0; start < values.size(); start += 32) {
      const double d = std::ldexp(1 + static_cast<double>(random.below(8)), -8), m = ranged ? d * 3 : 0;
      for (std::size_t i = start; i < start + 32; ++i) {
        const int q = low + static_cast<int>(random.below(static_cast<std::size_t>(high - low + 1)));
        values[i] = static_cast<float>(d * q + m);
      }
      values[start] = static_cast<float>(d * low + m);  // the block fills its range
      values[start + 7] = static_cast<float>(d * high + m);
    }
    CHECK(unpacked(format, packed(format, values, rows, cols), rows, cols) == values);
  }
}

TEST(formats, padding_is_zero) {
  Random random(5);
  for (const Format format : packable_formats()) {
    for (const auto& [rows, cols] : shapes) {
      const std::vector<std::uint8_t> bytes = packed(format, random.normals(rows * cols), rows, cols);
      const std::size_t all_rows = reference::padded(rows, 16), all_cols = reference::padded_cols(format, cols);
      for (std::size_t row = 0; row < all_rows; ++row)
        for (std::size_t col = row < rows ? reference::padded(cols, reference::is_quantised(format) ? 32 : 1) : 0;
             col < all_cols; ++col)
          CHECK_EQUAL(reference::weight_at(format, bytes, cols, row, col), 0.0);
      // A tensor ends with its last tile: nothing of it was left unwritten.
      if (rows % 16 != 0 && !reference::is_quantised(format)) CHECK_EQUAL(bytes.back(), 0);
    }
  }
}

TEST(formats, values_that_cannot_be_stored_are_named) {
  for (const Format format : packable_formats()) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> values(3 * 70, 1.0f);
      values[2 * 70 + 69] = bad;
      std::vector<std::uint8_t> bytes(packed_bytes(format, 3, 70));
      CHECK_ERROR(pack(format, values.data(), 3, 70, bytes.data()), request, "row 2, column 69");
    }
  }
  const std::vector<float> huge = {3e38f, -3e38f, 1.0f};
  for (const Format format : {Format::f16, Format::q4, Format::q4m, Format::q8, Format::q8m}) {
    std::vector<std::uint8_t> bytes(packed_bytes(format, 1, 3));
    CHECK_ERROR(pack(format, huge.data(), 1, 3, bytes.data()), request, "row 0");
  }
}

// A source lands in the format that has its integers and halves: nothing changes.
TEST(formats, sources_are_carried_over_exactly) {
  Random random(6);
  const std::size_t rows = 17, cols = 512;
  for (const auto& [source, halves] : sources_with_halves()) {
    const std::vector<std::uint8_t> data =
        random_blocks(random, source, rows * cols / source_info(source).values, halves);
    std::vector<float> expected(rows * cols);
    dequantize(source, data.data(), rows, cols, expected.data());
    const Format format = source_info(source).lands;
    std::vector<std::uint8_t> bytes(packed_bytes(format, rows, cols), 0xaa);
    repack(source, format, data.data(), rows, cols, bytes.data());
    CHECK(unpacked(format, bytes, rows, cols) == expected);
    const reference::Matrix by_the_page = reference::unpack(format, bytes, rows, cols);
    for (std::size_t i = 0; i < expected.size(); ++i)
      CHECK_EQUAL(expected[i], static_cast<float>(by_the_page.values[i]));
  }
}

TEST(formats, formats_of_sources_take_their_blocks_only) {
  const std::vector<float> values(256, 1.0f);
  std::vector<std::uint8_t> bytes(packed_bytes(Format::q6k, 1, 256)), blocks(256);
  for (const Format format : source_formats) {
    CHECK_ERROR(pack(format, values.data(), 1, 256, bytes.data()), request, format_name(format));
    CHECK_ERROR(repack(Source::Q4_0, format, blocks.data(), 1, 256, bytes.data()), request, format_name(format));
  }
}

TEST(formats, scales_of_sources_that_are_not_finite_are_refused) {
  Random random(8);
  for (const auto& [source, halves] : sources_with_halves()) {
    for (const std::size_t place : halves) {
      std::vector<std::uint8_t> data = random_blocks(random, source, 512 / source_info(source).values, halves);
      data[place] = 0x00, data[place + 1] = 0x7c;  // infinity
      for (const Format format : {source_info(source).lands, Format::q8, Format::q8m}) {
        std::vector<std::uint8_t> bytes(packed_bytes(format, 1, 512));
        CHECK_ERROR(repack(source, format, data.data(), 1, 512, bytes.data()), request, "finite");
      }
    }
  }
}

// llama2.c's groups: the integers are kept, the scale becomes the nearest half.
TEST(formats, float_scales_are_rounded_to_halves) {
  Random random(9);
  std::vector<std::uint8_t> data(2 * 36);
  for (std::uint8_t& byte : data) byte = static_cast<std::uint8_t>(random.bits());
  const float scales[] = {0.0123456f, -7.654321f};
  for (std::size_t b = 0; b < 2; ++b) std::memcpy(&data[36 * b], &scales[b], 4);
  std::vector<float> exact(64);
  dequantize(Source::Q8_F, data.data(), 1, 64, exact.data());
  std::vector<std::uint8_t> bytes(packed_bytes(Format::q8, 1, 64));
  repack(Source::Q8_F, Format::q8, data.data(), 1, 64, bytes.data());
  const std::vector<float> stored = unpacked(Format::q8, bytes, 1, 64);
  for (std::size_t i = 0; i < 64; ++i) {
    const auto q = static_cast<std::int8_t>(data[36 * (i / 32) + 4 + i % 32]);
    CHECK_EQUAL(exact[i], scales[i / 32] * static_cast<float>(q));
    CHECK_EQUAL(stored[i], static_cast<float>(reference::half_value(reference::nearest_half(scales[i / 32])) * q));
  }
  for (const float bad : {NAN, INFINITY, 1e6f}) {
    std::memcpy(data.data(), &bad, 4);
    CHECK_ERROR(repack(Source::Q8_F, Format::q8, data.data(), 1, 64, bytes.data()), request, "finite");
  }
}

TEST(formats, decoded_sources_of_known_blocks) {
  std::uint8_t q4_0[18] = {0x00, 0x38, 0x0f, 0xf0};  // d = 0.5; first byte: 15 low, 0 high; second: 0 low, 15 high
  float x[256];
  dequantize(Source::Q4_0, q4_0, 1, 32, x);
  CHECK_EQUAL(x[0], 3.5f);
  CHECK_EQUAL(x[16], -4.0f);
  CHECK_EQUAL(x[1], -4.0f);
  CHECK_EQUAL(x[17], 3.5f);
  std::uint8_t q5_0[22] = {0x00, 0x3c, 0x01, 0x00, 0x01, 0x00, 0x21};  // d = 1; fifth bits of values 0 and 16
  dequantize(Source::Q5_0, q5_0, 1, 32, x);
  CHECK_EQUAL(x[0], 1.0f);   // 16 + 1 - 16
  CHECK_EQUAL(x[16], 2.0f);  // 16 + 2 - 16
  CHECK_EQUAL(x[1], -16.0f);
  std::uint8_t q8_0[34] = {0x00, 0xc0, 0x80, 0x7f};  // d = -2
  dequantize(Source::Q8_0, q8_0, 1, 32, x);
  CHECK_EQUAL(x[0], 256.0f);
  CHECK_EQUAL(x[1], -254.0f);
  std::uint8_t q6_k[210] = {};
  q6_k[0] = 0x5f;            // low nibbles of values 0 and 64
  q6_k[128] = 0x0 | 2 << 4;  // high pairs: value 0 has 0, value 64 has 2
  for (int i = 192; i < 208; ++i) q6_k[i] = static_cast<std::uint8_t>(i == 196 ? -3 : 2);
  q6_k[209] = 0x3c;  // d = 1
  dequantize(Source::Q6_K, q6_k, 1, 256, x);
  CHECK_EQUAL(x[0], 2.0f * (15 - 32));
  CHECK_EQUAL(x[64], -3.0f * (5 + 32 - 32));
  CHECK_EQUAL(x[255], 2.0f * -32);
}
