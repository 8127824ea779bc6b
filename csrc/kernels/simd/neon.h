// The vocabulary in Armv8.0: integer products by way of 16 bits.
#pragma once

#include "kernels/simd/neon_common.h"

namespace pyinfer {
namespace {

enum { kPanelRows = 6, kFloatRows = 4, kDepth = 4 };

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

// Kinds of integer weights.
struct U4 {};  // unsigned, 4 bits
struct U6 {};  // unsigned, 5 bits over runs of 32 columns or 6 over runs of 16
struct S8 {};  // signed bytes

// Eight columns of weights with a row's activations, two rows of four: what they start a sum with, and what they make of one.
struct NarrowStep {
  typedef int16x8_t Sum;
  PYINFER_INLINE static Halves<Sum> first(B w0, int8x16_t x0, B w1, int8x16_t x1) {
    return {add_low(mul_low(w0, x0), w1, x1), add_high(mul_high(w0, x0), w1, x1)};
  }
  PYINFER_INLINE static Halves<Sum> next(Halves<Sum> sum, B w0, int8x16_t x0, B w1, int8x16_t x1) {
    return {add_low(add_low(sum.low, w0, x0), w1, x1), add_high(add_high(sum.high, w0, x0), w1, x1)};
  }
};

// Two products of signed bytes reach 2 · 128 · 127 = 32512 in 16 bits: eight columns together, then widened.
struct WideStep {
  typedef I Sum;
  PYINFER_INLINE static Halves<Sum> first(B w0, int8x16_t x0, B w1, int8x16_t x1) {
    const Halves<int16x8_t> products = NarrowStep::first(w0, x0, w1, x1);
    return {vpaddlq_s16(products.low), vpaddlq_s16(products.high)};
  }
  PYINFER_INLINE static Halves<Sum> next(Halves<Sum> sum, B w0, int8x16_t x0, B w1, int8x16_t x1) {
    const Halves<int16x8_t> products = NarrowStep::first(w0, x0, w1, x1);
    return {vpadalq_s16(sum.low, products.low), vpadalq_s16(sum.high, products.high)};
  }
};

// The sums of a run. The first eight columns add to nothing, which spares the zeros.
template <class Step, int R>
struct SteppedDots {
  Halves<typename Step::Sum> sums[R];
  bool started;  // known to the compiler wherever it is asked

  template <class Offset>
  PYINFER_INLINE void start(Offset) {
    started = false;
  }
  template <int J>
  PYINFER_INLINE void add(B w0, B w1, const int8_t* x) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      const int8x16_t x0 = same_four(x + 4 * (J * R + r)), x1 = same_four(x + 4 * ((J + 1) * R + r));
      sums[r] = started ? Step::next(sums[r], w0, x0, w1, x1) : Step::first(w0, x0, w1, x1);
    }
    started = true;
  }
};

// In 16 bits, widened once. Of U4 eight products reach 8 · 15 · 127 = 15240 and pairs of such sums 30480; of U6 eight products of 5 bits
// reach 31496 and four of 6 bits 32004.
template <int R>
struct Dots<U4, R> : SteppedDots<NarrowStep, R> {
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset offset) const {
    return vpadalq_s16(offset(r), vpaddq_s16(this->sums[r].low, this->sums[r].high));
  }
};

template <int R>
struct Dots<U6, R> : SteppedDots<NarrowStep, R> {
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset offset) const {
    return i_add(offset(r), vpaddq_s32(vpaddlq_s16(this->sums[r].low), vpaddlq_s16(this->sums[r].high)));
  }
};

template <int R>
struct Dots<S8, R> : SteppedDots<WideStep, R> {
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset) const {
    return vpaddq_s32(this->sums[r].low, this->sums[r].high);
  }
};

}  // namespace
}  // namespace pyinfer
