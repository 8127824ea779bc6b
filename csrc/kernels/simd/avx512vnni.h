// The vocabulary in AVX-512 (F, BW, DQ, VL) with VNNI: 16 lanes, one weight tile a register.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace pyinfer {
namespace {

enum { kLanes = 16, kPanelRows = 12, kQueries = 6 };

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
inline F f_max(F a, F b) { return _mm512_max_ps(a, b); }
inline F f_min(F a, F b) { return _mm512_min_ps(a, b); }
inline F f_abs(F a) { return _mm512_abs_ps(a); }
inline float f_sum(F a) { return _mm512_reduce_add_ps(a); }
inline float f_hmax(F a) { return _mm512_reduce_max_ps(a); }
// y where x ≥ limit, else 0.
inline F f_keep_from(F y, F x, F limit) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), y); }
inline F f_from_i(I a) { return _mm512_cvtepi32_ps(a); }
inline I f_round(F a) { return _mm512_cvtps_epi32(a); }  // to nearest, ties to even
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
inline I i_shr(I a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }   // zeros come in
inline I i_sra(I a, int n) { return _mm512_sra_epi32(a, _mm_cvtsi32_si128(n)); }   // signs come in
inline I i_load(const void* p) { return _mm512_loadu_si512(p); }
inline int32_t i_sum(I a) { return _mm512_reduce_add_epi32(a); }
inline void i_store_bytes(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }

inline B b_load(const void* p) { return _mm512_loadu_si512(p); }
inline B b_low_nibbles(B a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline B b_high_nibbles(B a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }

// dot += w · x over the four bytes of each lane, the same four activations at `x` in all lanes. As a statement of assembly because
// GCC 12 does not fold the broadcast into the instruction and spends a register and an instruction on each.
inline I dot_unsigned(I dot, B w, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(dot) : "v"(w), "m"(*(const int32_t*)x));
  return dot;
}

// Dot products of one block: each lane adds the products of its four weight bytes with the four activations at `x`.
// For unsigned 4-bit weights; `bias` is −8 · Σ activations.
typedef I Dot4;
inline Dot4 dot4_start(int32_t start) { return i_set(start); }
inline Dot4 dot4_add(Dot4 dot, B weights, const int8_t* x) { return dot_unsigned(dot, weights, x); }
inline I dot4_finish(Dot4 dot, int32_t) { return dot; }

// For signed 8-bit weights, made unsigned by +128, which the start value takes back.
typedef I Dot8;
typedef B Weights8;
inline Weights8 weights8(B a) { return _mm512_xor_si512(a, _mm512_set1_epi8((char)0x80)); }
inline Dot8 dot8_start(int32_t bias) { return i_set(16 * bias); }
inline Dot8 dot8_add(Dot8 dot, Weights8 weights, const int8_t* x) { return dot_unsigned(dot, weights, x); }
inline I dot8_finish(Dot8 dot) { return dot; }

}  // namespace
}  // namespace pyinfer
