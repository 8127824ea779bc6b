#include "nn/workspace.h"

#include <algorithm>

#include "base/buffer.h"

namespace pyinfer {
namespace {

constexpr size_t kTile = 16;

// Hands out aligned runs of one block of memory; with no memory it only measures.
class Layout {
 public:
  explicit Layout(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    const size_t at = used_;
    used_ += round_up(count * sizeof(T), kAlignment);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

void lay_out(Workspace& w, const WorkspaceShape& shape, Layout& layout) {
  const size_t threads = static_cast<size_t>(w.pool.n_threads());
  w.x = layout.take<float>(w.max_rows * w.x_stride);
  w.qkv = layout.take<float>(w.max_rows * w.qkv_stride);
  w.attended = layout.take<float>(w.max_rows * w.q_width);
  w.hidden = layout.take<float>(w.max_rows * w.hidden_stride);
  w.cosines = layout.take<float>(w.max_rows * w.rope_pairs);
  w.sines = layout.take<float>(w.max_rows * w.rope_pairs);
  const bool needed[2] = {shape.needs_int8, shape.needs_f32};
  for (int kind = 0; kind < 2; ++kind) {
    w.panels[kind] = layout.take<uint8_t>(needed[kind] ? w.max_rows * w.row_bytes[kind] : 0);
    w.own_panels[kind] = layout.take<uint8_t>(needed[kind] ? threads * kMaxPanelRows * w.row_bytes[kind] : 0);
  }
  w.own_rows = layout.take<float>(threads * kMaxPanelRows * w.max_cols);
  w.own_tiles = layout.take<float>(threads * 2 * kMaxPanelRows * Workspace::kOwnTileCols);
  w.segments = layout.take<Segment>(w.max_rows);
  w.wanted = layout.take<float*>(w.max_rows);
}

}  // namespace

Workspace::Workspace(const Kernels& k, ThreadPool& p, const WorkspaceShape& shape)
    : kernels(k),
      pool(p),
      max_rows(shape.max_rows),
      max_cols(round_up(std::max({shape.dim, shape.q_width, shape.n_ff}), kPanelCols)),
      x_stride(round_up(shape.dim, kTile)),
      q_width(round_up(shape.q_width, kTile)),
      kv_width(round_up(shape.kv_width, kTile)),
      qkv_stride(q_width + 2 * kv_width),
      hidden_stride(round_up(shape.n_ff, kTile)),
      rope_pairs(shape.rope_pairs),
      row_bytes{max_cols / 32 * kPanelBlockBytes, max_cols * sizeof(float)} {
  Layout measure(nullptr);
  lay_out(*this, shape, measure);
  memory_ = AnonymousMemory(measure.used());
  Layout layout(memory_.data());
  lay_out(*this, shape, layout);
}

}  // namespace pyinfer
