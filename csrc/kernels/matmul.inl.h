// Products of packed weight tiles with a panel of activations.
//
// int8:  out[r][i] = Σ over blocks b of  d[b][i] · scale[r][b] · (Σ in b of w · x, in integers)  (+ m[b][i] · sum[r][b])
// f32:   out[r][i] = Σ over columns c of  value(w[i][c]) · x[r][c], even and odd columns in two sums
//
// One accumulator a (row, output), blocks in ascending order, whatever the number of rows in the panel: the bits of a row
// do not depend on its neighbours. `R` rows of the panel meet `S` strips of kLanes weight rows; a tile is 16 / kLanes strips.
#pragma once

#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/q4.h"
#include "formats/q4m.h"
#include "formats/q8.h"
#include "formats/q8m.h"
#include "kernels/kernels.h"

namespace pyinfer {
namespace {

constexpr int kStrips = kTileRows / kLanes;

// Before a loop over rows or strips: unrolled early, its arrays become registers. Without it GCC 12 keeps the sums in memory.
#define PYINFER_UNROLL _Pragma("GCC unroll 16")

template <class Format>
constexpr bool is_float_format = Format::kGroupCols == kFloatGroup;

// One block of a panel of R rows.
template <int R>
struct PanelBlock {
  int8_t q[8][R][4];
  float scale[R];
  float sum[R];
  int32_t bias[R];
};

// Integer dot products of block `b` of a group with the R rows, for one strip.
template <class Format, int R>
inline void block_dots(const typename Format::Group& group, int b, int strip, const PanelBlock<R>& x, I (&dots)[R]) {
  const int at = 4 * kLanes * strip;
  if constexpr (Format::kBits == 4) {
    Dot4 sums[R];
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = dot4_start(Format::kBias ? x.bias[r] : 0);
    PYINFER_UNROLL
    for (int j = 0; j < 4; ++j) {
      const B packed = b_load(group.q[b] + 64 * j + at);
      const B low = b_low_nibbles(packed), high = b_high_nibbles(packed);
      PYINFER_UNROLL
      for (int r = 0; r < R; ++r) sums[r] = dot4_add(sums[r], low, x.q[j][r]);
      PYINFER_UNROLL
      for (int r = 0; r < R; ++r) sums[r] = dot4_add(sums[r], high, x.q[j + 4][r]);
    }
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) dots[r] = dot4_finish(sums[r], Format::kBias ? x.bias[r] : 0);
  } else {
    Dot8 sums[R];
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = dot8_start(x.bias[r]);
    PYINFER_UNROLL
    for (int j = 0; j < 8; ++j) {
      const Weights8 w = weights8(b_load(group.q[b] + 64 * j + at));
      PYINFER_UNROLL
      for (int r = 0; r < R; ++r) sums[r] = dot8_add(sums[r], w, x.q[j][r]);
    }
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) dots[r] = dot8_finish(sums[r]);
  }
}

template <class Format, int R, int S>
inline void int8_strips(const typename Format::Group* groups, size_t n_groups, int first_strip, const PanelBlock<R>* x, F (&sums)[S][R]) {
  for (size_t g = 0; g < n_groups; ++g) {
    for (int b = 0; b < 2; ++b, ++x) {
      PYINFER_UNROLL
      for (int s = 0; s < S; ++s) {
        const int strip = first_strip + s;
        I dots[R];
        block_dots<Format, R>(groups[g], b, strip, *x, dots);
        const F d = f_load_half(groups[g].d[b] + kLanes * strip);
        PYINFER_UNROLL
        for (int r = 0; r < R; ++r) sums[s][r] = f_fma(f_from_i(dots[r]), f_mul(d, f_set(x->scale[r])), sums[s][r]);
        if constexpr (Format::kHasMinimum) {
          const F m = f_load_half(groups[g].m[b] + kLanes * strip);
          PYINFER_UNROLL
          for (int r = 0; r < R; ++r) sums[s][r] = f_fma(m, f_set(x->sum[r]), sums[s][r]);
        }
      }
    }
  }
}

// Column `c` of a group as kLanes float values.
template <class Format>
inline F column_values(const typename Format::Group& group, int strip, int c) {
  const int lane = kLanes * strip;
  if constexpr (is_float_format<Format>) {
    if constexpr (sizeof group.v[0][0] == sizeof(float)) {
      return f_load((const float*)group.v[c] + lane);
    } else if constexpr (Format::kIsHalf) {
      return f_load_half((const uint16_t*)group.v[c] + lane);
    } else {
      return f_load_bf16((const uint16_t*)group.v[c] + lane);
    }
  } else {
    const int b = c / kBlock, k = c % kBlock;
    I q;
    if constexpr (Format::kBits == 4) {
      q = i_load(group.q[b] + 64 * (k / 4 % 4) + 4 * lane);
      q = i_and(i_shr(q, 8 * (k % 4) + (k >= kBlock / 2 ? 4 : 0)), i_set(15));
    } else {
      q = i_load(group.q[b] + 64 * (k / 4) + 4 * lane);
      q = i_sra(i_shl(q, 24 - 8 * (k % 4)), 24);
    }
    const F value = f_mul(f_load_half(group.d[b] + lane), f_from_i(i_add(q, i_set(-Format::kBias))));
    if constexpr (Format::kHasMinimum) return f_add(value, f_load_half(group.m[b] + lane));
    return value;
  }
}

template <class Format, int R, int S>
inline void f32_strips(const typename Format::Group* groups, size_t n_groups, int first_strip, const float* x, F (&sums)[S][R]) {
  F odd[S][R];
  PYINFER_UNROLL
  for (int s = 0; s < S; ++s) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) odd[s][r] = f_zero();
  }
  for (size_t g = 0; g < n_groups; ++g) {
    for (int c = 0; c < Format::kGroupCols; c += 2, x += 2 * R) {
      PYINFER_UNROLL
      for (int s = 0; s < S; ++s) {
        const F w0 = column_values<Format>(groups[g], first_strip + s, c);
        const F w1 = column_values<Format>(groups[g], first_strip + s, c + 1);
        PYINFER_UNROLL
        for (int r = 0; r < R; ++r) sums[s][r] = f_fma(w0, f_set(x[r]), sums[s][r]);
        PYINFER_UNROLL
        for (int r = 0; r < R; ++r) odd[s][r] = f_fma(w1, f_set(x[R + r]), odd[s][r]);
      }
    }
  }
  PYINFER_UNROLL
  for (int s = 0; s < S; ++s) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[s][r] = f_add(sums[s][r], odd[s][r]);
  }
}

// All tiles with a panel of exactly R rows. With few rows the strips of a tile go together, so that memory is read once in order;
// with many they go one by one, so that the sums fit the registers.
template <class Format, bool kInt8, int R>
void matmul_rows(const MatmulArgs& args) {
  constexpr int S = R * kStrips <= 4 ? kStrips : 1;
  for (size_t t = 0; t < args.n_tiles; ++t) {
    const auto* groups = (const typename Format::Group*)(args.tiles + t * args.tile_bytes);
    for (int strip = 0; strip < kStrips; strip += S) {
      F sums[S][R];
      PYINFER_UNROLL
      for (int s = 0; s < S; ++s) {
        PYINFER_UNROLL
        for (int r = 0; r < R; ++r) sums[s][r] = f_zero();
      }
      if constexpr (kInt8) {
        int8_strips<Format, R, S>(groups, args.n_groups, strip, (const PanelBlock<R>*)args.panel, sums);
      } else {
        f32_strips<Format, R, S>(groups, args.n_groups, strip, (const float*)args.panel, sums);
      }
      PYINFER_UNROLL
      for (int r = 0; r < R; ++r) {
        float* out = args.out + (size_t)r * args.out_stride + t * kTileRows + (size_t)(kLanes * strip);
        PYINFER_UNROLL
        for (int s = 0; s < S; ++s, out += kLanes) {
          f_store(out, args.accumulate ? f_add(f_load(out), sums[s][r]) : sums[s][r]);
        }
      }
    }
  }
}

// Calls matmul_rows with the number of rows as a constant: 1 … R.
template <class Format, bool kInt8, int R>
void matmul_dispatch(const MatmulArgs& args) {
  if constexpr (R == 1) {
    matmul_rows<Format, kInt8, 1>(args);
  } else if (args.n_rows == R) {
    matmul_rows<Format, kInt8, R>(args);
  } else {
    matmul_dispatch<Format, kInt8, R - 1>(args);
  }
}

template <class Format>
void matmul_f32(const MatmulArgs& args) {
  matmul_dispatch<Format, false, kPanelRows>(args);
}

template <class Format>
void matmul_int8(const MatmulArgs& args) {
  matmul_dispatch<Format, true, kPanelRows>(args);
}

// Float formats multiply float activations only.
template <class Format>
constexpr Matmul matmul_int8_entry() {
  if constexpr (is_float_format<Format>) {
    return nullptr;
  } else {
    return matmul_int8<Format>;
  }
}

}  // namespace
}  // namespace pyinfer
