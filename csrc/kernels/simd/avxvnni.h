// The vocabulary in AVX2 with AVX-VNNI: `vpdpbusd` and `vpdpwssd` in 256 bits.
#pragma once

#include "kernels/simd/ymm.h"

namespace pyinfer {
namespace {

// sum + the products of the two 16-bit integers of each lane with those at `x`. As assembly: with the intrinsic GCC 12 keeps sums in memory, or
// moves them from register to register.
inline I i_add_pairs(I sum, I pairs, const int16_t* x) {
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(pairs), "x"(four_bytes(x)));
  return sum;
}

// Kinds of integer weights: how the four weight bytes of each lane meet the four activations at `x`, and add up over a run of columns.
// Unsigned, up to 6 bits. `offset` is added to the sum.
struct U6 {
  typedef B Weights;
  typedef I Sum;
  static Weights prepare(B a) { return a; }
  static Sum start(I) { return _mm256_setzero_si256(); }
  static Sum add(Sum sum, Weights w, const int8_t* x) { return _mm256_dpbusd_avx_epi32(sum, w, four_bytes(x)); }
  static I finish(Sum sum, I offset) { return _mm256_add_epi32(sum, offset); }
};
typedef U6 U4;

// Signed bytes, made unsigned by +128, which 16 times the −8 · Σ activations of `offset` take back.
struct S8 {
  typedef B Weights;
  typedef I Sum;
  static Weights prepare(B a) { return _mm256_xor_si256(a, _mm256_set1_epi8((char)0x80)); }
  static Sum start(I) { return _mm256_setzero_si256(); }
  static Sum add(Sum sum, Weights w, const int8_t* x) { return _mm256_dpbusd_avx_epi32(sum, w, four_bytes(x)); }
  static I finish(Sum sum, I offset) { return _mm256_add_epi32(sum, _mm256_slli_epi32(offset, 4)); }
};

}  // namespace
}  // namespace pyinfer
