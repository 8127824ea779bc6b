// The vocabulary in Armv8.2 with dot products.
#pragma once

#include "kernels/simd/neon_dot.h"

namespace pyinfer {
namespace {

enum { kPanelRows = 12, kFloatRows = 4, kDepth = 4 };

template <bool kOffset, int R>
struct Dots<Integers<kOffset>, R> : LaneDots<kOffset, R> {};

}  // namespace
}  // namespace pyinfer
