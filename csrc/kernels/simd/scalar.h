// The vocabulary in plain C++: 4 lanes, for every machine. Short loops that a compiler may turn into whatever it has.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

namespace pyinfer {
namespace {

enum {
  kLanes = 4,
  kPanelRows = 4,
  kFloatRows = 4,
  kDepth = 4,
  kQueries = 2,
  kBroadcasts = 0,
  kRegisters = 16,
  kFastPairs = 0,
  kAskedBits = 1
};

struct F {
  float v[kLanes];
};
struct I {
  int32_t v[kLanes];
};
struct B {
  uint8_t v[4 * kLanes];
};

template <class V, class Each>
inline V each(Each value) {
  V result;
  for (int i = 0; i < kLanes; ++i) result.v[i] = value(i);
  return result;
}

inline F f_set(float x) {
  return each<F>([=](int) { return x; });
}
inline F f_zero() { return f_set(0.0f); }
inline F f_load(const float* p) {
  return each<F>([=](int i) { return p[i]; });
}
inline void f_store(float* p, F x) { memcpy(p, x.v, sizeof x.v); }
inline F f_add(F a, F b) {
  return each<F>([&](int i) { return a.v[i] + b.v[i]; });
}
inline F f_sub(F a, F b) {
  return each<F>([&](int i) { return a.v[i] - b.v[i]; });
}
inline F f_mul(F a, F b) {
  return each<F>([&](int i) { return a.v[i] * b.v[i]; });
}
inline F f_div(F a, F b) {
  return each<F>([&](int i) { return a.v[i] / b.v[i]; });
}
// a · b + c, rounded once. Without such an instruction by way of doubles, which hold the product exactly: rounding their sum to a double,
// then to a float, is as good unless the double lies halfway between two floats, or the float is subnormal. There the sum is rounded to
// odd instead: where it is not exact and its last bit is even, it goes one step towards the exact value (Boldo and Melquiond, Emulation
// of FMA and correctly rounded sums, 2008).
inline float fused_by_odd(float a, float b, float c) {
  const double product = (double)a * (double)b, addend = (double)c, sum = product + addend;
  const double added = sum - product, error = (product - (sum - added)) + (addend - added);
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  const uint64_t is_even = ~bits & 1;
  const bool is_inexact = error > 0 || error < 0;  // false for NaN, which comes from an infinity
  if (is_inexact) bits += (error > 0) == (sum > 0) ? is_even : -is_even;
  double odd;
  memcpy(&odd, &bits, sizeof odd);
  return (float)odd;
}
inline F f_fma(F a, F b, F c) {
#if defined(__FP_FAST_FMAF)
  return each<F>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
#else
  double sums[kLanes];
  int64_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) sums[i] = (double)a.v[i] * (double)b.v[i] + (double)c.v[i];
  memcpy(bits, sums, sizeof bits);
  int32_t hard = 0;  // without branches and in 32 bits, so that a compiler makes vector code
  for (int i = 0; i < kLanes; ++i) {
    const int32_t low = (int32_t)bits[i] & 0x1fffffff, high = (int32_t)(bits[i] >> 32) & 0x7fffffff;
    hard |= (int32_t)(low == 0x10000000) | ((int32_t)(high > 0) & (int32_t)(high < 0x38100000));  // 2^-126
  }
  if (__builtin_expect(hard, 0)) return each<F>([&](int i) { return fused_by_odd(a.v[i], b.v[i], c.v[i]); });
  return each<F>([&](int i) { return (float)sums[i]; });
#endif
}
// The second where one is NaN.
inline F f_max(F a, F b) {
  return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F f_min(F a, F b) {
  return each<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// Half onto half, until one is left.
inline float f_sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float f_hmax(F a) {
  const F swapped = {{a.v[2], a.v[3], a.v[0], a.v[1]}};
  const F pairs = f_max(a, swapped);
  return pairs.v[0] > pairs.v[1] ? pairs.v[0] : pairs.v[1];
}
// 0 where x < limit, else y: y where x is NaN.
inline F f_keep_from(F y, F x, F limit) {
  return each<F>([&](int i) { return x.v[i] < limit.v[i] ? 0.0f : y.v[i]; });
}
inline F f_from_i(I a) {
  return each<F>([&](int i) { return (float)a.v[i]; });
}
// To nearest, ties to even: adding 1.5 · 2^23 leaves the integer in the low bits. For |x| < 2^22; NaN and larger values give junk, not traps.
inline I f_round(F a) {
  return each<I>([&](int i) { return (int32_t)(float_to_bits(a.v[i] + 12582912.0f) - 0x4b400000u); });
}
inline F f_now(F a) { return a; }
inline F f_from_bits(I a) {
  return each<F>([&](int i) { return bits_to_float((uint32_t)a.v[i]); });
}
inline F f_load_half(const uint16_t* p) {
  return each<F>([=](int i) { return half_to_float(p[i]); });
}
inline void f_store_half(uint16_t* p, F a) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(a.v[i]);
}
inline F f_load_bf16(const uint16_t* p) {
  return each<F>([=](int i) { return bf16_to_float(p[i]); });
}

inline I i_set(int32_t x) {
  return each<I>([=](int) { return x; });
}
inline I i_add(I a, I b) {
  return each<I>([&](int i) { return a.v[i] + b.v[i]; });
}
inline I i_and(I a, I b) {
  return each<I>([&](int i) { return a.v[i] & b.v[i]; });
}
inline I i_shl(I a, int n) {
  return each<I>([&](int i) { return (int32_t)((uint32_t)a.v[i] << n); });
}
inline I i_shr(I a, int n) {  // zeros come in
  return each<I>([&](int i) { return (int32_t)((uint32_t)a.v[i] >> n); });
}
inline I i_sra(I a, int n) {  // signs come in
  return each<I>([&](int i) { return a.v[i] >> n; });
}
inline I i_load(const void* p) {
  I result;
  memcpy(result.v, p, sizeof result.v);
  return result;
}
inline I i_sub(I a, I b) {
  return each<I>([&](int i) { return a.v[i] - b.v[i]; });
}
inline I i_load_bytes(const uint8_t* p) {
  return each<I>([=](int i) { return (int32_t)p[i]; });
}
inline I i_load_signed_bytes(const int8_t* p) {
  return each<I>([=](int i) { return (int32_t)p[i]; });
}
inline I i_max(I a, I b) {
  return each<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline int32_t i_hmax(I a) {
  const I pairs = i_max(a, {{a.v[2], a.v[3], a.v[0], a.v[1]}});
  return pairs.v[0] > pairs.v[1] ? pairs.v[0] : pairs.v[1];
}
inline int32_t i_sum(I a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }
inline void i_store_bytes(int8_t* p, I a) {
  for (int i = 0; i < kLanes; ++i) p[i] = (int8_t)a.v[i];
}

// The low 16 bits of each lane; lanes are within 16 bits.
inline void i_store_words(int16_t* p, I a) {
  for (int i = 0; i < kLanes; ++i) p[i] = (int16_t)a.v[i];
}
// sum + the products of the two 16-bit integers of each lane with those at `x`.
inline I i_add_pairs(I sum, I pairs, const int16_t* x) {
  int16_t words[2 * kLanes];
  memcpy(words, pairs.v, sizeof words);
  return each<I>([&](int i) { return sum.v[i] + words[2 * i] * x[0] + words[2 * i + 1] * x[1]; });
}

inline B b_load(const void* p) {
  B result;
  memcpy(result.v, p, sizeof result.v);
  return result;
}
inline B b_low_nibbles(B a) {
  for (uint8_t& byte : a.v) byte &= 15;
  return a;
}
inline B b_high_nibbles(B a) {
  for (uint8_t& byte : a.v) byte = (uint8_t)(byte >> 4);
  return a;
}
// Two bits from bit 2 · N on.
template <int N>
inline B b_pair(B a) {
  for (uint8_t& byte : a.v) byte = (uint8_t)((byte >> (2 * N)) & 3);
  return a;
}
// table[a] byte by byte, a in 0…15.
inline B b_lookup(const int8_t (&table)[16], B a) {
  for (uint8_t& byte : a.v) byte = (uint8_t)table[byte];
  return a;
}
inline I i_from_b(B a) { return i_load(a.v); }  // the same bits

// low | (high shifted by Shift, left if positive) & mask, byte by byte.
template <int Shift>
inline B b_insert(B low, B high, int mask) {
  for (int i = 0; i < 4 * kLanes; ++i) {
    const int shifted = Shift >= 0 ? high.v[i] << (Shift >= 0 ? Shift : 0) : high.v[i] >> (Shift < 0 ? -Shift : 0);
    low.v[i] = (uint8_t)(low.v[i] | (shifted & mask));
  }
  return low;
}

// Kinds of integer weights: how the four weight bytes of each lane meet the four activations at `x`, and add up over a run of columns.
// Unsigned, up to 6 bits. `offset` is where the sum starts.
struct U6 {
  typedef B Weights;
  typedef I Sum;
  static Weights prepare(B a) { return a; }
  static Sum start(I offset) { return offset; }
  static Sum add(Sum sum, Weights w, const int8_t* x) {
    for (int i = 0; i < 4 * kLanes; ++i) sum.v[i / 4] += w.v[i] * x[i % 4];
    return sum;
  }
  static I finish(Sum sum, I) { return sum; }
};
typedef U6 U4;

// Signed bytes.
struct S8 {
  typedef B Weights;
  typedef I Sum;
  static Weights prepare(B a) { return a; }
  static Sum start(I) { return i_set(0); }
  static Sum add(Sum sum, Weights w, const int8_t* x) {
    for (int i = 0; i < 4 * kLanes; ++i) sum.v[i / 4] += (int8_t)w.v[i] * x[i % 4];
    return sum;
  }
  static I finish(Sum sum, I) { return sum; }
};

}  // namespace
}  // namespace pyinfer
