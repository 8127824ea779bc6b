// q4z: int4 in blocks of 32 columns with a half scale and an integer zero point: value = d · (q − z), q in 0…15, z in 0…255.
// What GPTQ and AWQ store, without the rounding of d · z to a half.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q4Z {
  static constexpr int kGroupCols = kQuantGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 4;
  static constexpr int kBias = 0;
  static constexpr bool kHasMinimum = true;  // −d · z
  struct Group {
    uint16_t d[2][kTileRows];  // (block, row)
    uint8_t z[2][kTileRows];   // (block, row)
    uint8_t unused[32];        // zero; keeps what follows on cache lines
    uint8_t q[2][256];         // (block, see nibble_index)
  };

  static void put(Group& group, int block, int row, const Block& source) {
    group.d[block][row] = source.d;
    group.z[block][row] = (uint8_t)source.m;
    group.unused[kTileRows * block + row] = 0;
    put_nibbles(group.q[block], row, source.q);
  }

  static float value(const Group& group, int row, int column) {
    const int b = column / kBlock;
    return half_to_float(group.d[b][row]) * (float)(get_nibble(group.q[b], row, column % kBlock) - group.z[b][row]);
  }
};

template <>
constexpr bool is_zero_point_format<Q4Z> = true;

}  // namespace
}  // namespace pyinfer
