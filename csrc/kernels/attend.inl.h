// Attention with online softmax over pages of 64 positions.
//
// For each query, page by page:  s = q · K;  m' = max(m, max s);  p = e^(s − m');  l = l · e^(m − m') + Σp;  o = o · e^(m − m') + p · V
// and at the end out = o / l. Pages begin at multiples of 64 whatever the batch, and every query has sums of its own, so its bits
// do not depend on the other rows or on how a prompt was cut into chunks.
//
// Both products are the same small kernel: out(Q, columns) += a(Q, n) · b(n, columns) with b as the cache keeps it; for scores b is a
// page of K, (head_dim, positions), for the output a page of V, (positions, head_dim). Where the cache has a scale a position, it multiplies
// the scores, and the weights before they meet V. Integers of 16 bits meet integers: a query has a scale of its own, and the weights of a
// page that of their largest. With a window a query begins at the page of the first position it sees; scores before that are masked, and a
// page that it does not see at all leaves its sums alone.
#pragma once

#include <float.h>

#include "kernels/kernels.h"
#include "kernels/rows.inl.h"

namespace pyinfer {
namespace {

constexpr float kMinusInfinity = -3.0e38f;  // finite: differences of two must not be NaN

// The kinds of cache: what a value is, kLanes columns of them, and how they meet the factors of a query. Of kTogether rows the values of a
// column stand side by side. Sums start with what is there, or, of integers, get a scale and are added to it.
struct FloatProducts {
  typedef float Factor;
  typedef F Sum;
  static constexpr int kTogether = 1;
  static Sum start(F before) { return before; }
  static Sum add(Sum sum, F row, const Factor* factor) { return f_fma(f_set(*factor), row, sum); }
  static F finish(Sum sum, F, const float*) { return sum; }
};

struct KvF16 : FloatProducts {
  typedef uint16_t Value;
  static constexpr bool kScaled = false;
  static F load(const Value* p) { return f_load_half(p); }
};

struct KvQ8 : FloatProducts {
  typedef int8_t Value;
  static constexpr bool kScaled = true;
  static F load(const Value* p) { return f_from_i(i_load_signed_bytes(p)); }
};

struct KvI16 {
  typedef int16_t Value;
  typedef int16_t Factor;
  typedef I Sum;
  static constexpr bool kScaled = true;
  static constexpr int kTogether = 2;
  static I load(const Value* p) { return i_load(p); }
  static Sum start(F) { return i_set(0); }
  static Sum add(Sum sum, I pairs, const Factor* factors) { return i_add_pairs(sum, pairs, factors); }
  static F finish(Sum sum, F before, const float* scale) { return f_fma(f_from_i(sum), f_set(*scale), before); }
};

template <class Kv>
constexpr bool kIntegers = Kv::kTogether > 1;

// Floats that the queries of a round take, and their outputs: kQueries heads of 256, or one of kMaxHeadDim.
constexpr int kRoundFloats = kQueries * 256 > kMaxHeadDim ? kQueries * 256 : kMaxHeadDim;
// What each query has one of stands in whole vectors.
constexpr int kRoundLanes = (kQueries + kLanes - 1) / kLanes * kLanes;

// n, or as much of it as stands together: positions of a page, dimensions in Queries::q.
inline int within_page(int n) { return n < kPagePositions ? n : kPagePositions; }

// The state of the queries of a round on their way through the pages. Vectors that cross cache lines would be slow to store, and slower to load
// at once.
template <class Kv>
struct alignas(kCacheLine) Queries {
  int n;                 // queries in use
  int first[kQueries];   // the first position each sees
  int n_seen[kQueries];  // and the end of what it sees
  // For each kPagePositions dimensions of a head those of all queries, (n, kPagePositions), as the weights stand.
  alignas(kCacheLine) typename Kv::Factor q[kRoundFloats];
  alignas(kCacheLine) float q_scale[kRoundLanes];         // of integers
  alignas(kCacheLine) float s[kQueries][kPagePositions];  // scores, then weights
  // (n, v_stride). Rows stand close together: at a distance of whole pages all would meet in a few sets of the first-level cache.
  alignas(kCacheLine) float o[kRoundFloats];
  alignas(kCacheLine) float m[kRoundLanes];  // largest score so far
  alignas(kCacheLine) float l[kRoundLanes];  // sum of weights so far
};

// A product of the rows of a round.
template <class Kv>
struct Product {
  const typename Kv::Factor* a;  // (queries, n), rows kPagePositions apart: one pointer serves all
  const float* scales;           // of rows of integers
  int n;
  const typename Kv::Value* b;  // (n, columns)
  int b_stride;                 // columns of a row of b in the cache
  float* out;                   // (queries, columns)
  int out_stride;
  bool adds;  // to what is there
  // From b to what is multiplied next, of the same shape: each load asks for its counterpart there, which the processor does not foresee, since
  // keys and values of a head come a page at a time. 0 where nothing comes next.
  uintptr_t ahead;
};

// V vectors of kLanes columns for Q rows: out += a · b.
template <class Kv, int Q, int V>
inline void multiply_add(const Product<Kv>& product, int column) {
  const typename Kv::Factor* a = product.a;
  const typename Kv::Value* b = product.b + column * Kv::kTogether;
  float* const out = product.out + column;
  const auto before = [&](int i, int v) {
    return product.adds ? f_load(out + i * product.out_stride + v * kLanes) : f_zero();
  };
  typename Kv::Sum sums[Q][V];
  PYINFER_UNROLL
  for (int i = 0; i < Q; ++i) {
    PYINFER_UNROLL
    for (int v = 0; v < V; ++v) sums[i][v] = Kv::start(before(i, v));
  }
  for (int k = 0; k < product.n; k += Kv::kTogether, a += Kv::kTogether, b += product.b_stride * Kv::kTogether) {
    decltype(Kv::load(b)) row[V];
    PYINFER_UNROLL
    for (int v = 0; v < V; ++v) {
      row[v] = Kv::load(b + v * kLanes * Kv::kTogether);
      __builtin_prefetch((const void*)((uintptr_t)(b + v * kLanes * Kv::kTogether) + product.ahead));
    }
    PYINFER_UNROLL
    for (int i = 0; i < Q; ++i) {
      PYINFER_UNROLL
      for (int v = 0; v < V; ++v) sums[i][v] = Kv::add(sums[i][v], row[v], a + i * kPagePositions);
    }
  }
  PYINFER_UNROLL
  for (int i = 0; i < Q; ++i) {
    PYINFER_UNROLL
    for (int v = 0; v < V; ++v)
      f_store(out + i * product.out_stride + v * kLanes, Kv::finish(sums[i][v], before(i, v), product.scales + i));
  }
}

// The most queries that leave room in the registers for the sums of four vectors each.
constexpr int kWideQueries = (kRegisters - 5) / 4;

// All columns, rounded up to whole vectors. Each vector of halves costs a conversion that Q queries share. With few queries four vectors at
// a time, for sums enough to wait for; with many as leave the sums in registers, or one where the factor comes with the instruction.
template <class Kv, int Q>
inline void multiply_add_columns(const Product<Kv>& product, int columns) {
  constexpr int V = Q <= kWideQueries ? 4 : kBroadcasts ? 1 : 2;
  int c = 0;
  for (; c + V * kLanes <= columns; c += V * kLanes) multiply_add<Kv, Q, V>(product, c);
  for (; c < columns; c += kLanes) multiply_add<Kv, Q, 1>(product, c);
}

// The same in two halves, each with four vectors at a time. One vector at a time would meet the page in strides, once a vector: of so few queries
// one token's attention waits for memory.
template <class Kv, int Q>
inline void multiply_add_halves(const Product<Kv>& product, int columns) {
  constexpr int kFirst = (Q + 1) / 2;
  multiply_add_columns<Kv, kFirst>(product, columns);
  const Product<Kv> second{
      product.a + kFirst * kPagePositions,       product.scales + kFirst, product.n,    product.b, product.b_stride,
      product.out + kFirst * product.out_stride, product.out_stride,      product.adds, 0};
  multiply_add_columns<Kv, Q - kFirst>(second, columns);
}

// As above with the number of queries as a constant: 1 … Q.
template <class Kv, int Q = kQueries>
void multiply_add_queries(int n_queries, const Product<Kv>& product, int columns) {
  if constexpr (Q == 1) {
    multiply_add_columns<Kv, 1>(product, columns);
  } else if (n_queries == Q) {
    if constexpr (kBroadcasts && Q > kWideQueries && Q <= 2 * kWideQueries) {
      multiply_add_halves<Kv, Q>(product, columns);
    } else {
      multiply_add_columns<Kv, Q>(product, columns);
    }
  } else {
    multiply_add_queries<Kv, Q - 1>(n_queries, product, columns);
  }
}

// All bits at 64 … 127, which stand for the positions of a page, and none at as many before and behind.
struct Sight {
  int32_t bits[3 * kPagePositions];
};
constexpr Sight make_sight() {
  Sight sight{};
  for (int i = kPagePositions; i < 2 * kPagePositions; ++i) sight.bits[i] = -1;
  return sight;
}
constexpr Sight kSight = make_sight();

// Gives positions of a page that are not seen the least score: those before `begin` and from `end` on.
inline void mask(float* s, int begin, int end) {
  int32_t least;
  memcpy(&least, &kMinusInfinity, sizeof least);
  const int32_t* from = kSight.bits + kPagePositions - (begin > 0 ? begin : 0);
  const int32_t* to = kSight.bits + 2 * kPagePositions - end;
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kLanes) {
    const I seen = i_and(i_load(from + i), i_load(to + i));
    const I hidden = i_sub(i_set(-1), seen);
    f_store(s + i, f_from_bits(i_add(i_and(i_load(s + i), seen), i_and(i_set(least), hidden))));
  }
}

// The largest score of a page, or m if that is larger.
inline float largest_score(const float* s, float m) {
  F largest = f_set(m);
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kLanes) largest = f_max(largest, f_load(s + i));
  return f_hmax(largest);
}

// Scores of a page to weights; returns their sum.
inline float soften(float* s, float m) {
  SixteenSums sums;
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kLanes) {
    const F p = f_exp(f_sub(f_load(s + i), f_set(m)));
    f_store(s + i, p);
    F& sum = sums.parts[i / kLanes % SixteenSums::kParts];
    sum = f_add(sum, p);
  }
  return sums.total();
}

inline void scale_row(float* row, int n, float factor) {
  if (factor == 1.0f) return;
  for (int i = 0; i < n; i += kLanes) f_store(row + i, f_mul(f_load(row + i), f_set(factor)));
}

// Multiplies the scores of a page by its scales.
inline void scale_positions(float* s, const float* scales) {
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kLanes) f_store(s + i, f_mul(f_load(s + i), f_load(scales + i)));
}

// Weights of a page times the scales of its values. Beyond what a query sees weights are 0, and scales are whatever stood there.
inline void scale_weights(const float* weights, const float* scales, float* scaled) {
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kLanes) {
    const F weight = f_load(weights + i);
    f_store(scaled + i, f_keep_from(f_mul(weight, f_load(scales + i)), weight, f_set(FLT_MIN)));
  }
}

// The same as integers; returns their scale.
inline float to_factors(const float* weights, const float* scales, int16_t* factors) {
  alignas(kCacheLine) float scaled[kPagePositions];
  scale_weights(weights, scales, scaled);
  return to_integers<kMostWeight>(scaled, kPagePositions, factors);
}

// Asks for the scales of a page, which are needed at once and lie where the processor does not expect to go next.
inline void prefetch_scales(const float* scales) {
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kCacheLine / (int)sizeof(float)) __builtin_prefetch(scales + i);
}

// Goes on to a page: scores, weights, outputs. What queries have in common is done for all of them at once, a step after the other, so that
// the processor has several at hand where one would wait for itself.
template <class Kv>
inline void attend_page(Queries<Kv>& queries, const AttendArgs& args, int page, bool is_last) {
  const int start = page * kPagePositions;
  const auto* k = (const typename Kv::Value*)(args.pages[page] + args.k_offset);
  const auto* v = (const typename Kv::Value*)(args.pages[page] + args.v_offset);
  const auto* k_scales = (const float*)(k + args.head_dim * kPagePositions);
  const auto* v_scales = (const float*)(v + args.v_stride * kPagePositions);
  if constexpr (Kv::kScaled) prefetch_scales(k_scales), prefetch_scales(v_scales);
  int n_valid[kQueries], n_masked[kQueries], longest = 0;
  for (int i = 0; i < queries.n; ++i) {
    const int n = within_page(queries.n_seen[i] - start);
    n_valid[i] = n < 0 ? 0 : n;
    n_masked[i] = queries.first[i] - start;
    longest = n_valid[i] > longest ? n_valid[i] : longest;
  }

  for (int d = 0; d < args.head_dim; d += kPagePositions) {
    const Product<Kv> product{queries.q + d * queries.n,
                              queries.q_scale,
                              within_page(args.head_dim - d),
                              k + d * kPagePositions,
                              kPagePositions,
                              queries.s[0],
                              kPagePositions,
                              d > 0,
                              (uintptr_t)v - (uintptr_t)k};
    multiply_add_queries<Kv>(queries.n, product, longest);
  }

  alignas(kCacheLine) float before[kRoundLanes], sums[kRoundLanes] = {}, decay[kRoundLanes];
  float scales[kRoundLanes] = {};
  alignas(kCacheLine) int16_t integers[kIntegers<Kv> ? kQueries : 1][kPagePositions];
  typename Kv::Factor* weights;  // as they meet V
  if constexpr (kIntegers<Kv>) {
    weights = integers[0];
  } else {
    weights = queries.s[0];
  }
  memcpy(before, queries.m, sizeof before);
  // Behind `longest` scores are whatever stood there, until they are masked.
  for (int i = 0; i < queries.n; ++i) {
    if (n_masked[i] >= kPagePositions) continue;
    if constexpr (Kv::kScaled) scale_positions(queries.s[i], k_scales);
    if (args.softcap > 0.0f) soft_cap(queries.s[i], kPagePositions, args.softcap);
    if (n_masked[i] > 0 || n_valid[i] < kPagePositions) mask(queries.s[i], n_masked[i], n_valid[i]);
    queries.m[i] = largest_score(queries.s[i], queries.m[i]);
  }
  for (int i = 0; i < queries.n; i += kLanes)
    f_store(decay + i, f_exp(f_sub(f_load(before + i), f_load(queries.m + i))));
  for (int i = 0; i < queries.n; ++i) {
    if (n_masked[i] >= kPagePositions) {
      memset(weights + i * kPagePositions, 0, kPagePositions * sizeof *weights);
      continue;
    }
    sums[i] = soften(queries.s[i], queries.m[i]);
    if constexpr (kIntegers<Kv>) {
      scales[i] = to_factors(queries.s[i], v_scales, weights + i * kPagePositions);
    } else if constexpr (Kv::kScaled) {
      scale_weights(queries.s[i], v_scales, queries.s[i]);
    }
    scale_row(queries.o + i * args.v_stride, args.v_stride, decay[i]);
  }
  for (int i = 0; i < queries.n; i += kLanes)
    f_store(queries.l + i, f_add(f_mul(f_load(queries.l + i), f_load(decay + i)), f_load(sums + i)));

  const uintptr_t next = is_last ? 0 : (uintptr_t)(args.pages[page + 1] + args.k_offset) - (uintptr_t)v;
  const Product<Kv> product{weights, scales, longest, v, args.v_stride, queries.o, args.v_stride, true, next};
  multiply_add_queries<Kv>(queries.n, product, args.v_stride);
}

// In vectors: of a length that it does not know GCC makes `rep movs` on x86-64, which starts slowly (1 % of a prompt of 512 of SmolLM2).
template <class T>
inline void copy(T* to, const T* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) memcpy(to + i, from + i, kLanes * sizeof *to);
  if (i < n) memcpy(to + i, from + i, (size_t)(n - i) * sizeof *to);
}

// Takes query `i` of a round.
template <class Kv>
inline void put_query(Queries<Kv>& queries, int i, const float* q, int head_dim) {
  const auto put = [&](const typename Kv::Factor* from) {
    for (int d = 0; d < head_dim; d += kPagePositions)
      copy(queries.q + d * queries.n + i * kPagePositions, from + d, within_page(head_dim - d));
  };
  if constexpr (kIntegers<Kv>) {
    const RowIntegers<kMostQuery, int16_t> integers(q, head_dim);
    queries.q_scale[i] = integers.scale;
    put(integers.q);
  } else {
    put(q);
  }
}

template <class Kv>
void attend(const AttendArgs& args) {
  Queries<Kv> queries;
  const int n_queries = args.n_rows * args.n_heads;
  const int padded = (args.head_dim + kPagePositions - 1) / kPagePositions * kPagePositions;
  const int most = kRoundFloats / padded < kQueries ? kRoundFloats / padded : kQueries;
  // Rounds of equal size rather than full ones and a small rest: a round reads all of K and V.
  const int n_rounds = (n_queries + most - 1) / most;
  const int round = (n_queries + n_rounds - 1) / n_rounds;
  for (int first = 0; first < n_queries; first += round) {
    queries.n = n_queries - first < round ? n_queries - first : round;
    for (int i = 0; i < kRoundLanes; ++i) {
      queries.m[i] = kMinusInfinity;
      queries.l[i] = 0.0f;
    }
    memset(queries.o, 0, (size_t)(queries.n * args.v_stride) * sizeof(float));
    int n_seen = 0;
    for (int i = 0; i < queries.n; ++i) {
      const int row = (first + i) / args.n_heads, head = (first + i) % args.n_heads;
      put_query(queries, i, args.q + (size_t)row * args.q_stride + (size_t)(head * args.head_dim), args.head_dim);
      n_seen = queries.n_seen[i] = args.first_position + row + 1;
      queries.first[i] = args.window > 0 && n_seen > args.window ? n_seen - args.window : 0;
    }
    // The first query of a round is of its first row, which sees the earliest positions.
    for (int page = queries.first[0] / kPagePositions; page * kPagePositions < n_seen; ++page)
      attend_page<Kv>(queries, args, page, (page + 1) * kPagePositions >= n_seen);
    for (int i = 0; i < queries.n; ++i) {
      const int row = (first + i) / args.n_heads, head = (first + i) % args.n_heads;
      float* out = args.out + (size_t)row * args.out_stride + (size_t)(head * args.head_dim);
      for (int d = 0; d < args.head_dim; ++d) out[d] = queries.o[i * args.v_stride + d] / queries.l[i];
    }
  }
}

}  // namespace
}  // namespace pyinfer
