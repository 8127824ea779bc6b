// q4: int4 in blocks of 32 columns with a half scale: value = d · (q − 8), q in 0…15.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q4 {
  static constexpr int kGroupCols = kQuantGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 4;
  static constexpr int kBias = 8;  // value = d · (q − kBias)
  static constexpr bool kHasMinimum = false;
  struct Group {
    uint16_t d[2][kTileRows];  // (block, row)
    uint8_t q[2][256];         // (block, see nibble_index)
  };

  static void put(Group& group, int block, int row, const Block& source) {
    group.d[block][row] = source.d;
    put_nibbles(group.q[block], row, source.q);
  }

  static float value(const Group& group, int row, int column) {
    const int q = get_nibble(group.q[column / kBlock], row, column % kBlock) - kBias;
    const float d = half_to_float(group.d[column / kBlock][row]);
    return d * (float)q;
  }
};

}  // namespace
}  // namespace pyinfer
