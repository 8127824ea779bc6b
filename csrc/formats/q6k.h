// q6k: int6 in runs of 16 columns with signed integer scales under one half for 256: value = d · scale · (q − 32).
// The integers of GGUF's Q6_K blocks as they are, in 212 bytes for 256 values instead of 210.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q6K {
  static constexpr int kGroupCols = kSuperGroup;
  static constexpr int kRun = 16;  // columns that share a scale
  static constexpr int kBits = 6;
  static constexpr int kBias = 32;
  static constexpr bool kHasMinimum = false;
  struct Group {
    uint16_t d[kTileRows];        // (row)
    uint8_t unused[32];           // zero; keeps what follows on cache lines
    int8_t scale[16][kTileRows];  // (run of 16 columns, row)
    uint8_t q[8][256];            // (block, see nibble_index)
    uint8_t high[8][128];         // (block, see pair_index)
  };

  static void put_scales(Group& group, int row, const SuperScales& scales) { put_scales_alone(group, row, scales); }

  // Integers of block `b`.
  static void put_integers(Group& group, int b, int row, const int8_t* q) {
    put_nibbles(group.q[b], row, q);
    put_pairs(group.high[b], row, q, 4);
  }

  static int integer(const Group& group, int row, int column) {
    const int b = column / kBlock, k = column % kBlock;
    return get_nibble(group.q[b], row, k) | (get_pair(group.high[b], row, k) << 4);
  }

  static float value(const Group& group, int row, int column) {
    const float d = half_to_float(group.d[row]) * (float)group.scale[column / kRun][row];
    return d * (float)(integer(group, row, column) - kBias);
  }
};

}  // namespace
}  // namespace pyinfer
