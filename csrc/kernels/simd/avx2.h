// The vocabulary in AVX2 with FMA and F16C, without VNNI: integer products by way of 16 bits.
#pragma once

#include "kernels/simd/ymm.h"

namespace pyinfer {
namespace {

// Additions in the order they are written: GCC 12 rearranges a run of them to a tree, whose leaves do not fit the registers.
inline __m256i add_words(__m256i sum, __m256i a) {
  sum = _mm256_add_epi16(sum, a);
  asm("" : "+x"(sum));
  return sum;
}
inline I add_in_order(I sum, I a) {
  sum = _mm256_add_epi32(sum, a);
  asm("" : "+x"(sum));
  return sum;
}

// sum + the products of the two 16-bit integers of each lane with those at `x`. The addition is written as assembly: GCC 12 keeps twelve such
// sums in memory, or moves them from register to register.
inline I i_add_pairs(I sum, I pairs, const int16_t* x) {
  const I products = _mm256_madd_epi16(pairs, four_bytes(x));
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
  return sum;
}

inline I widen_pairs(__m256i a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }

// Kinds of integer weights: how the four weight bytes of each lane meet the four activations at `x`, and add up over a run of columns.
// Unsigned, 4 bits: a pair of products is at most 2 · 15 · 127 in magnitude, so the eight pairs that meet in one 16-bit lane reach
// 30480 and cannot overflow; they are widened once a block. `offset` is added to the sum.
struct U4 {
  typedef B Weights;
  typedef __m256i Sum;
  static Weights prepare(B a) { return a; }
  static Sum start(I) { return _mm256_setzero_si256(); }
  static Sum add(Sum sum, Weights w, const int8_t* x) { return add_words(sum, _mm256_maddubs_epi16(w, four_bytes(x))); }
  static I finish(Sum sum, I offset) { return _mm256_add_epi32(widen_pairs(sum), offset); }
};

// Unsigned, up to 6 bits: two pairs are at most 4 · 63 · 127 = 32004, so eight columns are widened together.
struct U6 {};
template <class Kind, int R>
struct Dots;  // see kernels/matmul.inl.h
template <int R>
struct Dots<U6, R> {
  I sums[R];

  template <class Offset>
  PYINFER_INLINE void start(Offset offset) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = offset(r);
  }
  template <int J>
  PYINFER_INLINE void add(B w0, B w1, const int8_t* x) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256i words = _mm256_maddubs_epi16(w0, four_bytes(x + 4 * (J * R + r)));
      const __m256i next = _mm256_maddubs_epi16(w1, four_bytes(x + 4 * ((J + 1) * R + r)));
      sums[r] = add_in_order(sums[r], widen_pairs(_mm256_add_epi16(words, next)));
    }
  }
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset) const {
    return sums[r];
  }
};

// Signed bytes: |w| as the unsigned factor, the activation takes w's sign. A pair is at most 2 · 128 · 127 = 32512.
struct S8 {
  struct Weights {
    __m256i magnitude, sign;
  };
  typedef I Sum;
  static Weights prepare(B a) { return {_mm256_abs_epi8(a), a}; }
  static Sum start(I) { return _mm256_setzero_si256(); }
  static Sum add(Sum sum, Weights w, const int8_t* x) {
    const __m256i signed_x = _mm256_sign_epi8(four_bytes(x), w.sign);
    return add_in_order(sum, widen_pairs(_mm256_maddubs_epi16(w.magnitude, signed_x)));
  }
  static I finish(Sum sum, I) { return sum; }
};

}  // namespace
}  // namespace pyinfer
