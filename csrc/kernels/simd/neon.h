// The vocabulary in Armv8.0: integer products by way of 16 bits.
#pragma once

#include "kernels/simd/neon_common.h"

namespace pyinfer {
namespace {

enum { kPanelRows = 6, kDepth = 4 };

template <class Kind, int R>
struct Dots;  // see kernels/matmul.inl.h

// Four columns of rows 0 and 1, and of rows 2 and 3, in 16 or 32 bits.
template <class V>
struct Halves {
  V low, high;
};

inline int8x16_t as_signed(B w) { return vreinterpretq_s8_u8(w); }
inline int16x8_t mul_low(B w, int8x16_t x) { return vmull_s8(vget_low_s8(as_signed(w)), vget_low_s8(x)); }
inline int16x8_t mul_high(B w, int8x16_t x) { return vmull_high_s8(as_signed(w), x); }
inline int16x8_t add_low(int16x8_t sum, B w, int8x16_t x) {
  return vmlal_s8(sum, vget_low_s8(as_signed(w)), vget_low_s8(x));
}
inline int16x8_t add_high(int16x8_t sum, B w, int8x16_t x) { return vmlal_high_s8(sum, as_signed(w), x); }

// Kinds of integer weights: how the four weight bytes of each lane meet the four activations at `x`, and add up over a run of columns.
// Unsigned, 4 bits: eight products reach 8 · 15 · 127 = 15240 in 16 bits and pairs of their sums 30480, so they are widened once a block.
struct U4 {
  typedef B Weights;
  typedef Halves<int16x8_t> Sum;
  static Weights prepare(B a) { return a; }
  static Sum start(I) { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
  static Sum add(Sum sum, Weights w, const int8_t* x) {
    const int8x16_t four = same_four(x);
    return {add_low(sum.low, w, four), add_high(sum.high, w, four)};
  }
  static PYINFER_INLINE I finish(Sum sum, I offset) { return vpadalq_s16(offset, vpaddq_s16(sum.low, sum.high)); }
};

struct U6 {};  // unsigned, up to 6 bits
struct S8 {};  // signed bytes

// Two products reach 2 · 128 · 127 = 32512 in 16 bits: eight columns together, then widened.
template <int R>
struct PairedDots {
  Halves<I> sums[R];

  template <class Offset>
  PYINFER_INLINE void start(Offset) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = {i_set(0), i_set(0)};
  }
  template <int J>
  PYINFER_INLINE void add(B w0, B w1, const int8_t* x) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      const int8x16_t x0 = same_four(x + 4 * (J * R + r)), x1 = same_four(x + 4 * ((J + 1) * R + r));
      sums[r].low = vpadalq_s16(sums[r].low, add_low(mul_low(w0, x0), w1, x1));
      sums[r].high = vpadalq_s16(sums[r].high, add_high(mul_high(w0, x0), w1, x1));
    }
  }
  PYINFER_INLINE I sum(int r) const { return vpaddq_s32(sums[r].low, sums[r].high); }
};

template <int R>
struct Dots<U6, R> : PairedDots<R> {
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset offset) const {
    return i_add(this->sum(r), offset(r));
  }
};

template <int R>
struct Dots<S8, R> : PairedDots<R> {
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset) const {
    return this->sum(r);
  }
};

}  // namespace
}  // namespace pyinfer
