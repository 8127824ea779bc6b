// What the Arm sets share of the vocabulary: 4 lanes, a quarter of a weight tile a register, all of it in Armv8.0.
// Only the kinds of integer weights differ.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

// For what stands in an innermost loop and takes sums by reference. GCC stops inlining once a unit has grown by so much, and sums then
// live in memory.
#define PYINFER_INLINE inline __attribute__((always_inline))

namespace pyinfer {
namespace {

enum { kLanes = 4, kQueries = 6, kBroadcasts = 0, kRegisters = 32, kFastPairs = 0, kAskedBits = 1 };

typedef float32x4_t F;  // kLanes floats
typedef int32x4_t I;    // kLanes int32
typedef uint8x16_t B;   // 4 · kLanes bytes

inline F f_zero() { return vdupq_n_f32(0.0f); }
inline F f_set(float x) { return vdupq_n_f32(x); }
inline F f_load(const float* p) { return vld1q_f32(p); }
inline void f_store(float* p, F x) { vst1q_f32(p, x); }
inline F f_add(F a, F b) { return vaddq_f32(a, b); }
inline F f_sub(F a, F b) { return vsubq_f32(a, b); }
inline F f_mul(F a, F b) { return vmulq_f32(a, b); }
inline F f_div(F a, F b) { return vdivq_f32(a, b); }
inline F f_fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }  // a · b + c
// NaN where one is NaN.
inline F f_max(F a, F b) { return vmaxq_f32(a, b); }
inline F f_min(F a, F b) { return vminq_f32(a, b); }
// Half onto half, until one is left.
inline float f_sum(F a) { return vpadds_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a))); }
inline float f_hmax(F a) { return vmaxvq_f32(a); }
// 0 where x < limit, else y: y where x is NaN.
inline F f_keep_from(F y, F x, F limit) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, limit)));
}
inline F f_from_i(I a) { return vcvtq_f32_s32(a); }
inline I f_round(F a) { return vcvtnq_s32_f32(a); }  // to nearest, ties to even
// The same value, made where this stands: the compiler must not put off what it is loaded from.
inline F f_now(F a) {
  asm volatile("" : "+w"(a));
  return a;
}
inline F f_from_bits(I a) { return vreinterpretq_f32_s32(a); }
inline F f_load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void f_store_half(uint16_t* p, F a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
inline F f_load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

inline I i_set(int32_t x) { return vdupq_n_s32(x); }
inline I i_add(I a, I b) { return vaddq_s32(a, b); }
inline I i_sub(I a, I b) { return vsubq_s32(a, b); }
inline I i_and(I a, I b) { return vandq_s32(a, b); }
inline I i_shl(I a, int n) { return vshlq_s32(a, vdupq_n_s32(n)); }
inline I i_shr(I a, int n) {  // zeros come in
  return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
}
inline I i_sra(I a, int n) { return vshlq_s32(a, vdupq_n_s32(-n)); }  // signs come in
inline I i_load(const void* p) { return vld1q_s32((const int32_t*)p); }
inline uint8x8_t four_bytes(const void* p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return vreinterpret_u8_u32(vdup_n_u32(four));
}
inline I i_load_bytes(const uint8_t* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p)))));
}
inline I i_load_signed_bytes(const int8_t* p) {
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(p)))));
}
inline I i_max(I a, I b) { return vmaxq_s32(a, b); }
inline int32_t i_hmax(I a) { return vmaxvq_s32(a); }
inline int32_t i_sum(I a) { return vaddvq_s32(a); }
// The low byte of each lane.
inline void i_store_bytes(int8_t* p, I a) {
  const int16x4_t words = vmovn_s32(a);
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
  memcpy(p, &four, sizeof four);
}
// The low 16 bits of each lane.
inline void i_store_words(int16_t* p, I a) { vst1_s16(p, vmovn_s32(a)); }
// sum + the products of the two 16-bit integers of each lane with those at `x`.
inline I i_add_pairs(I sum, I pairs, const int16_t* x) {
  int32_t two;
  memcpy(&two, x, sizeof two);
  const int16x8_t words = vreinterpretq_s16_s32(pairs), factors = vreinterpretq_s16_s32(vdupq_n_s32(two));
  const I low = vmull_s16(vget_low_s16(words), vget_low_s16(factors)), high = vmull_high_s16(words, factors);
  return vaddq_s32(sum, vpaddq_s32(low, high));
}

inline B b_load(const void* p) { return vld1q_u8((const uint8_t*)p); }
inline B b_low_nibbles(B a) { return vandq_u8(a, vdupq_n_u8(15)); }
inline B b_high_nibbles(B a) { return vshrq_n_u8(a, 4); }
// Two bits from bit 2 · N on.
template <int N>
inline B b_pair(B a) {
  if constexpr (N > 0) a = vshrq_n_u8(a, 2 * N);
  return vandq_u8(a, vdupq_n_u8(3));
}
// table[a] byte by byte, a in 0…15.
inline B b_lookup(const int8_t (&table)[16], B a) { return vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(table)), a); }
inline I i_from_b(B a) { return vreinterpretq_s32_u8(a); }  // the same bits

// low | (high shifted by Shift, left if positive) & mask, byte by byte.
template <int Shift>
inline B b_insert(B low, B high, int mask) {
  if constexpr (Shift > 0) high = vshlq_n_u8(high, Shift);
  if constexpr (Shift < 0) high = vshrq_n_u8(high, -Shift);
  return vorrq_u8(low, vandq_u8(high, vdupq_n_u8((uint8_t)mask)));
}

// The four activations at `x` in all lanes.
inline int8x16_t same_four(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, sizeof four);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

}  // namespace
}  // namespace pyinfer
