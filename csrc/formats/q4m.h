// q4m: int4 in blocks of 32 columns with a half scale and a half minimum: value = d · q + m, q in 0…15.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q4M {
  static constexpr int kGroupCols = kQuantGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 4;
  static constexpr int kBias = 0;  // value = d · (q − kBias) + m
  static constexpr bool kHasMinimum = true;
  struct Group {
    uint16_t d[2][kTileRows];  // (block, row)
    uint16_t m[2][kTileRows];  // (block, row)
    uint8_t q[2][256];         // (block, see nibble_index)
  };

  static void put(Group& group, int block, int row, const Block& source) {
    group.d[block][row] = source.d;
    group.m[block][row] = source.m;
    put_nibbles(group.q[block], row, source.q);
  }

  static float value(const Group& group, int row, int column) {
    const int q = get_nibble(group.q[column / kBlock], row, column % kBlock) - kBias;
    const float d = half_to_float(group.d[column / kBlock][row]);
    return d * (float)q + half_to_float(group.m[column / kBlock][row]);
  }
};

}  // namespace
}  // namespace pyinfer
