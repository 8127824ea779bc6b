// Random packed matrices, written by docs/model-file.md alone: integers over their whole range, padding zero.
#pragma once

#include "random.h"
#include "reference.h"

class RandomMatrix {
 public:
  using Format = reference::Format;

  // Values of mean 0 and standard deviation near `size`.
  RandomMatrix(Random& random, Format format, std::size_t rows, std::size_t cols, double size)
      : bytes(reference::packed_bytes(format, rows, cols)), random_(random), format_(format), cols_(cols), size_(size) {
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t col = 0; col < cols; ++col) put(row, col);
  }

  std::vector<std::uint8_t> bytes;

 private:
  void put(std::size_t row, std::size_t col) {
    if (!reference::is_quantised(format_)) return put_float(reference::float_index(format_, cols_, row, col));
    const reference::Place place = reference::place_of(format_, cols_, row, col);
    if (col % (reference::is_k(format_) ? 256 : 32) == 0) put_halves(place);
    if (reference::is_k(format_) && col % reference::run(format_) == 0) put_integer_scales(place);
    if (reference::bits(format_) == 8) {
      bytes[place.q] = static_cast<std::uint8_t>(random_.below(256));
      return;
    }
    const auto low = random_.below(std::size_t{1} << place.q_bits);
    bytes[place.q] = static_cast<std::uint8_t>(bytes[place.q] | low << place.q_shift);
    if (place.high_mask == 0) return;
    const auto high = static_cast<int>(random_.below(static_cast<std::size_t>(place.high_mask) + 1));
    bytes[place.high] = static_cast<std::uint8_t>(bytes[place.high] | high << place.high_shift);
  }

  // One step of the integers, so that their whole range has the wanted deviation; K: divided by the mean of the integer scales.
  void put_halves(const reference::Place& place) {
    const double range = reference::has_levels(format_) ? 240 : 1 << reference::bits(format_);
    const double step = size_ * random_.uniform(0.7, 1.4) / (range * 0.29), unit = (least_scale() + most_scale()) / 2;
    put_half(place.d, step / unit);
    const double middle = reference::bits(format_) == 8 ? -0.5 : (range - 1) / 2;
    if (format_ == Format::q4z) {
      bytes[place.m] = static_cast<std::uint8_t>(random_.below(17));
    } else if (reference::has_minimum(format_)) {
      put_half(place.m, (reference::is_k(format_) ? 1 : -1) * middle * step / unit);
    }
  }

  // Integer scales (and minima) of the K formats.
  double least_scale() const { return reference::is_k(format_) ? (most_scale() + 1) / 2 : 1; }
  double most_scale() const {
    if (!reference::is_k(format_)) return 1;
    return format_ == Format::q6k ? 127 : format_ == Format::q2k ? 15 : signed_scales() ? 31 : 63;
  }
  bool signed_scales() const { return reference::is_k(format_) && !reference::has_minimum(format_); }

  int random_scale() {
    const auto least = static_cast<int>(least_scale()), most = static_cast<int>(most_scale());
    return least + static_cast<int>(random_.below(static_cast<std::size_t>(most - least + 1)));
  }

  void put_integer_scales(const reference::Place& place) {
    const bool negative = signed_scales() && random_.below(2) == 0;
    const int scale = random_scale();
    bytes[place.scale] = static_cast<std::uint8_t>(negative ? -scale - 1 : scale);
    if (format_ == Format::q2k) {
      bytes[place.scale] = static_cast<std::uint8_t>(bytes[place.scale] | random_scale() << 4);
    } else if (place.least != 0) {
      bytes[place.least] = static_cast<std::uint8_t>(random_scale());
    }
  }

  void put_half(std::size_t at, double value) {
    const std::uint16_t half = reference::nearest_half(value);
    std::memcpy(&bytes[at], &half, 2);
  }

  void put_float(std::size_t index) {
    const auto value = static_cast<float>(random_.normal() * size_);
    if (format_ == Format::f16) return put_half(2 * index, value);
    const std::size_t width = reference::float_bytes(format_);  // bf16: the upper half
    std::memcpy(&bytes[width * index], reinterpret_cast<const std::uint8_t*>(&value) + 4 - width, width);
  }

  Random& random_;
  Format format_;
  std::size_t cols_;
  double size_;
};
