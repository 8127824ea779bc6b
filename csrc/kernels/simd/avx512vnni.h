// The vocabulary in AVX-512 with VNNI.
#pragma once

#include "kernels/simd/zmm.h"

namespace pyinfer {
namespace {

enum { kPanelRows = 12, kDepth = 4, kAskedBits = 1 };

}  // namespace
}  // namespace pyinfer
