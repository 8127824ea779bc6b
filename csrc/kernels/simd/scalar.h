// The vocabulary in plain C++: 4 lanes, for every machine. Short loops that a compiler may turn into whatever it has.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

namespace pyinfer {
namespace {

enum { kLanes = 4, kPanelRows = 4, kQueries = 2 };

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
inline F f_fma(F a, F b, F c) {  // two roundings: a machine without FMA would emulate one at a hundredfold cost
  return each<F>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline F f_max(F a, F b) {
  return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F f_min(F a, F b) {
  return each<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F f_abs(F a) {
  return each<F>([&](int i) { return fabsf(a.v[i]); });
}
inline float f_sum(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float f_hmax(F a) {
  const F swapped = {{a.v[2], a.v[3], a.v[0], a.v[1]}};
  const F pairs = f_max(a, swapped);
  return pairs.v[0] > pairs.v[1] ? pairs.v[0] : pairs.v[1];
}
// y where x ≥ limit, else 0.
inline F f_keep_from(F y, F x, F limit) {
  return each<F>([&](int i) { return x.v[i] >= limit.v[i] ? y.v[i] : 0.0f; });
}
inline F f_from_i(I a) {
  return each<F>([&](int i) { return (float)a.v[i]; });
}
// To nearest, ties to even: adding 1.5 · 2^23 leaves the integer in the low bits. For |x| < 2^22; NaN and larger values give junk, not traps.
inline I f_round(F a) {
  return each<I>([&](int i) { return (int32_t)(float_to_bits(a.v[i] + 12582912.0f) - 0x4b400000u); });
}
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
inline int32_t i_sum(I a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }
inline void i_store_bytes(int8_t* p, I a) {
  for (int i = 0; i < kLanes; ++i) p[i] = (int8_t)a.v[i];
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

// Dot products of one block: each lane adds the products of its four weight bytes with the four activations at `x`.
typedef I Dot4;
inline Dot4 dot4_start(int32_t start) { return i_set(start); }
inline Dot4 dot4_add(Dot4 dot, B weights, const int8_t* x) {
  for (int i = 0; i < 4 * kLanes; ++i) dot.v[i / 4] += weights.v[i] * x[i % 4];
  return dot;
}
inline I dot4_finish(Dot4 dot, int32_t) { return dot; }

typedef I Dot8;
typedef B Weights8;
inline Weights8 weights8(B a) { return a; }
inline Dot8 dot8_start(int32_t) { return i_set(0); }
inline Dot8 dot8_add(Dot8 dot, Weights8 weights, const int8_t* x) {
  for (int i = 0; i < 4 * kLanes; ++i) dot.v[i / 4] += (int8_t)weights.v[i] * x[i % 4];
  return dot;
}
inline I dot8_finish(Dot8 dot) { return dot; }

}  // namespace
}  // namespace pyinfer
