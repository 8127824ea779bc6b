// q3k: int3 in runs of 16 columns with signed integer scales under one half for 256: value = d · scale · (q − 4).
// The integers of GGUF's Q3_K blocks as they are, scales a byte each: 116 bytes for 256 values instead of 110.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct Q3K {
  static constexpr int kGroupCols = kSuperGroup;
  static constexpr int kRun = 16;  // columns that share a scale
  static constexpr int kBits = 3;
  static constexpr int kBias = 4;
  static constexpr bool kHasMinimum = false;
  struct Group {
    uint16_t d[kTileRows];        // (row)
    uint8_t unused[32];           // zero; keeps what follows on cache lines
    int8_t scale[16][kTileRows];  // (run of 16 columns, row), −32…31
    uint8_t q[8][128];            // (block, see pair_index)
    uint8_t high[8][64];          // (block, see bit_index)
  };

  static void put_scales(Group& group, int row, const SuperScales& scales) { put_scales_alone(group, row, scales); }

  // Integers of block `b`.
  static void put_integers(Group& group, int b, int row, const int8_t* q) {
    put_pairs(group.q[b], row, q, 0);
    put_bits(group.high[b], row, q, 2);
  }

  static float value(const Group& group, int row, int column) {
    const int b = column / kBlock, k = column % kBlock;
    const float d = half_to_float(group.d[row]) * (float)group.scale[column / kRun][row];
    const int q = get_pair(group.q[b], row, k) | (get_bit(group.high[b], row, k) << 2);
    return d * (float)(q - kBias);
  }
};

}  // namespace
}  // namespace pyinfer
