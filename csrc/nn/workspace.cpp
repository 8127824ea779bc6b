#include "nn/workspace.h"

#include <algorithm>

#include "base/layout.h"
#include "nn/adapter.h"

namespace pyinfer {
namespace {

// Floats between the rows of a float panel: rows a power of two apart would fall into one set of the cache.
constexpr size_t kFloatRowGap = 16;

void lay_out(Workspace& w, const WorkspaceShape& shape, Layout& layout) {
  const size_t threads = static_cast<size_t>(w.pool.n_threads());
  w.x = layout.take<float>(w.max_rows * w.x_stride);
  w.qkv = layout.take<float>(w.max_rows * w.qkv_stride);
  w.attended = layout.take<float>(w.max_rows * w.q_width);
  w.hidden = layout.take<float>(w.max_rows * w.hidden_stride);
  w.branch = layout.take<float>(shape.needs_branch ? w.max_rows * w.x_stride : 0);
  w.cosines = layout.take<float>(w.rope_sets * w.max_rows * w.rope_pairs);
  w.sines = layout.take<float>(w.rope_sets * w.max_rows * w.rope_pairs);
  const bool needed[2] = {shape.needs_int8, shape.needs_f32};
  for (int kind = 0; kind < 2; ++kind) {
    w.panels[kind] = layout.take<uint8_t>(needed[kind] ? w.max_rows * w.row_bytes[kind] : 0);
    w.own_panels[kind] = layout.take<uint8_t>(needed[kind] ? threads * kMaxPanelRows * w.row_bytes[kind] : 0);
  }
  w.own_rows = layout.take<float>(threads * kMaxPanelRows * w.own_stride);
  w.own_tiles = layout.take<float>(threads * 2 * w.rows_at_once() * Workspace::kOwnTileCols);
  w.segments = layout.take<Segment>(w.max_rows);
  w.wanted = layout.take<float*>(w.max_rows);
  w.pieces = layout.take<Piece>(w.max_rows);
  const size_t n_chunks = (w.max_cols + kLowRankChunk - 1) / kLowRankChunk;
  w.low_rank_partial = layout.take<float>(w.max_rows * n_chunks * w.low_rank);
  w.low_rank_t = layout.take<float>(w.max_rows * w.low_rank);
  w.low_rank_done = layout.take<std::atomic<uint32_t>>(w.low_rank == 0 ? 0 : w.max_rows);
}

}  // namespace

Workspace::Workspace(const Kernels& k, ThreadPool& p, const WorkspaceShape& shape)
    : kernels(k),
      pool(p),
      max_rows(shape.max_rows),
      max_cols(round_up(std::max({shape.dim, shape.q_width, shape.n_ff}), kPanelCols)),
      own_stride(std::max(max_cols, 2 * round_up(shape.dim, kPanelCols))),
      x_stride(round_up(shape.dim, kTile)),
      q_width(round_up(shape.q_width, kTile)),
      kv_width(round_up(shape.kv_width, kTile)),
      qkv_stride(q_width + 2 * kv_width),
      hidden_stride(round_up(shape.n_ff, kTile)),
      rope_pairs(shape.rope_pairs),
      rope_sets(shape.rope_sets),
      row_bytes{own_stride / 32 * kPanelBlockBytes, (max_cols + kFloatRowGap) * sizeof(float)},
      low_rank(shape.low_rank) {
  allocate(shape);
}

void Workspace::grow(const WorkspaceShape& more) {
  WorkspaceShape shape = shape_;
  shape.needs_int8 |= more.needs_int8;
  shape.needs_f32 |= more.needs_f32;
  shape.low_rank = std::max(shape.low_rank, more.low_rank);
  if (shape.needs_int8 == shape_.needs_int8 && shape.needs_f32 == shape_.needs_f32 && shape.low_rank == shape_.low_rank)
    return;
  try {
    allocate(shape);
  } catch (...) {  // no memory: as it was
    place(shape_);
    throw;
  }
}

void Workspace::allocate(const WorkspaceShape& shape) {
  low_rank = shape.low_rank;
  Layout measure(nullptr);
  lay_out(*this, shape, measure);
  memory_ = AnonymousMemory(measure.used());
  place(shape);
}

void Workspace::place(const WorkspaceShape& shape) {
  shape_ = shape;
  low_rank = shape.low_rank;
  Layout layout(memory_.data());
  lay_out(*this, shape, layout);
}

}  // namespace pyinfer
