// What the instruction sets with AVX-512 (F, BW, DQ, VL) and VNNI share of the vocabulary: 16 lanes, one weight tile a register.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace pyinfer {
namespace {

enum { kLanes = 16, kFloatRows = 6, kQueries = 24, kBroadcasts = 1, kRegisters = 32, kFastPairs = 1 };

typedef __m512 F;   // kLanes floats
typedef __m512i I;  // kLanes int32
typedef __m512i B;  // 4 · kLanes bytes

inline F f_zero() { return _mm512_setzero_ps(); }
inline F f_set(float x) { return _mm512_set1_ps(x); }
inline F f_load(const float* p) { return _mm512_loadu_ps(p); }
inline void f_store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F f_add(F a, F b) { return _mm512_add_ps(a, b); }
inline F f_sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F f_mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F f_div(F a, F b) { return _mm512_div_ps(a, b); }
inline F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a · b + c
// The second where one is NaN.
inline F f_max(F a, F b) { return _mm512_max_ps(a, b); }
inline F f_min(F a, F b) { return _mm512_min_ps(a, b); }
// Half onto half, until one is left.
inline float f_sum(F a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float f_hmax(F a) { return _mm512_reduce_max_ps(a); }
// 0 where x < limit, else y: y where x is NaN.
inline F f_keep_from(F y, F x, F limit) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), y); }
inline F f_from_i(I a) { return _mm512_cvtepi32_ps(a); }
inline I f_round(F a) { return _mm512_cvtps_epi32(a); }  // to nearest, ties to even
// The same value, made where this stands: the compiler must not put off what it is loaded from.
inline F f_now(F a) {
  asm volatile("" : "+v"(a));
  return a;
}
inline F f_from_bits(I a) { return _mm512_castsi512_ps(a); }
inline F f_load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void f_store_half(uint16_t* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F f_load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

inline I i_set(int32_t x) { return _mm512_set1_epi32(x); }
inline I i_add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I i_and(I a, I b) { return _mm512_and_si512(a, b); }
inline I i_shl(I a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
inline I i_shr(I a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }  // zeros come in
inline I i_sra(I a, int n) { return _mm512_sra_epi32(a, _mm_cvtsi32_si128(n)); }  // signs come in
inline I i_load(const void* p) { return _mm512_loadu_si512(p); }
inline I i_sub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I i_load_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline I i_load_signed_bytes(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline I i_max(I a, I b) { return _mm512_max_epi32(a, b); }
inline int32_t i_hmax(I a) { return _mm512_reduce_max_epi32(a); }
// Of lanes within −128…127, as unsigned bytes: +128 each, taken back from the sum.
inline int32_t i_sum(I a) {
  const __m128i bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(a), _mm_set1_epi8((char)0x80));
  const __m128i eights = _mm_sad_epu8(bytes, _mm_setzero_si128());
  return _mm_cvtsi128_si32(_mm_add_epi32(eights, _mm_unpackhi_epi64(eights, eights))) - 128 * kLanes;
}
inline void i_store_bytes(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }
// The low 16 bits of each lane.
inline void i_store_words(int16_t* p, I a) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(a)); }

inline B b_load(const void* p) { return _mm512_loadu_si512(p); }
inline B b_low_nibbles(B a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline B b_high_nibbles(B a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
// Two bits from bit 2 · N on.
template <int N>
inline B b_pair(B a) {
  return _mm512_and_si512(_mm512_srli_epi16(a, 2 * N), _mm512_set1_epi8(3));
}
// table[a] byte by byte, a in 0…15.
inline B b_lookup(const int8_t (&table)[16], B a) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), a);
}
inline I i_from_b(B a) { return a; }  // the same bits

// low | (high shifted by Shift, left if positive) & mask, byte by byte; bits that cross a byte are masked away.
template <int Shift>
inline B b_insert(B low, B high, int mask) {
  const B shifted =
      Shift >= 0 ? _mm512_slli_epi16(high, Shift >= 0 ? Shift : 0) : _mm512_srli_epi16(high, Shift < 0 ? -Shift : 0);
  return _mm512_ternarylogic_epi32(low, shifted, _mm512_set1_epi8((char)mask), 0xF8);
}

typedef int32_t __attribute__((may_alias)) Four;  // four bytes that are read as one lane

// dot += w · x over the four bytes of each lane, the same four activations at `x` in all lanes. As a statement of assembly because
// GCC 12 does not fold the broadcast into the instruction and spends a register and an instruction on each.
inline I dot_unsigned(I dot, B w, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(dot) : "v"(w), "m"(*(const Four*)x));
  return dot;
}
// sum + the products of the two 16-bit integers of each lane with those at `x`; likewise.
inline I i_add_pairs(I sum, I pairs, const int16_t* x) {
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(pairs), "m"(*(const Four*)x));
  return sum;
}

// Kinds of integer weights: how the four weight bytes of each lane meet the four activations at `x`, and add up over a run of columns.
// Unsigned, up to 6 bits. `offset` is where the sum starts.
struct U6 {
  typedef B Weights;
  typedef I Sum;
  static Weights prepare(B a) { return a; }
  static Sum start(I offset) { return offset; }
  static Sum add(Sum sum, Weights w, const int8_t* x) { return dot_unsigned(sum, w, x); }
  static I finish(Sum sum, I) { return sum; }
};
typedef U6 U4;

// Signed bytes, made unsigned by +128, which 16 times the −8 · Σ activations of `offset` take back.
struct S8 {
  typedef B Weights;
  typedef I Sum;
  static Weights prepare(B a) { return _mm512_xor_si512(a, _mm512_set1_epi8((char)0x80)); }
  static Sum start(I offset) { return _mm512_slli_epi32(offset, 4); }
  static Sum add(Sum sum, Weights w, const int8_t* x) { return dot_unsigned(sum, w, x); }
  static I finish(Sum sum, I) { return sum; }
};

}  // namespace
}  // namespace pyinfer
