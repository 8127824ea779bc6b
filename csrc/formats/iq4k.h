// iq4k: indices of 16 levels in blocks of 32 columns with signed integer scales under one half for 256: value = d · scale · kLevels[q].
// The integers of GGUF's IQ4_XS blocks as they are, scales a byte each: 140 bytes for 256 values instead of 136.
#pragma once

#include "base/half.h"
#include "formats/iq4.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct IQ4K {
  static constexpr int kGroupCols = kSuperGroup;
  static constexpr int kRun = kBlock;  // columns that share a scale
  static constexpr int kBits = 4;
  static constexpr int kBias = 0;
  static constexpr bool kHasMinimum = false;
  struct Group {
    uint16_t d[kTileRows];       // (row)
    uint8_t unused[32];          // zero; keeps what follows on cache lines
    int8_t scale[8][kTileRows];  // (block, row), −32…31
    uint8_t q[8][256];           // (block, see nibble_index)
  };

  static void put_scales(Group& group, int row, const SuperScales& scales) { put_scales_alone(group, row, scales); }

  // Integers of block `b`, on bytes that are zero before.
  static void put_integers(Group& group, int b, int row, const int8_t* q) { put_nibbles(group.q[b], row, q); }

  static float value(const Group& group, int row, int column) {
    const int b = column / kBlock;
    const float d = half_to_float(group.d[row]) * (float)group.scale[b][row];
    return d * (float)kLevels[get_nibble(group.q[b], row, column % kBlock)];
  }
};

template <>
constexpr bool is_codebook_format<IQ4K> = true;

}  // namespace
}  // namespace pyinfer
