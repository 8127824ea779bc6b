// q5k: int5 in blocks of 32 columns with integer scales and minima under two halves for 256: value = d · scale · q − dmin · least.
// The integers of GGUF's Q5_K blocks as they are, scales a byte each: 180 bytes for 256 values instead of 176.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q5K {
  static constexpr int kGroupCols = kSuperGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 5;
  static constexpr int kBias = 0;
  static constexpr bool kHasMinimum = true;
  struct Group {
    uint16_t d[kTileRows];        // (row)
    uint16_t dmin[kTileRows];     // (row)
    uint8_t scale[8][kTileRows];  // (block, row), 0…63
    uint8_t least[8][kTileRows];  // (block, row), 0…63
    uint8_t q[8][256];            // (block, see nibble_index)
    uint8_t high[8][64];          // (block, see bit_index)
  };

  static void put_scales(Group& group, int row, const SuperScales& scales) {
    put_scales_and_minima(group, row, scales);
  }

  // Integers of block `b`.
  static void put_integers(Group& group, int b, int row, const int8_t* q) {
    put_nibbles(group.q[b], row, q);
    put_bits(group.high[b], row, q, 4);
  }

  static int integer(const Group& group, int row, int column) {
    const int b = column / kBlock, k = column % kBlock;
    return get_nibble(group.q[b], row, k) | (get_bit(group.high[b], row, k) << 4);
  }

  static float value(const Group& group, int row, int column) {
    const int b = column / kBlock;
    const float d = half_to_float(group.d[row]) * (float)group.scale[b][row];
    return d * (float)integer(group, row, column) - half_to_float(group.dmin[row]) * (float)group.least[b][row];
  }
};

}  // namespace
}  // namespace pyinfer
