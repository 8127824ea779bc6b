// f16: IEEE half values, four columns of 16 rows a group.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct F16 {
  static constexpr int kGroupCols = kFloatGroup;
  static constexpr bool kIsHalf = true;
  struct Group {
    uint16_t v[kFloatGroup][kTileRows];  // (column, row)
  };

  static float decode(uint16_t v) { return half_to_float(v); }
  static uint16_t encode(float x) { return float_to_half(x); }
  static float value(const Group& group, int row, int column) { return decode(group.v[column][row]); }
};

}  // namespace
}  // namespace pyinfer
