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

// Whole panels from which the unit is faster: fewer do not pay for unpacking weights.
enum { kLeastMatrixPanels = 6 };

// How a thread's eight tile registers are divided, as `ldtilecfg` reads it: Intel's manual, volume 2, "LDTILECFG".
struct MatrixShapes {
  uint8_t palette, start_row, unused[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Until matrix_end: products of `rows` rows of activations over `run` columns.
inline void matrix_begin(int rows, int run) {
  MatrixShapes shapes = {};
  shapes.palette = 1;
  for (int i = 0; i < 8; ++i) {
    const bool sums = i < 4, activations = i == 4 || i == 5;
    shapes.row_bytes[i] = (uint16_t)(activations ? run : 64);
    shapes.rows[i] = (uint8_t)(sums || activations ? rows : run / 4);
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}
inline void matrix_end() { asm volatile("tilerelease" : : : "memory"); }

typedef int8_t MatrixRows[kPanelRows][kDepth];  // activations
typedef int8_t MatrixWeights[kDepth / 4][64];   // (run / 4, 16, 4) signed bytes
typedef int32_t MatrixSums[kPanelRows][16];     // (rows, 16)

// sums = x · w, in tile registers of its own for each of four slots. `x` may begin within a row of activations.
template <int Slot>
inline void matrix_dot(const int8_t* x, const int8_t* w, MatrixSums& sums) {
#define PYINFER_MATRIX_DOT(c, a, b)                                                                            \
  asm volatile("tilezero %%tmm" #c "\n\ttileloadd (%1,%3), %%tmm" #a "\n\ttileloadd (%2,%4), %%tmm" #b         \
               "\n\ttdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c "\n\ttilestored %%tmm" #c ", (%5,%4)"          \
               : "=m"(sums)                                                                                    \
               : "r"(x), "r"(w), "r"((size_t)kDepth), "r"((size_t)64), "r"(&sums), "m"(*(const MatrixRows*)x), \
                 "m"(*(const MatrixWeights*)w))
  if constexpr (Slot == 0) PYINFER_MATRIX_DOT(0, 4, 6);
  if constexpr (Slot == 1) PYINFER_MATRIX_DOT(1, 5, 7);
  if constexpr (Slot == 2) PYINFER_MATRIX_DOT(2, 4, 6);
  if constexpr (Slot == 3) PYINFER_MATRIX_DOT(3, 5, 7);
#undef PYINFER_MATRIX_DOT
}

inline void b_store(void* p, B a) { _mm512_storeu_si512(p, a); }
inline B b_less(B a, int n) { return _mm512_sub_epi8(a, _mm512_set1_epi8((char)n)); }

}  // namespace
}  // namespace pyinfer
