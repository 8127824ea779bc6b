// Int8 products of several whole panels where a unit multiplies matrices of bytes: a panel's rows with a tile of weights, the integer sums of a block at
// a time. The same integers, and the same floats made of them in the same order, as in matmul.inl.h, which takes what is left, and the formats with
// scales for 16 columns: there the unit has half its depth and gains nothing.
//
// The unit reads and writes memory. So a tile's weights are unpacked to signed bytes for several panels at a time, some columns at a time, so that they
// stay in the first-level cache; and the integer sums of two blocks become floats while those of the next two are made.
#pragma once

#include "kernels/matmul.inl.h"

namespace pyinfer {
namespace {

// Columns that are unpacked at a time.
constexpr int kChunkBlocks = 512 / kBlock;
// Panels that meet them at most, and their bytes if there are enough of them, so that they stay in the second-level cache while all tiles of a call
// pass by.
constexpr size_t kPanelsAtOnce = 12, kPanelBytesAtOnce = 768 << 10;

// Some columns of a tile.
template <class Format>
struct Unpacked {
  int8_t q[kChunkBlocks][kBlock / 4][64];  // (block, 4 columns, row and column)
  F scale[kChunkBlocks];
  F minimum[Format::kHasMinimum ? kChunkBlocks : 1];
};

template <class Format, int J = 0>
PYINFER_INLINE void unpack_block(const typename Format::Group& group, int b, int8_t (&q)[kBlock / 4][64]) {
  constexpr bool kSigned = Format::kBits == 8 || is_codebook_format<Format>;
  const B four = four_columns<Format, J>(group, b, 0);
  b_store(q[J], kSigned || Format::kBias == 0 ? four : b_less(four, Format::kBias));
  if constexpr (J + 1 < kBlock / 4) unpack_block<Format, J + 1>(group, b, q);
}

template <class Format>
void unpack_groups(const typename Format::Group* groups, int n_groups, Unpacked<Format>& to) {
  constexpr int kBlocks = Format::kGroupCols / kBlock;
  for (int i = 0; i < n_groups * kBlocks; ++i) {
    const typename Format::Group& group = groups[i / kBlocks];
    const int b = i % kBlocks;
    unpack_block<Format>(group, b, to.q[i]);
    to.scale[i] = run_scale<Format>(group, b, 0);
    if constexpr (Format::kHasMinimum) to.minimum[i] = run_minimum<Format>(group, b, 0);
  }
}

typedef PanelBlock<kPanelRows> WholeBlock;

// The integer sums of two blocks, each in a place of its own in the unit.
inline void begin_sums(const WholeBlock* x, const int8_t (*w)[kBlock / 4][64]) {
  matrix_dot<0>(x[0].q, w[0][0]);
  matrix_dot<1>(x[1].q, w[1][0]);
}
// The same where the unit holds those of two others: it hands each out when its place is needed.
inline void next_sums(const WholeBlock* x, const int8_t (*w)[kBlock / 4][64], MatrixSums (&before)[2]) {
  matrix_take<0>(before[0]);
  matrix_dot<0>(x[0].q, w[0][0]);
  matrix_take<1>(before[1]);
  matrix_dot<1>(x[1].q, w[1][0]);
}

// Adds the sums of blocks `first` and the next of the unpacked ones to the totals.
template <class Format, int Blocks>
PYINFER_INLINE void add_sums(const WholeBlock* x, const MatrixSums (&sums)[2], const Unpacked<Format>& w, int first,
                             F (&totals)[kPanelRows]) {
  for (int b = 0; b < 2; b += Blocks) {
    PYINFER_UNROLL
    for (int r = 0; r < kPanelRows; ++r) {
      F shared = f_zero();
      PYINFER_UNROLL
      for (int i = b; i < b + Blocks; ++i) {
        shared = f_fma(f_from_i(i_load(sums[i][r])), w.scale[first + i], shared);
        if constexpr (Format::kHasMinimum) shared = f_fma(w.minimum[first + i], f_set(x[i].sum[r]), shared);
      }
      totals[r] = f_fma(shared, f_set(x[b + Blocks - 1].scale[r]), totals[r]);
    }
  }
}

// n_blocks blocks of a panel, from `x` on, with a tile: adds the products to `totals`. The unit has the sums of the first two by then, and goes on to
// those at `next`, unless that is null. The number of blocks is even, as in every group.
template <class Format, int Blocks>
void matrix_panel(const WholeBlock* x, const Unpacked<Format>& w, int n_blocks, const WholeBlock* next,
                  F (&totals)[kPanelRows]) {
  alignas(kCacheLine) MatrixSums sums[2];
  F own[kPanelRows];
  PYINFER_UNROLL
  for (int r = 0; r < kPanelRows; ++r) own[r] = totals[r];
  int b = 0;
  for (; b + 2 < n_blocks; b += 2, x += 2) {
    next_sums(x + 2, w.q + b + 2, sums);
    add_sums<Format, Blocks>(x, sums, w, b, own);
  }
  if (next != nullptr) {
    next_sums(next, w.q, sums);
  } else {
    matrix_take<0>(sums[0]);
    matrix_take<1>(sums[1]);
  }
  add_sums<Format, Blocks>(x, sums, w, b, own);
  PYINFER_UNROLL
  for (int r = 0; r < kPanelRows; ++r) totals[r] = own[r];
}

// All tiles with n_panels panels, the first of which is panel `first` of the call. Each panel asks for its part of the weights that are unpacked next
// and, once, for its outputs: all at a time would be more than a core can wait for.
template <class Format, int Blocks>
void matrix_panels(const MatmulArgs& args, size_t first, size_t n_panels) {
  constexpr size_t kBlocks = Format::kGroupCols / kBlock, kChunkGroups = kChunkBlocks / kBlocks;
  const size_t n_blocks = args.n_groups * kBlocks;
  const WholeBlock* panels = (const WholeBlock*)args.panel + first * n_blocks;
  float* const out = args.out + first * kPanelRows * args.out_stride;
  Unpacked<Format> weights;
  F totals[kPanelsAtOnce][kPanelRows];
  for (size_t t = 0; t < args.n_tiles; ++t) {
    const auto* groups = (const typename Format::Group*)(args.tiles + t * args.tile_bytes);
    for (size_t i = 0; i < n_panels * kPanelRows; ++i) totals[i / kPanelRows][i % kPanelRows] = f_zero();
    for (size_t g = 0; g < args.n_groups; g += kChunkGroups) {
      const size_t n_groups = args.n_groups - g < kChunkGroups ? args.n_groups - g : kChunkGroups;
      unpack_groups<Format>(groups + g, (int)n_groups, weights);
      const uint8_t* next = (const uint8_t*)(groups + g + n_groups);  // past the end of the weights asking does nothing
      const size_t part = n_groups * sizeof *groups / n_panels;
      for (size_t p = 0; p < n_panels; ++p) {
        for (size_t i = 0; i < part; i += kCacheLine) __builtin_prefetch(next + p * part + i);
        for (size_t r = 0; g == 0 && r < kPanelRows; ++r)
          __builtin_prefetch(out + (p * kPanelRows + r) * args.out_stride + t * kTileRows, 1);
        const WholeBlock* x = panels + p * n_blocks + g * kBlocks;
        const WholeBlock* following = p + 1 < n_panels ? x + n_blocks : nullptr;
        if (p == 0) begin_sums(x, weights.q);
        matrix_panel<Format, Blocks>(x, weights, (int)(n_groups * kBlocks), following, totals[p]);
      }
    }
    for (size_t i = 0; i < n_panels * kPanelRows; ++i) {
      float* to = out + i * args.out_stride + t * kTileRows;
      const F total = totals[i / kPanelRows][i % kPanelRows];
      f_store(to, args.accumulate ? f_add(f_load(to), total) : total);
    }
  }
}

template <class Format, int Blocks>
void matrix_rows(const MatmulArgs& args, size_t n_panels) {
  const size_t fit = kPanelBytesAtOnce / (args.n_groups * (Format::kGroupCols / kBlock) * sizeof(WholeBlock));
  const size_t least = kLeastMatrixPanels, most = fit < least ? least : fit < kPanelsAtOnce ? fit : kPanelsAtOnce;
  const size_t n_passes = (n_panels + most - 1) / most;
  matrix_begin();
  for (size_t pass = 0, first = 0; pass < n_passes; ++pass) {
    const size_t end = n_panels * (pass + 1) / n_passes;
    matrix_panels<Format, Blocks>(args, first, end - first);
    first = end;
  }
  matrix_end();
}

template <class Format>
void matmul_int8(const MatmulArgs& args) {
  int done = 0;
  if constexpr (Format::kRun == kBlock) {
    const size_t whole = (size_t)args.n_rows / kPanelRows;
    if (whole >= kLeastMatrixPanels) {
      args.scale_blocks == 1 ? matrix_rows<Format, 1>(args, whole) : matrix_rows<Format, 2>(args, whole);
      done = (int)whole * kPanelRows;
    }
  }
  for (int row = done; row < args.n_rows; row += kPanelRows) {
    MatmulArgs one = args;
    one.panel += (size_t)row * args.n_groups * (Format::kGroupCols / kBlock) * kPanelBlockBytes;
    one.n_rows = args.n_rows - row < kPanelRows ? args.n_rows - row : kPanelRows;
    one.out += (size_t)row * args.out_stride;
    matmul_dispatch<Format, true, kPanelRows>(one, 0, one.n_rows);
  }
}

}  // namespace
}  // namespace pyinfer
