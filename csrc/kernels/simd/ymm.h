// What AVX2 and AVX-VNNI share of the vocabulary: 8 lanes, half a weight tile a register. Only the kinds of integer weights differ.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

// For what stands in an innermost loop: GCC leaves some of it out of line in large units.
#define PYINFER_INLINE inline __attribute__((always_inline))

namespace pyinfer {
namespace {

enum {
  kLanes = 8,
  kPanelRows = 6,
  kFloatRows = 6,
  kDepth = 4,
  kQueries = 6,
  kBroadcasts = 0,
  kRegisters = 16,
  kFastPairs = 0,
  kAskedBits = 8
};

typedef __m256 F;   // kLanes floats
typedef __m256i I;  // kLanes int32
typedef __m256i B;  // 4 · kLanes bytes

inline F f_zero() { return _mm256_setzero_ps(); }
inline F f_set(float x) { return _mm256_set1_ps(x); }
inline F f_load(const float* p) { return _mm256_loadu_ps(p); }
inline void f_store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F f_add(F a, F b) { return _mm256_add_ps(a, b); }
inline F f_sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F f_mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F f_div(F a, F b) { return _mm256_div_ps(a, b); }
inline F f_fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }  // a · b + c
// The second where one is NaN.
inline F f_max(F a, F b) { return _mm256_max_ps(a, b); }
inline F f_min(F a, F b) { return _mm256_min_ps(a, b); }
// Half onto half, until one is left.
inline float f_sum(F a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float f_hmax(F a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
// 0 where x < limit, else y: y where x is NaN.
inline F f_keep_from(F y, F x, F limit) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), y); }
inline F f_from_i(I a) { return _mm256_cvtepi32_ps(a); }
inline I f_round(F a) { return _mm256_cvtps_epi32(a); }  // to nearest, ties to even
// The same value, made where this stands: the compiler must not put off what it is loaded from.
inline F f_now(F a) {
  asm volatile("" : "+x"(a));
  return a;
}
inline F f_from_bits(I a) { return _mm256_castsi256_ps(a); }
inline F f_load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void f_store_half(uint16_t* p, F a) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F f_load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}

inline I i_set(int32_t x) { return _mm256_set1_epi32(x); }
inline I i_add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I i_and(I a, I b) { return _mm256_and_si256(a, b); }
inline I i_shl(I a, int n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
inline I i_shr(I a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }  // zeros come in
inline I i_sra(I a, int n) { return _mm256_sra_epi32(a, _mm_cvtsi32_si128(n)); }  // signs come in
inline I i_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline I i_sub(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I i_load_bytes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline I i_load_signed_bytes(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline I i_max(I a, I b) { return _mm256_max_epi32(a, b); }
inline int32_t i_hmax(I a) {
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline int32_t i_sum(I a) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
// The low byte of each lane; lanes are within −128…127.
inline void i_store_bytes(int8_t* p, I a) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
}
// The low 16 bits of each lane; lanes are within 16 bits.
inline void i_store_words(int16_t* p, I a) {
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}

inline B b_load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline B b_low_nibbles(B a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
inline B b_high_nibbles(B a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
// Two bits from bit 2 · N on.
template <int N>
inline B b_pair(B a) {
  return _mm256_and_si256(_mm256_srli_epi16(a, 2 * N), _mm256_set1_epi8(3));
}
// table[a] byte by byte, a in 0…15.
inline B b_lookup(const int8_t (&table)[16], B a) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table)), a);
}
inline I i_from_b(B a) { return a; }  // the same bits

// low | (high shifted by Shift, left if positive) & mask, byte by byte; bits that cross a byte are masked away.
template <int Shift>
inline B b_insert(B low, B high, int mask) {
  const B shifted =
      Shift >= 0 ? _mm256_slli_epi16(high, Shift >= 0 ? Shift : 0) : _mm256_srli_epi16(high, Shift < 0 ? -Shift : 0);
  return _mm256_or_si256(low, _mm256_and_si256(shifted, _mm256_set1_epi8((char)mask)));
}

// The four bytes at `x` in every lane.
inline __m256i four_bytes(const void* x) {
  int32_t four;
  memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

}  // namespace
}  // namespace pyinfer
