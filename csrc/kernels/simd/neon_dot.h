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
    add_four<J, 0>(as_signed(w0), x);
    add_four<J + 1, 0>(as_signed(w1), x);
  }
  template <int J, int r>
  PYINFER_INLINE void add_four(int8x16_t w, const int8_t* x) {
    constexpr int kAt = J * R + r;
    sums[r] = vdotq_laneq_s32(sums[r], w, vld1q_s8(x + kAt / 4 * 16), kAt % 4);
    if constexpr (r + 1 < R) add_four<J, r + 1>(w, x);
  }
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset) const {
    return sums[r];
  }
};

}  // namespace
}  // namespace pyinfer
