// Products of packed weight tiles with a panel of activations.
//
// int8:  out[r][i] = Σ over blocks that share a scale of activations of
//                    scale[r] · Σ over runs of  (d[i] · (Σ in the run of w · x, in integers)  (+ m[i] · Σ activations, in integers))
// f32:   out[r][i] = Σ over columns c of  value(w[i][c]) · x[r][c], at fixed places in sums of their own
//
// One accumulator a (row, output), blocks in ascending order, whatever the number of rows in the panel: the bits of a row
// do not depend on its neighbours. `R` rows of the panel meet `S` strips of kLanes weight rows; a tile is 16 / kLanes strips.
#pragma once

#include "kernels/kernels.h"

// Vocabularies may insist on inlining what stands in innermost loops.
#if !defined(PYINFER_INLINE)
#define PYINFER_INLINE inline
#endif

#include "kernels/weights.inl.h"

namespace pyinfer {
namespace {

constexpr int kStrips = kTileRows / kLanes;
static_assert(kPanelRows % 2 == 0);  // rows may come in pairs

// One block of a panel of R rows.
template <int R>
struct PanelBlock {
  int8_t q[kBlock * R];
  float scale[R];
  float sum[R];
  int32_t bias[3][R];
};
static_assert(sizeof(PanelBlock<1>) == kPanelBlockBytes);

// The integer kind of a format: see the end of each file of kernels/simd.
template <class Format>
struct IntegersOf {
  typedef S8 Kind;
};
#define PYINFER_INTEGERS(format, kind) \
  template <>                          \
  struct IntegersOf<format> {          \
    typedef kind Kind;                 \
  };
PYINFER_INTEGERS(Q4, U4)
PYINFER_INTEGERS(Q4M, U4)
PYINFER_INTEGERS(Q4Z, U4)
PYINFER_INTEGERS(Q2K, U4)
PYINFER_INTEGERS(Q3K, U4)
PYINFER_INTEGERS(Q4K, U4)
PYINFER_INTEGERS(Q5K, U6)
PYINFER_INTEGERS(Q6K, U6)
#undef PYINFER_INTEGERS

// What takes a format's offset back: −kBias · Σ activations of a block (`run` 0 of 1) or of half of it (0 or 1 of 2).
template <class Format, int R>
inline I offset(const PanelBlock<R>& x, int r, int run) {
  if constexpr (Format::kBits == 8 || is_codebook_format<Format>) return i_set(x.bias[0][r]);
  if constexpr (Format::kBias == 0) return i_set(0);
  if constexpr (Format::kRun == kBlock) return i_set(x.bias[0][r]);
  const I half = i_set(x.bias[1 + run][r]);
  return Format::kBias == 32 ? half : i_sra(half, 3);  // 32 or 4
}

// Σ activations of a run: a block, or half of it.
template <class Format>
inline float run_sum(float block_sum, int32_t half_bias) {
  return Format::kRun == kBlock ? block_sum : (float)(half_bias / -32);
}

// The integer sums of R rows over a run, each on its own. A set of instructions that gains from pairs of rows or columns has its own.
template <class Kind, int R>
struct Dots {
  typename Kind::Sum sums[R];

  template <class Offset>
  PYINFER_INLINE void start(Offset offset) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = Kind::start(offset(r));
  }
  // Columns 4·J … 4·J+3 and the next four, of a block whose activations are at `x`.
  template <int J>
  PYINFER_INLINE void add(B w0, B w1, const int8_t* x) {
    add_four(Kind::prepare(w0), x + four<J>());
    add_four(Kind::prepare(w1), x + four<J + 1>());
  }
  // Where the first row has columns 4·J … 4·J+3.
  template <int J>
  static constexpr int four() {
    return 4 * J / kDepth * kDepth * R + 4 * J % kDepth;
  }
  PYINFER_INLINE void add_four(typename Kind::Weights w, const int8_t* x) {
    PYINFER_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = Kind::add(sums[r], w, x + kDepth * r);
  }
  template <class Offset>
  PYINFER_INLINE I finish(int r, Offset offset) const {
    return Kind::finish(sums[r], offset(r));
  }
};

// Adds the products of columns 4·J … 4·End−1 of a block.
template <class Format, int J, int End, class Sums>
PYINFER_INLINE void add_columns(const typename Format::Group& group, int b, int strip, const int8_t* x, Sums& dots) {
  dots.template add<J>(four_columns<Format, J>(group, b, strip), four_columns<Format, J + 1>(group, b, strip), x);
  if constexpr (J + 2 < End) add_columns<Format, J + 2, End>(group, b, strip, x, dots);
}

// Whether a run's scale is loaded before its integers, in the order of memory. Where one stream of weights meets a row or two the processor's
// prefetcher follows it then; with the scales last, as compilers like to have them, it lost it (AVX-512, one row: q8 24 GB/s instead of 31,
// q6k 24 instead of 29).
template <int R>
constexpr bool kScaleFirst = R * kStrips <= 2;

// One run of a block (all of it, or its first or second half) with all rows, for one strip.
template <class Format, int R, int Run>
PYINFER_INLINE void add_run(const typename Format::Group& group, int b, int strip, const PanelBlock<R>& x,
                            F (&sums)[R]) {
  constexpr int kRuns = kBlock / Format::kRun, kFours = Format::kRun / 4;
  const auto offset_of = [&](int r) { return offset<Format, R>(x, r, Run); };
  F d;
  if constexpr (kScaleFirst<R>) d = f_now(run_scale<Format>(group, b * kRuns + Run, strip));
  Dots<typename IntegersOf<Format>::Kind, R> dots;
  dots.start(offset_of);
  add_columns<Format, Run * kFours, Run * kFours + kFours>(group, b, strip, x.q, dots);
  if constexpr (!kScaleFirst<R>) d = run_scale<Format>(group, b * kRuns + Run, strip);
  PYINFER_UNROLL
  for (int r = 0; r < R; ++r) {
    const F dot = f_from_i(dots.finish(r, offset_of));
    sums[r] = f_fma(dot, d, sums[r]);
  }
  if constexpr (Run + 1 < kRuns) add_run<Format, R, Run + 1>(group, b, strip, x, sums);
}

// Strips of a tile that R rows meet together. With few rows it is all of them, so that memory is read once in order; with many they go one by
// one, so that the sums fit the registers.
template <int R>
constexpr int kStripsTogether = kStrips * R <= 4 ? kStrips : 1;

// Whether a kernel asks for weights ahead of their use. Strips that go one by one always do: a tile is read several times, and what comes next
// is none of its neighbours. In one stream the processor's own prefetcher does better until there is much work for a byte, that is with more rows
// or fewer bits, of which a vocabulary says for how many a row; and where the bits of a value lie apart: 3, 5 or 6 (AVX-512, q6k: 2.6 times as fast).
template <class Format, int R>
constexpr bool kPrefetches =
    kStripsTogether<R> < kStrips || kAskedBits * R >= Format::kBits || (Format::kBits & (Format::kBits - 1)) != 0;

template <class Format>
constexpr size_t kWeightBlockBytes = sizeof(typename Format::Group) / (Format::kGroupCols / kBlock);

// Asks for what corresponds to block `b` of a group `ahead` bytes further on; past the end of the weights that does nothing.
template <class Format, int R>
inline void prefetch_ahead(const typename Format::Group& group, int b, size_t ahead) {
  constexpr size_t kBytes = kWeightBlockBytes<Format>;
  const uint8_t* from = (const uint8_t*)&group + (size_t)b * kBytes + ahead;
  PYINFER_UNROLL
  for (size_t i = 0; i < kBytes * kStripsTogether<R> / kStrips; i += kCacheLine) __builtin_prefetch(from + i);
}

// How far ahead that is: a few groups, one where a row meets bytes as they are (AVX2: a token of q8 6 % faster than with none, and 2 % slower with
// eight), or, of strips that go one by one, the next tile, each of them asking for its part of it.
template <class Format, int R>
inline size_t prefetch_distance(size_t tile_bytes, int strip) {
  if constexpr (kStripsTogether<R> < kStrips) return tile_bytes + kWeightBlockBytes<Format> * (size_t)strip / kStrips;
  if constexpr (Format::kBits == 8 && R == 1) return sizeof(typename Format::Group);
  return sizeof(typename Format::Group) * (is_super_format<Format> ? (R <= 2 ? 3 : 2) : (R <= 2 ? 8 : 4));
}

// The minimum of each run of a block times the sum of its activations.
template <class Format, int R, int Run>
PYINFER_INLINE void add_minimum(const typename Format::Group& group, int b, int strip, const PanelBlock<R>& x,
                                F (&sums)[R]) {
  constexpr int kRuns = kBlock / Format::kRun;
  const F m = run_minimum<Format>(group, b * kRuns + Run, strip);
  PYINFER_UNROLL
  for (int r = 0; r < R; ++r) sums[r] = f_fma(m, f_set(run_sum<Format>(x.sum[r], x.bias[1 + Run][r])), sums[r]);
  if constexpr (Run + 1 < kRuns) add_minimum<Format, R, Run + 1>(group, b, strip, x, sums);
}

// Blocks that share a scale of activations are summed before it is applied: one multiplication less for two blocks, three less with runs of
// 16, in pipes that on most processors the integer products use. Their number is a constant: counting costs one row up to a tenth.
template <class Format, int R, int S, int Blocks>
PYINFER_INLINE void int8_strips(const MatmulArgs& args, const typename Format::Group* groups, int first_strip,
                                F (&sums)[S][R]) {
  static_assert(Format::kGroupCols / kBlock % 2 == 0);  // no scale is shared across groups
  const auto* x = (const PanelBlock<R>*)args.panel;
  const size_t ahead = prefetch_distance<Format, R>(args.tile_bytes, first_strip);
  for (size_t g = 0; g < args.n_groups; ++g) {
    for (int b = 0; b < Format::kGroupCols / kBlock;) {
      F shared[S][R];
      PYINFER_UNROLL
      for (int i = 0; i < S * R; ++i) shared[i / R][i % R] = f_zero();
      for (const int end = b + Blocks; b < end; ++b, ++x) {
        if constexpr (kPrefetches<Format, R>) prefetch_ahead<Format, R>(groups[g], b, ahead);
        PYINFER_UNROLL
        for (int s = 0; s < S; ++s) {
          add_run<Format, R, 0>(groups[g], b, first_strip + s, *x, shared[s]);
          if constexpr (Format::kHasMinimum) add_minimum<Format, R, 0>(groups[g], b, first_strip + s, *x, shared[s]);
        }
      }
      PYINFER_UNROLL
      for (int i = 0; i < S * R; ++i) {
        F& sum = sums[i / R][i % R];
        sum = f_fma(shared[i / R][i % R], f_set(x[-1].scale[i % R]), sum);  // each of the blocks has the scale
      }
    }
  }
}

// Puts the results of S strips where they belong; the first of the first row is output `at`.
template <int R, int S>
PYINFER_INLINE void put(const F (&sums)[S][R], const MatmulArgs& args, size_t at) {
  PYINFER_UNROLL
  for (int r = 0; r < R; ++r) {
    float* out = args.out + (size_t)r * args.out_stride + at;
    PYINFER_UNROLL
    for (int s = 0; s < S; ++s, out += kLanes)
      f_store(out, args.accumulate ? f_add(f_load(out), sums[s][r]) : sums[s][r]);
  }
}

void add_products(const MatmulArgs& args, size_t tile) {
  for (size_t i = 0; i < args.n_added; ++i) args.added[i].matmul_tile(args.added[i].args, tile);
}

template <class Format, int R, int Blocks, bool Adds = false>
void int8_rows(const MatmulArgs& args) {
  constexpr int S = kStripsTogether<R>;
  for (size_t t = 0; t < args.n_tiles; ++t) {
    const auto* groups = (const typename Format::Group*)(args.tiles + t * args.tile_bytes);
    for (int strip = 0; strip < kStrips; strip += S) {
      F sums[S][R];
      PYINFER_UNROLL
      for (int i = 0; i < S * R; ++i) sums[i / R][i % R] = f_zero();
      int8_strips<Format, R, S, Blocks>(args, groups, strip, sums);
      put<R, S>(sums, args, t * kTileRows + (size_t)(kLanes * strip));
    }
    if constexpr (Adds) add_products(args, t);
  }
}

// Columns whose float products are summed at a time, even and odd ones apart. Such sums are added in order. A short product, no longer than one of
// them as B of an adapter mostly is, is one sum of its columns in order: six rows of it stay in sixteen registers then.
constexpr size_t kSumCols = 64;
template <class Format>
constexpr size_t kSumGroups = Format::kGroupCols < (int)kSumCols ? kSumCols / Format::kGroupCols : 1;

// How float products of R rows use the registers. Each activation meets as many strips as there is room for.
template <int R, int S = kStrips>
constexpr int float_strips() {
  if constexpr (S == 1 || R * S + S + 1 <= kRegisters) {
    return S;
  } else {
    return float_strips<R, S / 2>();
  }
}
// With few rows several sums are made at once, since each waits for its own last addition; the bits are those of one after the other.
template <class Format, int R, int S>
constexpr int kSumsAtOnce = is_float_format<Format> && R * S <= 2 ? 4 / (R * S) : 1;
// Even and odd columns go side by side where both fit, else one after the other.
template <int R, int S, int T>
constexpr int kParities = 2 * R * S * T + 2 * S + 1 <= kRegisters ? 2 : 1;

// With few rows the float kernels wait for weights, too, and read them from several places in turn, which the processor does not foresee: they
// ask for what lies so far ahead, also past the end of a tile (of B it is the thread's next tiles).
template <class Format, int R>
constexpr bool kFetchesFloats = R <= 4 && is_float_format<Format>;
constexpr size_t kFloatBytesAhead = 8192;
// The same of tiles that are added to another product, between which there is more time.
constexpr size_t kAddedTilesAhead = 2;

// The sums over columns first, first + 2 … of n_cols, from each of T places, where the first row of the panel stands at x[t]; of P = 2 also over
// the columns between them, which with Q = 2 have sums of their own. Asks for what lies `ahead` bytes further on.
template <class Format, int R, int S, int T, int P, int Q>
PYINFER_INLINE void f32_pass(const typename Format::Group* const (&groups)[T], size_t n_cols, int first_strip,
                             const float* const (&x)[T], size_t stride, size_t first, size_t ahead,
                             F (&sums)[Q][T][S][R]) {
  constexpr size_t kColumnBytes = sizeof **groups / Format::kGroupCols;
  PYINFER_UNROLL
  for (int i = 0; i < Q * T * S * R; ++i) sums[i / (T * S * R)][i / (S * R) % T][i / R % S][i % R] = f_zero();
  for (size_t c = first; c < n_cols; c += 2) {
    PYINFER_UNROLL
    for (int i = 0; i < P * T; ++i) {
      const int p = i / T, t = i % T;
      if constexpr (kFetchesFloats<Format, R>) {
        if (p == 0 || kColumnBytes >= kCacheLine)
          __builtin_prefetch((const uint8_t*)groups[t] + (c + (size_t)p) * kColumnBytes + ahead, 0, 2);
      }
      F w[S];
      PYINFER_UNROLL
      for (int s = 0; s < S; ++s) w[s] = column_values<Format>(groups[t], first_strip + s, c + (size_t)p);
      PYINFER_UNROLL
      for (int r = 0; r < R; ++r) {
        const F value = f_set(x[t][(size_t)r * stride + c + (size_t)p]);
        PYINFER_UNROLL
        for (int s = 0; s < S; ++s) sums[p % Q][t][s][r] = f_fma(w[s], value, sums[p % Q][t][s][r]);
      }
    }
  }
}

// The sums over n_groups groups from each of T places.
template <class Format, int R, int S, int T>
PYINFER_INLINE void f32_sums(const typename Format::Group* const (&groups)[T], size_t n_groups, int first_strip,
                             const float* const (&x)[T], size_t stride, size_t ahead, F (&sums)[T][S][R]) {
  constexpr int P = kParities<R, S, T>;
  const size_t n_cols = n_groups * Format::kGroupCols;
  F even[P][T][S][R], odd[1][T][S][R];
  f32_pass<Format, R, S, T, P, P>(groups, n_cols, first_strip, x, stride, 0, ahead, even);
  if constexpr (P == 1) f32_pass<Format, R, S, T, 1, 1>(groups, n_cols, first_strip, x, stride, 1, ahead, odd);
  PYINFER_UNROLL
  for (int i = 0; i < T * S * R; ++i) {
    const int t = i / (S * R), s = i / R % S, r = i % R;
    sums[t][s][r] = f_add(even[0][t][s][r], P == 1 ? odd[0][t][s][r] : even[P - 1][t][s][r]);
  }
}

// Adds the sums from T places of a tile, kSumGroups apart, to `totals`.
template <class Format, int R, int S, int T>
PYINFER_INLINE void f32_add(const typename Format::Group* groups, size_t n_groups, int first_strip, const float* x,
                            size_t stride, F (&totals)[S][R]) {
  const typename Format::Group* from[T];
  const float* columns[T];
  F sums[T][S][R];
  PYINFER_UNROLL
  for (int t = 0; t < T; ++t) {
    from[t] = groups + (size_t)t * kSumGroups<Format>;
    columns[t] = x + (size_t)t * kSumGroups<Format> * Format::kGroupCols;
  }
  f32_sums<Format, R, S, T>(from, n_groups, first_strip, columns, stride, kFloatBytesAhead, sums);
  PYINFER_UNROLL
  for (int i = 0; i < T * S * R; ++i) {
    F& total = totals[i / R % S][i % R];
    total = f_add(total, sums[i / (S * R)][i / R % S][i % R]);
  }
}

// S strips of T short tiles from tile `tile` on.
template <class Format, int R, int S, int T>
PYINFER_INLINE void f32_short_strips(const MatmulArgs& args, size_t tile, int first_strip, size_t ahead) {
  const typename Format::Group* groups[T];
  const float* x[T];
  F sums[1][T][S][R];
  PYINFER_UNROLL
  for (int t = 0; t < T; ++t) {
    groups[t] = (const typename Format::Group*)(args.tiles + (tile + (size_t)t) * args.tile_bytes);
    x[t] = (const float*)args.panel;
  }
  f32_pass<Format, R, S, T, 2, 1>(groups, args.n_groups * Format::kGroupCols, first_strip, x, args.panel_stride, 0,
                                  ahead, sums);
  PYINFER_UNROLL
  for (int t = 0; t < T; ++t)
    put<R, S>(sums[0][t], args, (tile + (size_t)t) * kTileRows + (size_t)(kLanes * first_strip));
}

// Short tiles from `first` on, T at once; returns the first one left.
template <class Format, int R, int S, int T>
PYINFER_INLINE size_t f32_short_tiles(const MatmulArgs& args, size_t first) {
  for (; first + T <= args.n_tiles; first += T) {
    for (int strip = 0; strip < kStrips; strip += S)
      f32_short_strips<Format, R, S, T>(args, first, strip, kFloatBytesAhead);
  }
  return first;
}

// The product of R rows of a float panel, from row `first` on. Field by field: a copy as a whole would read in one piece what the caller has
// just written in many, and wait until all of it has left the store buffer.
template <int R>
PYINFER_INLINE MatmulArgs float_rows(const MatmulArgs& args, int first) {
  return {args.tiles,
          args.n_tiles,
          args.tile_bytes,
          args.n_groups,
          args.panel + (size_t)first * args.panel_stride * sizeof(float),
          args.panel_stride,
          R,
          args.out + (size_t)first * args.out_stride,
          args.out_stride,
          args.accumulate};
}

// Functions that are not inlined have the registers to themselves; copies of what they are given can stay there, while the original might be
// written over by results. (Of the integer kernel a copy takes registers that it has not got.)
template <class Format, int R>
__attribute__((noinline)) void f32_short(const MatmulArgs& given, int first) {
  constexpr int S = float_strips<R>(), T = kSumsAtOnce<Format, R, S>;
  const MatmulArgs args = float_rows<R>(given, first);
  const size_t done = f32_short_tiles<Format, R, S, T>(args, 0);
  if constexpr (T > 1) f32_short_tiles<Format, R, S, 1>(args, done);
}

template <class Format, int R>
__attribute__((noinline)) void f32_long(const MatmulArgs& given, int first) {
  constexpr int S = float_strips<R>(), T = kSumsAtOnce<Format, R, S>;
  constexpr size_t kGroups = kSumGroups<Format>;
  const MatmulArgs args = float_rows<R>(given, first);
  for (size_t t = 0; t < args.n_tiles; ++t) {
    const auto* groups = (const typename Format::Group*)(args.tiles + t * args.tile_bytes);
    for (int strip = 0; strip < kStrips; strip += S) {
      F totals[S][R];
      PYINFER_UNROLL
      for (int i = 0; i < S * R; ++i) totals[i / R][i % R] = f_zero();
      const float* x = (const float*)args.panel;
      size_t g = 0;
      for (; T > 1 && g + T * kGroups <= args.n_groups; g += T * kGroups)
        f32_add<Format, R, S, T>(groups + g, kGroups, strip, x + g * Format::kGroupCols, args.panel_stride, totals);
      for (; g < args.n_groups; g += kGroups) {
        const size_t n = args.n_groups - g < kGroups ? args.n_groups - g : kGroups;
        f32_add<Format, R, S, 1>(groups + g, n, strip, x + g * Format::kGroupCols, args.panel_stride, totals);
      }
      put<R, S>(totals, args, t * kTileRows + (size_t)(kLanes * strip));
    }
  }
}

// One tile added to what is there. Where it is short all of it is here: the processor works on it and on the product around it at a time.
template <class Format, int R>
PYINFER_INLINE void f32_tile(const MatmulArgs& args, size_t tile) {
  if (args.n_groups > kSumGroups<Format>) {
    MatmulArgs one = float_rows<R>(args, 0);
    one.tiles += tile * one.tile_bytes;
    one.n_tiles = 1;
    one.out += tile * kTileRows;
    f32_long<Format, R>(one, 0);
    return;
  }
  constexpr int S = float_strips<R>();
  for (int strip = 0; strip < kStrips; strip += S)
    f32_short_strips<Format, R, S, 1>(args, tile, strip, kAddedTilesAhead * args.tile_bytes);
}

template <class Format>
void matmul_tile(const MatmulArgs& args, size_t tile) {
  static_assert(kAddedRows == 2);
  if (args.n_rows == 1) {
    f32_tile<Format, 1>(args, tile);
  } else {
    f32_tile<Format, 2>(args, tile);
  }
}

template <class Format>
constexpr MatmulTile matmul_tile_entry() {
  if constexpr (is_float_format<Format>) {
    return matmul_tile<Format>;
  } else {
    return nullptr;
  }
}

// A function of its own: a call in the loop takes registers from who has nothing to add.
template <class Format, int R, int Blocks>
__attribute__((noinline)) void int8_rows_adding(const MatmulArgs& args) {
  int8_rows<Format, R, Blocks, true>(args);
}

// R rows of a panel: all of it, or of floats those from row `first` on.
template <class Format, bool kInt8, int R>
void matmul_rows(const MatmulArgs& args, int first) {
  if constexpr (kInt8) {
    if constexpr (R <= kAddedRows) {
      if (args.n_added > 0)
        return args.scale_blocks == 1 ? int8_rows_adding<Format, R, 1>(args) : int8_rows_adding<Format, R, 2>(args);
    }
    if (args.scale_blocks == 1) {
      int8_rows<Format, R, 1>(args);
    } else {
      int8_rows<Format, R, 2>(args);
    }
  } else {
    if (args.n_groups <= kSumGroups<Format>) return f32_short<Format, R>(args, first);
    f32_long<Format, R>(args, first);
  }
}

// Calls matmul_rows with the number of rows as a constant: 1 … R.
template <class Format, bool kInt8, int R>
void matmul_dispatch(const MatmulArgs& args, int first, int n) {
  if constexpr (R == 1) {
    matmul_rows<Format, kInt8, 1>(args, first);
  } else if (n == R) {
    matmul_rows<Format, kInt8, R>(args, first);
  } else {
    matmul_dispatch<Format, kInt8, R - 1>(args, first, n);
  }
}

template <class Format>
void matmul_f32(const MatmulArgs& args) {
  for (int r = 0; r < args.n_rows; r += kFloatRows)
    matmul_dispatch<Format, false, kFloatRows>(args, r, args.n_rows - r < kFloatRows ? args.n_rows - r : kFloatRows);
}

#if !defined(PYINFER_MATRIX_UNIT)  // else it is in matrix.inl.h
constexpr size_t kPanelsAtOnce = 1;

template <class Format>
void matmul_int8(const MatmulArgs& args) {
  matmul_dispatch<Format, true, kPanelRows>(args, 0, args.n_rows);
}
#endif

}  // namespace
}  // namespace pyinfer
