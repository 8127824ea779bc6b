// f32: float32 values, four columns of 16 rows a group.
#pragma once

#include "base/half.h"
#include "formats/tile.h"

namespace pyinfer {
namespace {

struct F32 {
  static constexpr int kGroupCols = kFloatGroup;
  struct Group {
    float v[kFloatGroup][kTileRows];  // (column, row)
  };

  static float decode(float v) { return v; }
  static float encode(float x) { return x; }
  static float value(const Group& group, int row, int column) { return decode(group.v[column][row]); }
};

}  // namespace
}  // namespace pyinfer
