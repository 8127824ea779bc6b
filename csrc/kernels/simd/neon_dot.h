// What the Arm sets with dot products share: `sdot` with the four activations of a row as a lane, so that one load brings four rows.
// Integers of up to 6 bits are as good signed as unsigned.
#pragma once

#include "kernels/simd/neon_common.h"

namespace pyinfer {
namespace {

template <class Kind, int R>
struct Dots;  // see kernels/matmul.inl.h

inline int8x16_t as_signed(B w) { return vreinterpretq_s8_u8(w); }

// Kinds of integer weights: unsigned ones start at an offset.
template <bool kOffset>
struct Integers {};
typedef Integers<true> U4;  // unsigned, 4 bits
typedef Integers<true> U6;  // unsigned, up to 6 bits
typedef Integers<false> S8;

// Adds the products with the four activations at x + 4 · at. The compiler must know `at`, so that loads of four such are shared.
PYINFER_INLINE I dot_lane(I sum, int8x16_t w, const int8_t* x, int at) {
  const int8x16_t four = vld1q_s8(x + at / 4 * 16);
  switch (at % 4) {
    case 0:
      return vdotq_laneq_s32(sum, w, four, 0);
    case 1:
      return vdotq_laneq_s32(sum, w, four, 1);
    case 2:
      return vdotq_laneq_s32(sum, w, four, 2);
    default:
      return vdotq_laneq_s32(sum, w, four, 3);
  }
}

template <bool kOffset, int R>
struct LaneDots {
  I sums[R];

  template <class Offset>
  PYINFER_INLINE void start(Offset offset) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = kOffset ? offset(r) : i_set(0);
  }
  template <int J>
  PYINFER_INLINE void add(B w0, B w1, const int8_t* x) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = dot_lane(sums[r], as_signed(w0), x, J * R + r);
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = dot_lane(sums[r], as_signed(w1), x, (J + 1) * R + r);
  }
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset) const {
    return sums[r];
  }
};

}  // namespace
}  // namespace pyinfer
