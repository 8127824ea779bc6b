// Views of weights. They own nothing; the mapped file behind them outlives them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/format.h"

namespace pyinfer {

// A packed matrix: `rows` outputs of `cols` inputs, in tiles of 16 rows.
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
  size_t n_tiles() const { return (rows + 15) / 16; }
  bool is_float() const { return format == Format::f32 || format == Format::f16 || format == Format::bf16; }
};

}  // namespace pyinfer
