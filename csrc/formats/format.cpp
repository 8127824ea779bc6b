#include "formats/format.h"

#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "base/buffer.h"
#include "base/error.h"
#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/iq4.h"
#include "formats/iq4k.h"
#include "formats/q2k.h"
#include "formats/q3k.h"
#include "formats/q4.h"
#include "formats/q4k.h"
#include "formats/q4m.h"
#include "formats/q4z.h"
#include "formats/q5k.h"
#include "formats/q6k.h"
#include "formats/q8.h"
#include "formats/q8m.h"
#include "formats/quantize.h"
#include "formats/sources.h"

namespace pyinfer {
namespace {

// Whether floats can be quantised to a format; the others hold what a source has.
template <class F>
constexpr bool takes_floats = !is_super_format<F> && !is_codebook_format<F> && !is_zero_point_format<F>;

[[noreturn]] void refuse_floats(const char* name) {
  throw Error(ErrorKind::request, "format: expected one that floats can be packed to, found " + std::string(name));
}

// Calls visit(F{}) with the type of a matrix format.
template <class Visit>
auto visit_format(Format format, Visit visit) {
  switch (format) {
#define PYINFER_FORMAT(name, type) \
  case Format::name:               \
    return visit(type{});
#include "formats/formats.inc"
#undef PYINFER_FORMAT
    default:
      throw Error(ErrorKind::request, "format: expected a matrix format, found vector");
  }
}

template <class Visit>
auto visit_source(Source source, Visit visit) {
  switch (source) {
#define PYINFER_SOURCE(name, type, lands) \
  case Source::name:                      \
    return visit(type{});
#include "formats/sources.inc"
#undef PYINFER_SOURCE
    default:
      throw Error(ErrorKind::request, "source: unknown number");
  }
}

constexpr const char* kFormatNames[] = {
    "vector",
#define PYINFER_FORMAT(name, type) #name,
#include "formats/formats.inc"
#undef PYINFER_FORMAT
};

constexpr SourceInfo kSourceInfos[] = {
#define PYINFER_SOURCE(name, type, lands) {#name, type::kValues, type::kBytes, Format::lands},
#include "formats/sources.inc"
#undef PYINFER_SOURCE
};

[[noreturn]] void refuse_value(float value, size_t row, size_t column, const char* limit) {
  throw Error(ErrorKind::request, "weights: expected " + std::string(limit) + ", found " + std::to_string(value) +
                                      " at row " + std::to_string(row) + ", column " + std::to_string(column));
}

void check_finite(const float* values, size_t row, size_t cols) {
  for (size_t c = 0; c < cols; ++c) {
    if (!std::isfinite(values[c])) refuse_value(values[c], row, c, "finite values");
  }
}

template <class F>
Block quantize(const float* x) {
  if constexpr (F::kHasMinimum) {
    return F::kBits == 4 ? quantize_range(x, 0, 15) : quantize_range(x, -128, 127);
  } else {
    return F::kBits == 4 ? quantize_symmetric(x, F::kBias, 0, 15) : quantize_symmetric(x, 0, -127, 127);
  }
}

// What stands in columns past the end of a row: value 0.
template <class F>
Block padding() {
  Block block{};
  std::memset(block.q, F::kBias, sizeof block.q);
  return block;
}

// Packs one row of floats into its place in a tile; `x` has room for whole groups, zero past `cols`.
template <class F>
void pack_row(const float* x, size_t row, size_t cols, typename F::Group* tile) {
  const size_t n_groups = round_up(cols, F::kGroupCols) / F::kGroupCols;
  const int lane = static_cast<int>(row % kTileRows);
  for (size_t g = 0; g < n_groups; ++g) {
    const float* values = x + g * F::kGroupCols;
    if constexpr (is_float_format<F>) {
      for (int c = 0; c < kFloatGroup; ++c) {
        tile[g].v[c][lane] = F::encode(values[c]);
        if (!std::isfinite(F::value(tile[g], lane, c))) {
          refuse_value(values[c], row, g * F::kGroupCols + static_cast<size_t>(c), "values within the format's range");
        }
      }
    } else {
      for (int b = 0; b < 2; ++b) {
        const bool padded = g * kQuantGroup + static_cast<size_t>(b) * kBlock >= cols;
        const Block block = padded ? padding<F>() : quantize<F>(values + b * kBlock);
        if (!std::isfinite(half_to_float(block.d)) || !std::isfinite(half_to_float(block.m))) {
          refuse_value(values[b * kBlock], row, g * kQuantGroup + static_cast<size_t>(b) * kBlock,
                       "values that a half-precision scale can hold");
        }
        F::put(tile[g], b, lane, block);
      }
    }
  }
}

template <class F>
typename F::Group* tile_of(uint8_t* packed, size_t row, size_t cols) {
  const size_t n_groups = round_up(cols, F::kGroupCols) / F::kGroupCols;
  return reinterpret_cast<typename F::Group*>(packed) + row / kTileRows * n_groups;
}

template <class S>
void decode_row(const uint8_t* data, size_t cols, float* x) {
  if constexpr (S::kValues == 1) {
    for (size_t c = 0; c < cols; ++c) x[c] = S::decode_one(data + c * S::kBytes);
  } else {
    for (size_t c = 0; c < cols; c += kBlock) {
      const uint8_t* block = data + c / S::kValues * S::kBytes;
      const int run = static_cast<int>(c % S::kValues / kBlock);
      if constexpr (requires { S::decode(block, run, x); }) {
        S::decode(block, run, x + c);
      } else {
        Block integers;
        S::integers(block, run, integers);
        decode_block(integers, S::kBias, S::kMinimum, x + c);
      }
    }
  }
}

// Whether a source's integers mean the same in format F.
template <class S, class F>
constexpr bool carries_over() {
  constexpr auto pair = []<class Wanted, class Format>(Wanted, Format) {
    return std::is_same_v<S, Wanted> && std::is_same_v<F, Format>;
  };
  return pair(SourceQ4_0{}, Q4{}) || pair(SourceQ4_1{}, Q4M{}) || pair(SourceQ4_1{}, Q8M{}) ||
         pair(SourceQ5_0{}, Q8{}) || pair(SourceQ5_0{}, Q8M{}) || pair(SourceQ5_1{}, Q8M{}) ||
         pair(SourceQ8_0{}, Q8{}) || pair(SourceQ8_0{}, Q8M{}) || pair(SourceQ8_F{}, Q8{}) ||
         pair(SourceQ2_K{}, Q2K{}) || pair(SourceQ3_K{}, Q3K{}) || pair(SourceQ4_K{}, Q4K{}) ||
         pair(SourceQ5_K{}, Q5K{}) || pair(SourceQ6_K{}, Q6K{}) || pair(SourceIQ4_NL{}, IQ4{}) ||
         pair(SourceIQ4_XS{}, IQ4K{}) || pair(SourceQ4_Z{}, Q4Z{});
}

// Whether format F holds floats as the source has them.
template <class S, class F>
constexpr bool stays() {
  return (std::is_same_v<S, SourceF32> && std::is_same_v<F, F32>) ||
         (std::is_same_v<S, SourceF16> && std::is_same_v<F, F16>) ||
         (std::is_same_v<S, SourceBF16> && std::is_same_v<F, BF16>);
}

void check_scale(uint16_t half, size_t row, size_t column) {
  constexpr uint16_t kExponent = 0x7c00;
  if ((half & kExponent) == kExponent) refuse_value(half_to_float(half), row, column, "finite scales");
}

// A row of 256-value blocks, integers and scales as they are. The row's bytes in the tile are zero before.
template <class S, class F>
void carry_super_row(const uint8_t* data, size_t row, size_t cols, typename F::Group* tile) {
  const int lane = static_cast<int>(row % kTileRows);
  for (size_t g = 0; g < cols / kSuperGroup; ++g, data += S::kBytes) {
    SuperScales scales{};
    S::scales(data, scales);
    check_scale(scales.d, row, g * kSuperGroup);
    check_scale(scales.dmin, row, g * kSuperGroup);
    F::put_scales(tile[g], lane, scales);
    for (int b = 0; b < 8; ++b) {
      int8_t q[kBlock];
      S::quants(data, b, q);
      F::put_integers(tile[g], b, lane, q);
    }
  }
}

template <class S, class F>
void carry_row(const uint8_t* data, size_t row, size_t cols, typename F::Group* tile) {
  const int lane = static_cast<int>(row % kTileRows);
  const size_t n_blocks = round_up(cols, kQuantGroup) / kBlock;
  for (size_t b = 0; b < n_blocks; ++b) {
    Block block;
    if (b * kBlock >= cols) {
      block = padding<F>();
    } else {
      S::integers(data + b * kBlock / S::kValues * S::kBytes, static_cast<int>(b * kBlock % S::kValues / kBlock),
                  block);
      check_scale(block.d, row, b * kBlock);
      check_scale(block.m, row, b * kBlock);
    }
    F::put(tile[b / 2], static_cast<int>(b % 2), lane, block);
  }
}

// A row of floats that stay what they are.
template <class S, class F>
void copy_row(const uint8_t* data, size_t row, size_t cols, typename F::Group* tile) {
  const int lane = static_cast<int>(row % kTileRows);
  for (size_t c = 0; c < round_up(cols, kFloatGroup); ++c) {
    auto value = F::encode(0.0f);
    if (c < cols) {
      std::memcpy(&value, data + c * S::kBytes, S::kBytes);
      if (!std::isfinite(F::decode(value))) refuse_value(F::decode(value), row, c, "finite values");
    }
    tile[c / kFloatGroup].v[c % kFloatGroup][lane] = value;
  }
}

// Rows past the end of the matrix fill the last tile with zeros.
void clear_last_tile(Format format, size_t rows, size_t cols, uint8_t* packed) {
  if (rows % kTileRows == 0) return;
  const size_t bytes = tile_bytes(format, cols);
  std::memset(packed + rows / kTileRows * bytes, 0, bytes);
}

// High bits are put in one by one, on zeros.
void clear_all(Format format, size_t rows, size_t cols, uint8_t* packed) {
  std::memset(packed, 0, packed_bytes(format, rows, cols));
}

}  // namespace

const char* format_name(Format format) { return kFormatNames[static_cast<size_t>(format)]; }

std::optional<Format> find_format(std::string_view name) {
  for (size_t i = 1; i < kFormats; ++i) {
    if (name == kFormatNames[i]) return static_cast<Format>(i);
  }
  return std::nullopt;
}

const SourceInfo& source_info(Source source) { return kSourceInfos[static_cast<size_t>(source)]; }

std::optional<Source> find_source(std::string_view name) {
  for (size_t i = 0; i < kSources; ++i) {
    if (name == kSourceInfos[i].name) return static_cast<Source>(i);
  }
  return std::nullopt;
}

size_t group_cols(Format format) {
  return visit_format(format, []<class F>(F) { return static_cast<size_t>(F::kGroupCols); });
}

size_t tile_bytes(Format format, size_t cols) {
  return visit_format(
      format, [&]<class F>(F) { return round_up(cols, F::kGroupCols) / F::kGroupCols * sizeof(typename F::Group); });
}

size_t packed_bytes(Format format, size_t rows, size_t cols) {
  if (format == Format::vector) return rows * cols * sizeof(float);
  return round_up(rows, kTileRows) / kTileRows * tile_bytes(format, cols);
}

void pack(Format format, const float* values, size_t rows, size_t cols, uint8_t* packed) {
  clear_last_tile(format, rows, cols, packed);
  visit_format(format, [&]<class F>(F) {
    if constexpr (!takes_floats<F>) {
      refuse_floats(format_name(format));
    } else {
      std::vector<float> x(round_up(cols, F::kGroupCols));
      for (size_t row = 0; row < rows; ++row) {
        std::memcpy(x.data(), values + row * cols, cols * sizeof(float));
        check_finite(x.data(), row, cols);
        pack_row<F>(x.data(), row, cols, tile_of<F>(packed, row, cols));
      }
    }
  });
}

void repack(Source source, Format format, const uint8_t* data, size_t rows, size_t cols, uint8_t* packed) {
  if (group_cols(format) == kSuperGroup) {
    clear_all(format, rows, cols, packed);
  } else {
    clear_last_tile(format, rows, cols, packed);
  }
  visit_source(source, [&]<class S>(S) {
    visit_format(format, [&]<class F>(F) {
      const size_t row_bytes = cols / S::kValues * S::kBytes;
      std::vector<float> x(round_up(cols, F::kGroupCols));
      for (size_t row = 0; row < rows; ++row) {
        typename F::Group* tile = tile_of<F>(packed, row, cols);
        if constexpr (carries_over<S, F>() && is_super_format<F>) {
          carry_super_row<S, F>(data + row * row_bytes, row, cols, tile);
        } else if constexpr (carries_over<S, F>()) {
          carry_row<S, F>(data + row * row_bytes, row, cols, tile);
        } else if constexpr (stays<S, F>()) {
          copy_row<S, F>(data + row * row_bytes, row, cols, tile);
        } else if constexpr (!takes_floats<F>) {
          refuse_floats(format_name(format));
        } else {
          decode_row<S>(data + row * row_bytes, cols, x.data());
          check_finite(x.data(), row, cols);
          pack_row<F>(x.data(), row, cols, tile);
        }
      }
    });
  });
}

void dequantize(Source source, const uint8_t* data, size_t rows, size_t cols, float* values) {
  visit_source(source, [&]<class S>(S) {
    const size_t row_bytes = cols / S::kValues * S::kBytes;
    for (size_t row = 0; row < rows; ++row) decode_row<S>(data + row * row_bytes, cols, values + row * cols);
  });
}

void unpack_row(Format format, const uint8_t* packed, size_t cols, size_t row, float* values) {
  visit_format(format, [&]<class F>(F) {
    const typename F::Group* tile = tile_of<F>(const_cast<uint8_t*>(packed), row, cols);
    const int lane = static_cast<int>(row % kTileRows);
    for (size_t c = 0; c < cols; ++c) {
      values[c] = F::value(tile[c / F::kGroupCols], lane, static_cast<int>(c % F::kGroupCols));
    }
  });
}

}  // namespace pyinfer
