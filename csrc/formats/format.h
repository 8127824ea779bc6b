// Packed matrices as a whole: sizes, packing from floats or from a source's blocks, and reading values back.
// Not for the token path, except for unpack_row (embedding look-up).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace pyinfer {

// The number in the file. `vector` is a plain run of floats; the others are matrices in tiles.
enum class Format : uint32_t {
  vector = 0,
#define PYINFER_FORMAT(name, type) name,
#include "formats/formats.inc"
#undef PYINFER_FORMAT
  count_
};
inline constexpr size_t kFormats = static_cast<size_t>(Format::count_);

enum class Source : uint32_t {
#define PYINFER_SOURCE(name, type, lands) name,
#include "formats/sources.inc"
#undef PYINFER_SOURCE
  count_
};
inline constexpr size_t kSources = static_cast<size_t>(Source::count_);

struct SourceInfo {
  const char* name;
  size_t values;  // a block
  size_t bytes;   // a block
  Format lands;
};

const char* format_name(Format format);
std::optional<Format> find_format(std::string_view name);  // matrices only
const SourceInfo& source_info(Source source);
std::optional<Source> find_source(std::string_view name);

size_t group_cols(Format format);  // columns that a packed row is padded to a multiple of
size_t tile_bytes(Format format, size_t cols);
// Bytes of a packed matrix, or of a vector of `cols`. Shapes are at most 2^32 − 1 each way and 2^48 values, so nothing wraps.
size_t packed_bytes(Format format, size_t rows, size_t cols);

// Values (rows, cols) into a packed matrix. Throws a request error that names the first value which the format cannot hold.
void pack(Format format, const float* values, size_t rows, size_t cols, uint8_t* packed);
// A source's blocks, row-major, into a packed matrix; `cols` is a multiple of the source's block.
// Integers are carried over where source and format agree, else values are decoded and packed.
void repack(Source source, Format format, const uint8_t* data, size_t rows, size_t cols, uint8_t* packed);
// A source's blocks as floats (rows, cols).
void dequantize(Source source, const uint8_t* data, size_t rows, size_t cols, float* values);
// One row of a packed matrix as floats (cols).
void unpack_row(Format format, const uint8_t* packed, size_t cols, size_t row, float* values);

}  // namespace pyinfer
