// The vocabulary in Armv8.2 with dot products and `smmla`, which multiplies two rows of eight activations with two weight rows of eight
// columns: twice the products of `sdot`. One row alone goes by `sdot`, which needs no weights paired.
#pragma once

#include "kernels/simd/neon_dot.h"

namespace pyinfer {
namespace {

enum { kPanelRows = 12, kFloatRows = 4, kDepth = 8 };

template <bool kOffset, int R>
struct PairDots {
  static constexpr int kPairs = (R + 1) / 2;
  I sums[kPairs][2];  // of rows r, r + 1 with weight rows 0, 1 and with 2, 3

  template <class Offset>
  PYINFER_INLINE void start(Offset offset) {
    PYINFER_UNROLL
    for (int p = 0; p < kPairs; ++p) sums[p][0] = sums[p][1] = kOffset ? start_of(offset, 2 * p) : i_set(0);
  }
  template <class Offset>
  static PYINFER_INLINE I start_of(Offset offset, int r) {
    return vcombine_s32(vget_low_s32(offset(r)), vget_low_s32(offset(r + 1 < R ? r + 1 : r)));
  }
  template <int J>
  PYINFER_INLINE void add(B w0, B w1, const int8_t* x) {
    const int32x4_t four = vreinterpretq_s32_u8(w0), next = vreinterpretq_s32_u8(w1);
    const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(four, next));
    const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(four, next));
    PYINFER_UNROLL
    for (int p = 0; p < kPairs; ++p) {
      const int8x16_t rows = two_rows(x + 8 * (J / 2 * R + 2 * p), 2 * p + 1 < R);
      sums[p][0] = vmmlaq_s32(sums[p][0], rows, low);
      sums[p][1] = vmmlaq_s32(sums[p][1], rows, high);
    }
  }
  static PYINFER_INLINE int8x16_t two_rows(const int8_t* x, bool two) {
    return two ? vld1q_s8(x) : vcombine_s8(vld1_s8(x), vld1_s8(x));
  }
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset) const {
    const int64x2_t low = vreinterpretq_s64_s32(sums[r / 2][0]), high = vreinterpretq_s64_s32(sums[r / 2][1]);
    return vreinterpretq_s32_s64(r % 2 == 0 ? vzip1q_s64(low, high) : vzip2q_s64(low, high));
  }
};

template <bool kOffset, int R>
struct Dots<Integers<kOffset>, R> : PairDots<kOffset, R> {};
template <bool kOffset>
struct Dots<Integers<kOffset>, 1> : LaneDots<kOffset, 1> {};

}  // namespace
}  // namespace pyinfer
