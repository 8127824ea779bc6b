// The vocabulary in AVX-512 with VNNI and AMX, whose unit multiplies matrices of bytes: up to 16 rows of activations with 16 of weights. Few rows go by
// VNNI, whose registers decide how many a panel has.
// As assembly: GCC 12 does not know that its own intrinsics for tiles read and write memory, and moves stores past them.
#pragma once

#include "kernels/simd/zmm.h"

// The product of whole panels is in kernels/matrix.inl.h.
#define PYINFER_MATRIX_UNIT

namespace pyinfer {
namespace {

enum { kPanelRows = 12, kDepth = 32, kAskedBits = 8 };

// Whole panels from which the unit is faster: one does not pay for unpacking weights.
enum { kLeastMatrixPanels = 2 };

// How a thread's tile registers are divided, as `ldtilecfg` reads it: Intel's manual, volume 2, "LDTILECFG". 0 and 1 hold sums, 2 activations and
// 3 weights. Four of the eight: the more of them hold something, the less the processor works ahead when the core's other thread runs (twice the
// time with all eight).
struct MatrixShapes {
  uint8_t palette, start_row, unused[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Until matrix_end: products of the rows of a panel with 16 rows of weights over the columns of a block.
inline void matrix_begin() {
  MatrixShapes shapes = {};
  shapes.palette = 1;
  for (int i = 0; i < 4; ++i) {
    shapes.row_bytes[i] = i == 2 ? kDepth : 64;
    shapes.rows[i] = i == 3 ? kDepth / 4 : kPanelRows;
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}
inline void matrix_end() { asm volatile("tilerelease" : : : "memory"); }

typedef int8_t MatrixRows[kPanelRows][kDepth];  // activations
typedef int8_t MatrixWeights[kDepth / 4][64];   // (kDepth / 4, 16, 4) signed bytes
typedef int32_t MatrixSums[kPanelRows][16];     // (rows, 16)

// x · w, into one of two places in the unit.
template <int Place>
inline void matrix_dot(const int8_t* x, const int8_t* w) {
#define PYINFER_MATRIX_DOT(place)                                                                  \
  asm volatile("tilezero %%tmm" #place                                                             \
               "\n\ttileloadd (%0,%2), %%tmm2\n\ttileloadd (%1,%3), %%tmm3"                        \
               "\n\ttdpbssd %%tmm3, %%tmm2, %%tmm" #place                                          \
               :                                                                                   \
               : "r"(x), "r"(w), "r"((size_t)kDepth), "r"((size_t)64), "m"(*(const MatrixRows*)x), \
                 "m"(*(const MatrixWeights*)w))
  if constexpr (Place == 0) PYINFER_MATRIX_DOT(0);
  if constexpr (Place == 1) PYINFER_MATRIX_DOT(1);
#undef PYINFER_MATRIX_DOT
}
// What is there.
template <int Place>
inline void matrix_take(MatrixSums& sums) {
  if constexpr (Place == 0) asm volatile("tilestored %%tmm0, (%1,%2)" : "=m"(sums) : "r"(&sums), "r"((size_t)64));
  if constexpr (Place == 1) asm volatile("tilestored %%tmm1, (%1,%2)" : "=m"(sums) : "r"(&sums), "r"((size_t)64));
}

inline void b_store(void* p, B a) { _mm512_storeu_si512(p, a); }
inline B b_less(B a, int n) { return _mm512_sub_epi8(a, _mm512_set1_epi8((char)n)); }

}  // namespace
}  // namespace pyinfer
