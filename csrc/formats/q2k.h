// q2k: int2 in runs of 16 columns with 4-bit scales and minima under two halves for 256: value = d · scale · q − dmin · least.
// The integers of GGUF's Q2_K blocks as they are, in the same 84 bytes for 256 values.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q2K {
  static constexpr int kGroupCols = kSuperGroup;
  static constexpr int kRun = 16;  // columns that share a scale
  static constexpr int kBits = 2;
  static constexpr int kBias = 0;
  static constexpr bool kHasMinimum = true;
  struct Group {
    uint16_t d[kTileRows];               // (row)
    uint16_t dmin[kTileRows];            // (row)
    uint8_t scale_least[16][kTileRows];  // (run of 16 columns, row), low nibble the scale, high nibble the minimum
    uint8_t q[8][128];                   // (block, see pair_index)
  };

  static void put_scales(Group& group, int row, const SuperScales& scales) {
    group.d[row] = scales.d;
    group.dmin[row] = scales.dmin;
    for (int run = 0; run < 16; ++run) {
      group.scale_least[run][row] = (uint8_t)(scales.scale[run] | (scales.least[run] << 4));
    }
  }

  // Integers of block `b`.
  static void put_integers(Group& group, int b, int row, const int8_t* q) { put_pairs(group.q[b], row, q, 0); }

  static float value(const Group& group, int row, int column) {
    const int factors = group.scale_least[column / kRun][row];
    const float d = half_to_float(group.d[row]) * (float)(factors & 15);
    const int q = get_pair(group.q[column / kBlock], row, column % kBlock);
    return d * (float)q - half_to_float(group.dmin[row]) * (float)(factors >> 4);
  }
};

}  // namespace
}  // namespace pyinfer
