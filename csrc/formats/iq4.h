// iq4: indices of 16 levels in blocks of 32 columns with a half scale: value = d · kLevels[q]. GGUF's IQ4_NL blocks.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

// The levels of GGUF's IQ4 types.
alignas(16) constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct IQ4 {
  static constexpr int kGroupCols = kQuantGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 4;
  static constexpr int kBias = 0;
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
    const int b = column / kBlock;
    return half_to_float(group.d[b][row]) * (float)kLevels[get_nibble(group.q[b], row, column % kBlock)];
  }
};

template <>
constexpr bool is_codebook_format<IQ4> = true;

}  // namespace
}  // namespace pyinfer
