// Attention with online softmax over pages of 64 positions.
//
// For each query, page by page:  s = q · K;  m' = max(m, max s);  p = e^(s − m');  l = l · e^(m − m') + Σp;  o = o · e^(m − m') + p · V
// and at the end out = o / l. Pages begin at multiples of 64 whatever the batch, and every query has sums of its own, so its bits
// do not depend on the other rows or on how a prompt was cut into chunks.
//
// Both products are the same small kernel: out(Q, columns) += a(Q, n) · b(n, columns) with b as the cache keeps it; for scores b is a
// page of K, (head_dim, positions), for the output a page of V, (positions, head_dim). Where the cache has a scale a position, it multiplies
// the scores, and the weights before they meet V. With a window a query begins at the page of the first position it sees; scores
// before that are masked, and a page that it does not see at all leaves its sums alone.
#pragma once

#include "kernels/kernels.h"
#include "kernels/rows.inl.h"

namespace pyinfer {
namespace {

constexpr float kMinusInfinity = -3.0e38f;  // finite: differences of two must not be NaN

// The kinds of cache: what a value is, and kLanes of them as floats.
struct KvF16 {
  typedef uint16_t Value;
  static constexpr bool kScaled = false;
  static F load(const Value* p) { return f_load_half(p); }
};

struct KvQ8 {
  typedef int8_t Value;
  static constexpr bool kScaled = true;
  static F load(const Value* p) { return f_from_i(i_load_signed_bytes(p)); }
};

// Floats that the queries of a round take, and their outputs: kQueries heads of 256, or one of kMaxHeadDim.
constexpr int kRoundFloats = kQueries * 256 > kMaxHeadDim ? kQueries * 256 : kMaxHeadDim;
// What each query has one of stands in whole vectors.
constexpr int kRoundLanes = (kQueries + kLanes - 1) / kLanes * kLanes;

// n, or as much of it as stands together: positions of a page, dimensions in Queries::q.
inline int within_page(int n) { return n < kPagePositions ? n : kPagePositions; }

// The state of the queries of a round on their way through the pages.
struct Queries {
  int n;                 // queries in use
  int first[kQueries];   // the first position each sees
  int n_seen[kQueries];  // and the end of what it sees
  // For each kPagePositions dimensions of a head those of all queries, (n, kPagePositions), as the weights stand.
  float q[kRoundFloats];
  float s[kQueries][kPagePositions];  // scores, then weights
  // (n, v_stride). Rows stand close together: at a distance of whole pages all would meet in a few sets of the first-level cache.
  float o[kRoundFloats];
  float m[kRoundLanes];  // largest score so far
  float l[kRoundLanes];  // sum of weights so far
};

// V vectors of kLanes columns for Q rows: out += a · b. Rows of `a` are kPagePositions apart: one pointer serves all.
template <class Kv, int Q, int V>
inline void multiply_add(const float* a, int n, const typename Kv::Value* b, int b_stride, float* out, int out_stride) {
  F sums[Q][V];
  PYINFER_UNROLL
  for (int i = 0; i < Q; ++i) {
    PYINFER_UNROLL
    for (int v = 0; v < V; ++v) sums[i][v] = f_load(out + i * out_stride + v * kLanes);
  }
  for (int k = 0; k < n; ++k, ++a, b += b_stride) {
    F row[V];
    PYINFER_UNROLL
    for (int v = 0; v < V; ++v) row[v] = Kv::load(b + v * kLanes);
    PYINFER_UNROLL
    for (int i = 0; i < Q; ++i) {
      const F factor = f_set(a[i * kPagePositions]);
      PYINFER_UNROLL
      for (int v = 0; v < V; ++v) sums[i][v] = f_fma(factor, row[v], sums[i][v]);
    }
  }
  PYINFER_UNROLL
  for (int i = 0; i < Q; ++i) {
    PYINFER_UNROLL
    for (int v = 0; v < V; ++v) f_store(out + i * out_stride + v * kLanes, sums[i][v]);
  }
}

// All columns, rounded up to whole vectors. Each vector of halves costs a conversion that Q queries share. With few queries four vectors at
// a time, for sums enough to wait for; with many as leave the sums in registers, or one where the factor comes with the instruction.
template <class Kv, int Q>
inline void multiply_add_columns(const float* a, int n, const typename Kv::Value* b, int b_stride, int columns,
                                 float* out, int out_stride) {
  constexpr int V = Q * 4 + 5 <= kRegisters ? 4 : kBroadcasts ? 1 : 2;
  int c = 0;
  for (; c + V * kLanes <= columns; c += V * kLanes) multiply_add<Kv, Q, V>(a, n, b + c, b_stride, out + c, out_stride);
  for (; c < columns; c += kLanes) multiply_add<Kv, Q, 1>(a, n, b + c, b_stride, out + c, out_stride);
}

// As above with the number of queries as a constant: 1 … Q.
template <class Kv, int Q = kQueries>
void multiply_add_queries(int n_queries, const float* a, int n, const typename Kv::Value* b, int b_stride, int columns,
                          float* out, int out_stride) {
  if constexpr (Q == 1) {
    multiply_add_columns<Kv, 1>(a, n, b, b_stride, columns, out, out_stride);
  } else if (n_queries == Q) {
    multiply_add_columns<Kv, Q>(a, n, b, b_stride, columns, out, out_stride);
  } else {
    multiply_add_queries<Kv, Q - 1>(n_queries, a, n, b, b_stride, columns, out, out_stride);
  }
}

// Masks the scores of positions that are not seen; returns the largest, or `m` if that is larger.
inline float mask(float* s, int n_masked, int n_valid, float m) {
  for (int i = 0; i < n_masked; ++i) s[i] = kMinusInfinity;
  for (int i = n_valid; i < kPagePositions; ++i) s[i] = kMinusInfinity;
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

// Multiplies the scores or weights of a page by its scales.
inline void scale_positions(float* s, const float* scales) {
  PYINFER_UNROLL
  for (int i = 0; i < kPagePositions; i += kLanes) f_store(s + i, f_mul(f_load(s + i), f_load(scales + i)));
}

// Goes on to a page: scores, weights, outputs. What queries have in common is done for all of them at once, a step after the other, so that
// the processor has several at hand where one would wait for itself.
template <class Kv>
inline void attend_page(Queries& queries, const AttendArgs& args, int page) {
  const int start = page * kPagePositions;
  const auto* k = (const typename Kv::Value*)(args.pages[page] + args.k_offset);
  const auto* v = (const typename Kv::Value*)(args.pages[page] + args.v_offset);
  int n_valid[kQueries], n_masked[kQueries], longest = 0;
  for (int i = 0; i < queries.n; ++i) {
    const int n = within_page(queries.n_seen[i] - start);
    n_valid[i] = n < 0 ? 0 : n;
    n_masked[i] = queries.first[i] - start;
    longest = n_valid[i] > longest ? n_valid[i] : longest;
  }

  memset(queries.s, 0, (size_t)queries.n * sizeof queries.s[0]);
  for (int d = 0; d < args.head_dim; d += kPagePositions) {
    multiply_add_queries<Kv>(queries.n, queries.q + d * queries.n, within_page(args.head_dim - d),
                             k + d * kPagePositions, kPagePositions, longest, queries.s[0], kPagePositions);
  }

  float before[kRoundLanes], sums[kRoundLanes] = {}, factors[kRoundLanes];
  memcpy(before, queries.m, sizeof before);
  for (int i = 0; i < queries.n; ++i) {
    if (n_masked[i] >= kPagePositions) continue;
    if constexpr (Kv::kScaled) scale_positions(queries.s[i], (const float*)(k + args.head_dim * kPagePositions));
    if (args.softcap > 0.0f) soft_cap(queries.s[i], kPagePositions, args.softcap);
    queries.m[i] = mask(queries.s[i], n_masked[i], n_valid[i], queries.m[i]);
  }
  for (int i = 0; i < queries.n; i += kLanes)
    f_store(factors + i, f_exp(f_sub(f_load(before + i), f_load(queries.m + i))));
  for (int i = 0; i < queries.n; ++i) {
    if (n_masked[i] >= kPagePositions) {
      memset(queries.s[i], 0, sizeof queries.s[i]);
      continue;
    }
    sums[i] = soften(queries.s[i], queries.m[i]);
    if constexpr (Kv::kScaled) scale_positions(queries.s[i], (const float*)(v + args.v_stride * kPagePositions));
    scale_row(queries.o + i * args.v_stride, args.v_stride, factors[i]);
  }
  for (int i = 0; i < queries.n; i += kLanes)
    f_store(queries.l + i, f_add(f_mul(f_load(queries.l + i), f_load(factors + i)), f_load(sums + i)));

  multiply_add_queries<Kv>(queries.n, queries.s[0], longest, v, args.v_stride, args.v_stride, queries.o, args.v_stride);
}

template <class Kv>
void attend(const AttendArgs& args) {
  Queries queries;
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
      const float* q = args.q + (size_t)row * args.q_stride + (size_t)(head * args.head_dim);
      for (int d = 0; d < args.head_dim; d += kPagePositions) {
        const size_t bytes = (size_t)within_page(args.head_dim - d) * sizeof(float);
        memcpy(queries.q + d * queries.n + i * kPagePositions, q + d, bytes);
      }
      n_seen = queries.n_seen[i] = args.first_position + row + 1;
      queries.first[i] = args.window > 0 && n_seen > args.window ? n_seen - args.window : 0;
    }
    // The first query of a round is of its first row, which sees the earliest positions.
    for (int page = queries.first[0] / kPagePositions; page * kPagePositions < n_seen; ++page)
      attend_page<Kv>(queries, args, page);
    for (int i = 0; i < queries.n; ++i) {
      const int row = (first + i) / args.n_heads, head = (first + i) % args.n_heads;
      float* out = args.out + (size_t)row * args.out_stride + (size_t)(head * args.head_dim);
      for (int d = 0; d < args.head_dim; ++d) out[d] = queries.o[i * args.v_stride + d] / queries.l[i];
    }
  }
}

}  // namespace
}  // namespace pyinfer
