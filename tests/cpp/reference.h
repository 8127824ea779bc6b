// What the core should compute, in naive double precision. Written from docs/model-file.md and the papers, apart from csrc:
// it includes nothing of it but the numbers of the formats, and is slow on purpose.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "formats/format.h"

namespace reference {

using pyinfer::Format;

// Row-major.
struct Matrix {
  std::size_t rows, cols;
  std::vector<double> values;  // (rows, cols)
  double& at(std::size_t row, std::size_t col) { return values[row * cols + col]; }
  double at(std::size_t row, std::size_t col) const { return values[row * cols + col]; }
};

inline double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

// The half nearest to a value, the even one of two; infinity from 65520 on, NaN of NaN.
inline std::uint16_t nearest_half(double value) {
  if (std::isnan(value)) return 0x7e00;
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::abs(value);
  if (magnitude >= 65520) return sign | 0x7c00;
  const int exponent = magnitude < std::ldexp(1, -14) ? -14 : std::ilogb(magnitude);
  const int steps =
      static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // a carry runs into the exponent
  return static_cast<std::uint16_t>(sign | (((exponent + 14) << 10) + steps));
}

inline double bf16_value(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// ---- Packed matrices, by docs/model-file.md ----

inline bool is_quantised(Format format) { return static_cast<int>(format) >= 4; }
// The K formats.
inline bool is_k(Format format) { return static_cast<int>(format) >= 8 && static_cast<int>(format) <= 13; }
inline bool has_levels(Format format) { return format == Format::iq4 || format == Format::iq4k; }
inline int bits(Format format) {
  constexpr int by_number[] = {32, 32, 16, 16, 4, 4, 8, 8, 4, 5, 6, 2, 3, 4, 4, 4};
  return by_number[static_cast<int>(format)];
}
inline int offset(Format format) {
  return format == Format::q4 ? 8 : format == Format::q6k ? 32 : format == Format::q3k ? 4 : 0;
}
inline bool has_minimum(Format format) {
  return format == Format::q4m || format == Format::q8m || format == Format::q4k || format == Format::q5k ||
         format == Format::q2k || format == Format::q4z;
}
// Columns that share a scale.
inline std::size_t run(Format format) {
  return format == Format::q6k || format == Format::q2k || format == Format::q3k ? 16 : 32;
}
inline std::size_t columns_of_group(Format format) { return is_k(format) ? 256 : is_quantised(format) ? 64 : 4; }
inline std::size_t float_bytes(Format format) { return format == Format::f32 ? 4 : 2; }

inline std::size_t padded(std::size_t n, std::size_t to) { return n + (to - n % to) % to; }
inline std::size_t padded_cols(Format format, std::size_t cols) { return padded(cols, columns_of_group(format)); }

// Bytes of a group of columns by 16 rows (quantised formats): halves, integer scales, integers.
inline std::size_t group_bytes(Format format) {
  const std::size_t halves = has_minimum(format) && !is_k(format) ? 128 : 64;
  const std::size_t scales = !is_k(format) ? 0 : format == Format::iq4k ? 128 : 256;
  return halves + scales + columns_of_group(format) * 16 * static_cast<std::size_t>(bits(format)) / 8;
}

inline std::size_t packed_bytes(Format format, std::size_t rows, std::size_t cols) {
  const std::size_t n_groups = padded_cols(format, cols) / columns_of_group(format);
  const std::size_t group = is_quantised(format) ? group_bytes(format) : 4 * 16 * float_bytes(format);
  return padded(rows, 16) / 16 * n_groups * group;
}

// Where the parts of one weight of a quantised matrix lie, in bytes. What a format does not have stays 0.
struct Place {
  std::size_t d = 0, m = 0;          // halves: scale and minimum, or what integer scale and minimum are multiplied with
  std::size_t scale = 0, least = 0;  // K: integer scale and minimum; q2k: nibbles of one byte
  std::size_t q = 0;                 // the integer, or its low bits
  int q_shift = 0, q_bits = 4;
  std::size_t high = 0;  // the bits above those
  int high_shift = 0, high_mask = 0;
};

inline std::size_t group_start(Format format, std::size_t cols, std::size_t row, std::size_t col) {
  return (row / 16 * (padded_cols(format, cols) / columns_of_group(format)) + col / columns_of_group(format)) *
         group_bytes(format);
}

// The integer of column c of a block of 32, whose integers begin at `start`.
inline void place_integer(Place& place, Format format, std::size_t start, std::size_t r, std::size_t c) {
  place.q = start + 64 * (bits(format) == 8 ? c / 4 : c / 4 % 4) + 4 * r + c % 4;
  place.q_shift = bits(format) != 8 && c >= 16 ? 4 : 0;
}

// 2 bits of an integer, in 128 bytes a block.
inline void place_pair(std::size_t& at, int& shift, std::size_t start, std::size_t r, std::size_t c) {
  at = start + 64 * (c / 16) + 4 * r + c % 4;
  shift = static_cast<int>(2 * (c / 4 % 4));
}

inline Place place_of_k(Format format, std::size_t cols, std::size_t row, std::size_t col) {
  const std::size_t start = group_start(format, cols, row, col), block = col % 256 / 32, r = row % 16, c = col % 32;
  Place place;
  place.d = start + 2 * r;
  if (has_minimum(format)) place.m = start + 32 + 2 * r;
  place.scale = start + 64 + 16 * (col % 256 / run(format)) + r;
  if (has_minimum(format)) place.least = format == Format::q2k ? place.scale : start + 64 + 128 + 16 * block + r;
  const std::size_t integers = start + 64 + (format == Format::iq4k ? 128 : 256);
  if (bits(format) <= 3) {
    place.q_bits = 2;
    place_pair(place.q, place.q_shift, integers + 128 * block, r, c);
  } else {
    place_integer(place, format, integers + 256 * block, r, c);
  }
  const std::size_t high = integers + (bits(format) <= 3 ? 1024 : 2048);
  if (format == Format::q5k || format == Format::q3k) {
    place.high = high + 64 * block + 4 * r + c % 4;
    place.high_shift = static_cast<int>(c / 4);
    place.high_mask = 1;
  }
  if (format == Format::q6k) {
    place_pair(place.high, place.high_shift, high + 128 * block, r, c);
    place.high_mask = 3;
  }
  return place;
}

inline Place place_of(Format format, std::size_t cols, std::size_t row, std::size_t col) {
  if (is_k(format)) return place_of_k(format, cols, row, col);
  const std::size_t start = group_start(format, cols, row, col), block = col / 32 % 2, r = row % 16;
  const std::size_t integers = start + (has_minimum(format) ? 128 : 64);
  Place place;
  place.d = start + 32 * block + 2 * r;
  if (format == Format::q4z) {
    place.m = start + 64 + 16 * block + r;  // a byte
  } else if (has_minimum(format)) {
    place.m = start + 64 + 32 * block + 2 * r;
  }
  place_integer(place, format, integers + static_cast<std::size_t>(bits(format)) * 64 * block, r, col % 32);
  return place;
}

inline std::uint16_t half_at(const std::vector<std::uint8_t>& bytes, std::size_t at) {
  return static_cast<std::uint16_t>(bytes[at] | bytes[at + 1] << 8);
}

// The integer without its offset: value = scale * integer + minimum.
inline int integer_at(Format format, const std::vector<std::uint8_t>& bytes, const Place& place) {
  if (bits(format) == 8) return static_cast<std::int8_t>(bytes[place.q]);
  const int high = place.high_mask ? bytes[place.high] >> place.high_shift & place.high_mask : 0;
  const int low = bytes[place.q] >> place.q_shift & ((1 << place.q_bits) - 1);
  constexpr int levels[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return has_levels(format) ? levels[low] : low + (high << place.q_bits) - offset(format);
}

inline double scale_at(Format format, const std::vector<std::uint8_t>& bytes, const Place& place) {
  const double d = half_value(half_at(bytes, place.d));
  if (!is_k(format)) return d;
  if (format == Format::q2k) return d * (bytes[place.scale] & 15);
  return d * (has_minimum(format) ? bytes[place.scale] : static_cast<std::int8_t>(bytes[place.scale]));
}

inline double minimum_at(Format format, const std::vector<std::uint8_t>& bytes, const Place& place) {
  if (!has_minimum(format)) return 0;
  if (format == Format::q4z) return -half_value(half_at(bytes, place.d)) * bytes[place.m];
  const double m = half_value(half_at(bytes, place.m));
  if (format == Format::q2k) return -m * (bytes[place.least] >> 4);
  return is_k(format) ? -m * bytes[place.least] : m;
}

inline double float_at(Format format, const std::vector<std::uint8_t>& bytes, std::size_t index) {
  if (format == Format::f16) return half_value(half_at(bytes, 2 * index));
  if (format == Format::bf16) return bf16_value(half_at(bytes, 2 * index));
  float value;
  std::memcpy(&value, &bytes[4 * index], 4);
  return value;
}

// The index among the values of a float matrix.
inline std::size_t float_index(Format format, std::size_t cols, std::size_t row, std::size_t col) {
  return (row / 16 * padded_cols(format, cols) + col) * 16 + row % 16;
}

inline double weight_at(Format format, const std::vector<std::uint8_t>& bytes, std::size_t cols, std::size_t row,
                        std::size_t col) {
  if (!is_quantised(format)) return float_at(format, bytes, float_index(format, cols, row, col));
  const Place place = place_of(format, cols, row, col);
  return scale_at(format, bytes, place) * integer_at(format, bytes, place) + minimum_at(format, bytes, place);
}

inline Matrix unpack(Format format, const std::vector<std::uint8_t>& bytes, std::size_t rows, std::size_t cols) {
  Matrix matrix{rows, cols, std::vector<double>(rows * cols)};
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t col = 0; col < cols; ++col) matrix.at(row, col) = weight_at(format, bytes, cols, row, col);
  return matrix;
}

// A packed matrix taken apart once for many products. A quantised one has integers too, (rows, cols), and by runs of columns
// scales and minima, (rows, n_runs).
struct Weights {
  Format format;
  Matrix values;
  std::vector<int> integers;
  std::size_t n_runs = 0;
  std::vector<double> scales, minima;

  Weights(Format of, const std::vector<std::uint8_t>& bytes, std::size_t rows, std::size_t cols)
      : format(of), values(unpack(of, bytes, rows, cols)) {
    if (!is_quantised(format)) return;
    n_runs = (cols + run(format) - 1) / run(format);
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t col = 0; col < cols; ++col) {
        const Place place = place_of(format, cols, row, col);
        integers.push_back(integer_at(format, bytes, place));
        if (col % run(format) != 0) continue;
        scales.push_back(scale_at(format, bytes, place));
        minima.push_back(minimum_at(format, bytes, place));
      }
    }
  }
};

// ---- Products ----

inline float greatest(std::span<const float> x) {
  float magnitude = 0;
  for (const float value : x) magnitude = std::max(magnitude, std::abs(value));
  return magnitude;
}

// One block of 32 activations as int8: q = round(x * 127 / magnitude), ties to even; value = scale * q. In float, operation by
// operation, since the kernels promise these integers exactly.
struct QuantizedBlock {
  int q[32];
  float scale;
  int sums[2];  // of q: the first and the last 16
};

inline QuantizedBlock quantize(std::span<const float> x, float magnitude) {
  QuantizedBlock block{};
  const float inverse = magnitude >= 1e-36f ? 127.0f / magnitude : 0.0f;  // it would overflow: as good as zero
  for (std::size_t i = 0; i < x.size(); ++i) {
    block.q[i] = static_cast<int>(std::nearbyint(x[i] * inverse));
    block.sums[i / 16] += block.q[i];
  }
  block.scale = magnitude / 127.0f;
  return block;
}

// The blocks of a row, the last of which may be shorter, where scale_blocks of them share a scale.
inline std::vector<QuantizedBlock> quantize_all(std::span<const float> x, std::size_t scale_blocks) {
  std::vector<QuantizedBlock> blocks;
  for (std::size_t at = 0; at < x.size(); at += 32) {
    const std::size_t shared = at - at % (32 * scale_blocks);
    const float magnitude = greatest(x.subspan(shared, std::min(32 * scale_blocks, x.size() - shared)));
    blocks.push_back(quantize(x.subspan(at, std::min<std::size_t>(32, x.size() - at)), magnitude));
  }
  return blocks;
}

// A row as integers of up to `most` represents it: x = scale * q, q = round(x * most / max|x|), ties to even. In float likewise.
inline std::vector<double> as_integers(const std::vector<float>& x, float most) {
  const float magnitude = greatest(x);
  std::vector<double> values;
  for (const float value : x) values.push_back(double{std::nearbyint(value * (most / magnitude))} * (magnitude / most));
  return values;
}

// A sum and the sum of the magnitudes of its terms, which rounding errors are proportional to.
struct Sum {
  double value = 0, magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::abs(term);
  }
};

// What blocks with a scale each lack of a row: x - scale * q. In float, with one rounding, likewise.
inline std::vector<float> remainder_of(std::span<const float> x) {
  const std::vector<QuantizedBlock> blocks = quantize_all(x, 1);
  std::vector<float> remainder;
  for (std::size_t i = 0; i < x.size(); ++i)
    remainder.push_back(std::fma(-blocks[i / 32].scale, static_cast<float>(blocks[i / 32].q[i % 32]), x[i]));
  return remainder;
}

// One output with int8 activations: weights share a scale in runs of 32 or 16 columns, and in each run the integers are multiplied exactly.
inline Sum dot_int8(const Weights& weights, std::size_t row, const std::vector<QuantizedBlock>& x) {
  const std::size_t cols = weights.values.cols, n = run(weights.format);
  Sum sum;
  for (std::size_t i = 0; i < weights.n_runs; ++i) {
    const QuantizedBlock& block = x[i * n / 32];
    std::int64_t dot = 0, activations = 0;
    for (std::size_t col = i * n; col < std::min(cols, (i + 1) * n); ++col) {
      dot += block.q[col % 32] * weights.integers[row * cols + col];
      activations += block.q[col % 32];
    }
    const std::size_t at = row * weights.n_runs + i;
    sum.add(weights.scales[at] * block.scale * static_cast<double>(dot));
    if (has_minimum(weights.format)) sum.add(weights.minima[at] * block.scale * static_cast<double>(activations));
  }
  return sum;
}

// One output with float activations.
inline Sum dot_f32(const Weights& weights, std::size_t row, const float* x) {
  Sum sum;
  for (std::size_t col = 0; col < weights.values.cols; ++col) sum.add(weights.values.at(row, col) * x[col]);
  return sum;
}

// ---- The rest of a layer ----

inline std::vector<double> rms_norm(const std::vector<double>& x, const std::vector<double>& weight, double eps) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  const double factor = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] * factor * weight[i];
  return out;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

// The tanh form, as GPT-2 has it.
inline double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

inline double soft_cap(double x, double cap) { return cap > 0 ? cap * std::tanh(x / cap) : x; }

// Rotates dimension i of a head with dimension i + angles.size(), for each angle.
inline void rotate(double* head, const std::vector<double>& angles, double magnitude) {
  const std::size_t half = angles.size();
  for (std::size_t i = 0; i < half; ++i) {
    const double a = head[i], b = head[i + half], c = std::cos(angles[i]) * magnitude,
                 s = std::sin(angles[i]) * magnitude;
    head[i] = a * c - b * s;
    head[i + half] = a * s + b * c;
  }
}

inline std::vector<double> softmax(const std::vector<double>& scores) {
  const double greatest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  std::vector<double> p(scores.size());
  for (std::size_t i = 0; i < p.size(); ++i) total += p[i] = std::exp(scores[i] - greatest);
  for (double& value : p) value /= total;
  return p;
}

}  // namespace reference
