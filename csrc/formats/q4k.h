// q4k: int4 in blocks of 32 columns with integer scales and minima under two halves for 256: value = d · scale · q − dmin · least.
// The integers of GGUF's Q4_K blocks as they are, scales a byte each: 148 bytes for 256 values instead of 144.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q4K {
  static constexpr int kGroupCols = kSuperGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 4;
  static constexpr int kBias = 0;
  static constexpr bool kHasMinimum = true;
  struct Group {
    uint16_t d[kTileRows];        // (row)
    uint16_t dmin[kTileRows];     // (row)
    uint8_t scale[8][kTileRows];  // (block, row), 0…63
    uint8_t least[8][kTileRows];  // (block, row), 0…63
    uint8_t q[8][256];            // (block, see nibble_index)
  };

  static void put_scales(Group& group, int row, const SuperScales& scales) {
    put_scales_and_minima(group, row, scales);
  }

  // Integers of block `b`, on bytes that are zero before.
  static void put_integers(Group& group, int b, int row, const int8_t* q) { put_nibbles(group.q[b], row, q); }

  static int integer(const Group& group, int row, int column) {
    return get_nibble(group.q[column / kBlock], row, column % kBlock);
  }

  static float value(const Group& group, int row, int column) {
    const int b = column / kBlock;
    const float d = half_to_float(group.d[row]) * (float)group.scale[b][row];
    return d * (float)integer(group, row, column) - half_to_float(group.dmin[row]) * (float)group.least[b][row];
  }
};

}  // namespace
}  // namespace pyinfer
