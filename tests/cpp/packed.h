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
    bytes[place.q] = static_cast<std::uint8_t>(bytes[place.q] | random_.below(16) << place.q_shift);
    if (place.high_mask == 0) return;
    const auto high = static_cast<int>(random_.below(static_cast<std::size_t>(place.high_mask) + 1));
    bytes[place.high] = static_cast<std::uint8_t>(bytes[place.high] | high << place.high_shift);
  }

  // One step of the integers, so that their whole range has the wanted deviation; K: times 48 or 96, the mean of the scales.
  void put_halves(const reference::Place& place) {
    const double range = 1 << reference::bits(format_), step = size_ * random_.uniform(0.7, 1.4) / (range * 0.29);
    const double unit = !reference::is_k(format_) ? 1 : format_ == Format::q6k ? 96 : 48;
    put_half(place.d, step / unit);
    if (!reference::has_minimum(format_)) return;
    const double middle = reference::bits(format_) == 8 ? -0.5 : (range - 1) / 2;
    put_half(place.m, (reference::is_k(format_) ? 1 : -1) * middle * step / unit);
  }

  void put_integer_scales(const reference::Place& place) {
    const bool negative = format_ == Format::q6k && random_.below(2) == 0;
    const auto scale = static_cast<int>(format_ == Format::q6k ? 64 + random_.below(64) : 32 + random_.below(32));
    bytes[place.scale] = static_cast<std::uint8_t>(negative ? -scale - 1 : scale);
    if (place.least != 0) bytes[place.least] = static_cast<std::uint8_t>(32 + random_.below(32));
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
