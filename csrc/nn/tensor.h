// Views of weights. They own nothing; the mapped file behind them outlives them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/format.h"
#include "formats/tile.h"

namespace pyinfer {

inline constexpr size_t kTile = kTileRows;  // outputs of a matrix that stand together

// A packed matrix: `rows` outputs of `cols` inputs, in tiles of kTile rows.
struct Matrix {
  Format format;
  size_t rows;
  size_t cols;
  const uint8_t* tiles;
  size_t tile_bytes;
  size_t n_groups;  // column groups a tile

  static Matrix view(Format format, size_t rows, size_t cols, const uint8_t* data) {
    const size_t group = group_cols(format);
    return {format, rows, cols, data, pyinfer::tile_bytes(format, cols), (cols + group - 1) / group};
  }
  size_t n_tiles() const { return (rows + kTile - 1) / kTile; }
  bool is_float() const { return format == Format::f32 || format == Format::f16 || format == Format::bf16; }
};

}  // namespace pyinfer
