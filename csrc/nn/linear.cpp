#include "nn/linear.h"

#include <algorithm>
#include <cstring>

#include "base/layout.h"
#include "nn/low_rank.h"

namespace pyinfer {
namespace {

// Weights that a thread of several takes at a time in a prefill: they stay in its second-level cache while the panels pass by.
constexpr size_t kRunBytes = 128 << 10;
// Panels that weights should meet at least where threads share out the rows: each part reads all weights.
constexpr size_t kPanelsAPart = 16;
// Weights of gate and up that meet a panel together.
constexpr size_t kGatedBytes = 96 << 10;

// Bytes of a tile up to which adapters' part joins it as it is made. Longer ones leave runs of B so long that to interrupt the base costs more
// (2048 columns of q4, one thread: an adapter costs 10 % instead of 8).
constexpr size_t kShortTile = 16 << 10;

// Panels that follow one another, as many as a kernel takes at a time.
struct Panels {
  size_t first, n;
};

// The panels of one input. Few rows: every thread packs them for itself when it meets the job, which spares a barrier. Many rows:
// they are packed once, together, and adapters make t of them while they are at hand. Each kind of activations that the job needs has
// panels of its own; kind 0 is int8, 1 is f32.
//
// With `pairs`, each int8 row is followed by its remainder, again as int8: the sum of their products is as good as one with 16 bits. A panel of rows
// then becomes two panels of half as many pairs.
class PackedInput {
 public:
  PackedInput(Workspace& w, const LinearInput& input, const LowRankJob& low, bool int8, bool f32, bool pairs = false)
      : w_(w),
        input_(input),
        low_(low),
        needed_{int8, f32},
        pairs_(pairs),
        rows_(static_cast<size_t>(w.kernels.panel_rows)),
        shared_(n_panels() > 1) {
    if (shared_) pack_all();
  }

  size_t n_panels() const { return (input_.n_rows + rows_ - 1) / rows_; }
  // Threads share out many rows in parts: what one of them writes of a row it then packs itself, and has it in its own caches.
  size_t n_parts() const {
    return std::clamp<size_t>(n_panels() / kPanelsAPart, 1, static_cast<size_t>(w_.pool.n_threads()));
  }
  size_t first_panel(size_t part) const { return n_panels() * part / n_parts(); }
  size_t first_row(size_t panel) const { return panel * rows_; }
  size_t rows_of(const Panels& panels) const {
    return std::min(panels.n * rows_, input_.n_rows - first_row(panels.first));
  }
  int scale_blocks() const { return pairs_ ? 1 : input_.scale_blocks; }
  size_t pairs_a_panel() const { return rows_ / 2; }
  // The panel of pairs whose first is row `r` of `panel`.
  const uint8_t* pair_panel(size_t panel, int thread, size_t r) const {
    return this->panel(0, panel, thread) + r * row_bytes(0);
  }
  const uint8_t* panel(int kind, size_t panel, int thread) const {
    return shared_ ? shared_panel(kind, panel) : own_panel(kind, thread);
  }

  // To be called by a thread before its first use of panels in this job.
  void prepare(int thread) const {
    for (int kind = 0; kind < 2 && !shared_; ++kind) {
      if (needed_[kind]) pack(kind, 0, own_panel(kind, thread), thread);
    }
  }

 private:
  size_t row_bytes(int kind) const {
    return kind == 0 ? (pairs_ ? 2 : 1) * round_up(input_.cols, kPanelCols) / 32 * kPanelBlockBytes
                     : w_.row_bytes[kind];
  }
  uint8_t* shared_panel(int kind, size_t panel) const { return w_.panels[kind] + first_row(panel) * row_bytes(kind); }
  uint8_t* own_panel(int kind, int thread) const {
    return w_.own_panels[kind] + static_cast<size_t>(thread) * kMaxPanelRows * w_.row_bytes[kind];
  }

  void pack_all() const {
    w_.pool.run(n_panels(), 1, [&](size_t begin, size_t end, int thread) {
      for (size_t p = begin; p < end; ++p) {
        FloatRows rows{};
        for (int kind = 0; kind < 2; ++kind) {
          if (needed_[kind]) rows = pack(kind, p, shared_panel(kind, p), thread);
        }
        if (low_.by_panels()) low_.make(first_row(p), rows_of({p, 1}), rows);
      }
    });
  }

  // Returns the rows as they went into the panel.
  FloatRows pack(int kind, size_t panel, uint8_t* out, int thread) const {
    const size_t first = first_row(panel), n = rows_of({panel, 1});
    if (kind == 1) return pack_floats(w_, input_, first, n, out);
    FloatRows rows{input_.x + first * input_.stride, input_.stride};
    if (input_.norm != nullptr) rows = normed(rows, n, thread);
    if (pairs_) {
      pack_pairs(n, out, thread);
    } else {
      pack_int8(rows.x, rows.stride, n, out);
    }
    return rows;
  }

  FloatRows normed(const FloatRows& rows, size_t n, int thread) const {
    float* own = own_rows(thread);
    for (size_t r = 0; r < n; ++r)
      w_.kernels.rms_norm(rows.x + r * rows.stride, input_.norm, input_.eps, input_.cols, own + r * w_.own_stride);
    return {own, w_.own_stride};
  }

  // The thread's own rows hold n normed rows; the remainder of each goes into the second half of its place.
  void pack_pairs(size_t n, uint8_t* out, int thread) const {
    const size_t half = w_.own_stride / 2;
    float* own = own_rows(thread);
    for (size_t r = 0; r < n; ++r) w_.kernels.int8_remainder(own + 2 * r * half, input_.cols, own + (2 * r + 1) * half);
    for (size_t r = 0; r < n; r += pairs_a_panel())
      pack_int8(own + 2 * r * half, half, 2 * std::min(pairs_a_panel(), n - r), out + r * row_bytes(0));
  }

  void pack_int8(const float* x, size_t stride, size_t n, uint8_t* out) const {
    w_.kernels.pack_int8(x, stride, static_cast<int>(n), input_.cols, scale_blocks(), out);
  }
  float* own_rows(int thread) const {
    return w_.own_rows + static_cast<size_t>(thread) * kMaxPanelRows * w_.own_stride;
  }

  Workspace& w_;
  const LinearInput& input_;
  const LowRankJob& low_;
  bool needed_[2];
  bool pairs_;
  size_t rows_;  // a panel
  bool shared_;
};

int kind_of(const Matrix& weights, const LinearInput& input) {
  return weights.is_float() || input.activations == Activations::f32 ? 1 : 0;
}

// Some panels and the tiles that a thread multiplies them with.
struct Work {
  size_t first_panel, end_panel;
  size_t begin, end;  // tiles
  int thread;
};

// Calls body(Panels) for all of them, as evenly as may be.
template <class Body>
void over_panels(const Workspace& w, const Work& work, const Body& body) {
  const size_t n_panels = work.end_panel - work.first_panel, most = static_cast<size_t>(w.kernels.panels);
  const size_t n_calls = (n_panels + most - 1) / most, at_once = (n_panels + n_calls - 1) / n_calls;
  for (size_t first = work.first_panel; first < work.end_panel; first += at_once)
    body(Panels{first, std::min(at_once, work.end_panel - first)});
}

// Runs body(Work) until all panels have met all tiles, after each thread has prepared the input once.
template <class Body>
void over_tiles(Workspace& w, LowRankJob& low, const PackedInput& packed, size_t n_tiles, size_t tile_bytes,
                const Body& body) {
  const size_t threads = static_cast<size_t>(w.pool.n_threads()), n_parts = packed.n_parts();
  const size_t fair = std::max<size_t>(1, n_tiles * n_parts / (threads * 6));
  const size_t in_cache = packed.n_panels() == 1 ? fair : std::max<size_t>(1, kRunBytes / tile_bytes);
  const size_t at_once = std::max<size_t>(1, threads == 1 ? n_tiles : std::min(fair, in_cache));
  const size_t n_runs = (n_tiles + at_once - 1) / at_once;
  bool ready[ThreadPool::kMaxThreads] = {};
  w.pool.run(n_parts * n_runs, 1, [&](size_t first, size_t last, int thread) {
    if (!ready[thread]) {
      low.help(thread);
      packed.prepare(thread);
      ready[thread] = true;
    }
    for (size_t i = first; i < last; ++i) {
      const size_t part = i / n_runs, begin = i % n_runs * at_once;
      body(Work{packed.first_panel(part), packed.first_panel(part + 1), begin, std::min(begin + at_once, n_tiles),
                thread});
    }
  });
}

// Multiplies tiles [begin, end) of a matrix with n_rows rows, the first panel of which is at `panel`.
void multiply_rows(const Workspace& w, const PackedInput& packed, const Matrix& weights, int kind, const uint8_t* panel,
                   size_t n_rows, size_t begin, size_t end, float* out, size_t stride, bool accumulate,
                   std::span<const AddedProduct> added = {}) {
  const MatmulArgs args{.tiles = weights.tiles + begin * weights.tile_bytes,
                        .n_tiles = end - begin,
                        .tile_bytes = weights.tile_bytes,
                        .n_groups = weights.n_groups,
                        .panel = panel,
                        .panel_stride = w.float_stride(),
                        .n_rows = static_cast<int>(n_rows),
                        .out = out,
                        .out_stride = stride,
                        .accumulate = accumulate,
                        .scale_blocks = packed.scale_blocks(),
                        .added = added.data(),
                        .n_added = added.size()};
  const Matmul* table = kind == 0 ? w.kernels.matmul_int8 : w.kernels.matmul_f32;
  table[static_cast<size_t>(weights.format)](args);
}

void multiply(const Workspace& w, const PackedInput& packed, const Matrix& weights, int kind, const Panels& panels,
              size_t begin, size_t end, int thread, float* out, size_t stride, bool accumulate,
              std::span<const AddedProduct> added = {}) {
  multiply_rows(w, packed, weights, kind, packed.panel(kind, panels.first, thread), packed.rows_of(panels), begin, end,
                out, stride, accumulate, added);
}

float* own_tile(const Workspace& w, int thread, int which) {
  return w.own_tiles +
         (static_cast<size_t>(thread) * 2 + static_cast<size_t>(which)) * w.rows_at_once() * Workspace::kOwnTileCols;
}

// Multiplies a tile with a panel whose int8 rows come in pairs: out (rows, kTile).
void multiply_pairs(const Workspace& w, const PackedInput& packed, const Matrix& weights, size_t panel, size_t tile,
                    int thread, float* out) {
  const size_t n = packed.rows_of({panel, 1});
  float* products = own_tile(w, thread, 1);
  for (size_t first = 0; first < n; first += packed.pairs_a_panel()) {
    const size_t n_pairs = std::min(packed.pairs_a_panel(), n - first);
    multiply_rows(w, packed, weights, 0, packed.pair_panel(panel, thread, first), 2 * n_pairs, tile, tile + 1, products,
                  kTile, false);
    for (size_t i = 0; i < n_pairs * kTile; ++i) {
      const float* pair = products + i / kTile * 2 * kTile + i % kTile;
      out[first * kTile + i] = pair[0] + pair[kTile];
    }
  }
}

AdaptedTiles adapted_tiles(const LowRankJob& low, const PackedInput& packed, size_t target, const Panels& panels,
                           size_t begin, size_t end, float* out, size_t stride) {
  const size_t first_row = packed.first_row(panels.first), n_rows = packed.rows_of(panels);
  return {target, low.pieces_of(first_row, n_rows), first_row, n_rows, begin, end, out, stride};
}

// out += gain ⊙ product, tile by tile: gains belong to the product alone.
void accumulate_scaled(const Workspace& w, const LowRankJob& low, const PackedInput& packed, const Matrix& weights,
                       int kind, const Panels& panels, const AdaptedTiles& to, int thread) {
  float* product = own_tile(w, thread, 0);
  for (size_t tile = to.begin; tile < to.end; ++tile) {
    multiply(w, packed, weights, kind, panels, tile, tile + 1, thread, product, kTile, false);
    low.apply_gain({to.target, to.pieces, to.first_row, to.n_rows, tile, tile + 1, product, kTile});
    for (size_t r = 0; r < to.n_rows; ++r) {
      float* out = to.out + r * to.stride + (tile - to.begin) * kTile;
      for (size_t i = 0; i < kTile; ++i) out[i] += product[r * kTile + i];
    }
  }
}

// Before the adapters' part, whose gains belong to the product alone.
void add_bias(const LinearTarget& target, const AdaptedTiles& to) {
  if (target.bias == nullptr) return;
  const size_t first = to.begin * kTile, n = std::min(to.end * kTile, target.weights->rows) - first;
  for (size_t r = 0; r < to.n_rows; ++r) {
    float* out = to.out + r * to.stride;
    for (size_t i = 0; i < n; ++i) out[i] += target.bias[first + i];
  }
}

// The tiles `to` of a target, with its bias and what adapters make of it.
void multiply_tiles(const Workspace& w, const LowRankJob& low, const PackedInput& packed, const LinearTarget& target,
                    int kind, const Panels& panels, const AdaptedTiles& to, int thread) {
  AddedProduct added[kAddedRows];
  const bool adds = kind == 0 && target.bias == nullptr && target.weights->tile_bytes <= kShortTile;
  const size_t n_added = adds ? low.added(to, added) : 0;
  if (n_added == 0) low.expect(to);
  if (target.accumulate && low.has_gain(to)) {
    accumulate_scaled(w, low, packed, *target.weights, kind, panels, to, thread);
  } else {
    multiply(w, packed, *target.weights, kind, panels, to.begin, to.end, thread, to.out, to.stride, target.accumulate,
             {added, n_added});
    if (!target.accumulate) low.apply_gain(to);
  }
  add_bias(target, to);
  if (n_added == 0) low.add(to);
}

void multiply_target(const Workspace& w, const LinearInput& input, const LowRankJob& low, const PackedInput& packed,
                     const LinearTarget& target, size_t number, const Work& work) {
  const int kind = kind_of(*target.weights, input);
  over_panels(w, work, [&](const Panels& panels) {
    float* out = target.out + packed.first_row(panels.first) * target.stride + work.begin * kTile;
    const AdaptedTiles tiles = adapted_tiles(low, packed, number, panels, work.begin, work.end, out, target.stride);
    multiply_tiles(w, low, packed, target, kind, panels, tiles, work.thread);
  });
}

// Tiles of gate and up that a thread multiplies at a time: several, since a call for one costs as much as its adapters; with many panels
// as many as stay at hand while the panels pass by.
size_t gated_tiles(size_t n_panels, size_t tile_bytes) {
  constexpr size_t kMost = Workspace::kOwnTileCols / kTile;
  return n_panels == 1 ? kMost : std::clamp<size_t>(kGatedBytes / tile_bytes, 1, kMost);
}

}  // namespace

FloatRows pack_floats(const Workspace& w, const LinearInput& input, size_t first_row, size_t n_rows, uint8_t* out) {
  float* rows = reinterpret_cast<float*>(out);
  for (size_t r = 0; r < n_rows; ++r) {
    const float* x = input.x + (first_row + r) * input.stride;
    float* row = rows + r * w.float_stride();
    if (input.norm != nullptr) {
      w.kernels.rms_norm(x, input.norm, input.eps, input.cols, row);
    } else {
      std::copy_n(x, input.cols, row);
    }
    std::fill(row + input.cols, row + round_up(input.cols, kPanelCols), 0.0f);
  }
  return {rows, w.float_stride()};
}

void linear(Workspace& w, const LinearInput& input, std::initializer_list<LinearTarget> targets) {
  bool needed[2] = {};
  size_t n_tiles = 0, bytes = 1;
  for (const LinearTarget& target : targets) {
    needed[kind_of(*target.weights, input)] = true;
    n_tiles += target.weights->n_tiles();
    bytes = std::max(bytes, target.weights->tile_bytes);
  }
  LowRankJob low(w, input);
  const PackedInput packed(w, input, low, needed[0], needed[1]);
  over_tiles(w, low, packed, n_tiles, bytes, [&](const Work& work) {
    low.expect_next(work.begin, work.end, n_tiles);
    size_t first = 0, number = 0;  // the targets' tiles are numbered one after the other
    for (const LinearTarget& target : targets) {
      const size_t last = first + target.weights->n_tiles();
      const size_t b = std::max(work.begin, first), e = std::min(work.end, last);
      const Work here{work.first_panel, work.end_panel, b - first, e - first, work.thread};
      if (b < e) multiply_target(w, input, low, packed, target, number, here);
      ++number;
      first = last;
    }
  });
}

void linear_gated(Workspace& w, const LinearInput& input, const Matrix& gate, const Matrix& up, GatedUnit unit,
                  float* out, size_t stride) {
  constexpr size_t kCols = Workspace::kOwnTileCols;
  const int gate_kind = kind_of(gate, input), up_kind = kind_of(up, input);
  LowRankJob low(w, input);
  const PackedInput packed(w, input, low, gate_kind == 0 || up_kind == 0, gate_kind == 1 || up_kind == 1);
  over_tiles(w, low, packed, gate.n_tiles(), gate.tile_bytes + up.tile_bytes, [&](const Work& work) {
    const int thread = work.thread;
    float* gated = own_tile(w, thread, 0);
    float* upped = own_tile(w, thread, 1);
    low.expect_next(work.begin, work.end, gate.n_tiles());
    const size_t at_once = gated_tiles(packed.n_panels(), gate.tile_bytes + up.tile_bytes);
    for (size_t tile = work.begin; tile < work.end; tile += at_once) {
      const size_t last = std::min(tile + at_once, work.end);
      over_panels(w, work, [&](const Panels& panels) {
        const AdaptedTiles to_gate = adapted_tiles(low, packed, 0, panels, tile, last, gated, kCols);
        AdaptedTiles to_up = to_gate;
        to_up.target = 1, to_up.out = upped;
        multiply_tiles(w, low, packed, {&gate, gated, kCols, false}, gate_kind, panels, to_gate, thread);
        multiply_tiles(w, low, packed, {&up, upped, kCols, false}, up_kind, panels, to_up, thread);
        float* to = out + packed.first_row(panels.first) * stride + tile * kTile;
        for (size_t r = 0; r < packed.rows_of(panels); ++r) {
          unit(gated + r * kCols, upped + r * kCols, (last - tile) * kTile, to + r * stride);
        }
      });
    }
  });
}

void linear_scatter(Workspace& w, const LinearInput& input, const Matrix& weights, float* const* rows) {
  const int kind = kind_of(weights, input);
  LowRankJob low(w, input);
  const PackedInput packed(w, input, low, kind == 0, kind == 1, true);
  over_tiles(w, low, packed, weights.n_tiles(), weights.tile_bytes, [&](const Work& work) {
    const int thread = work.thread;
    float* result = own_tile(w, thread, 0);
    for (size_t tile = work.begin; tile < work.end; ++tile) {
      const size_t n = std::min(kTile, weights.rows - tile * kTile);
      for (size_t panel = work.first_panel; panel < work.end_panel; ++panel) {
        const Panels one{panel, 1};
        if (kind == 0) {
          multiply_pairs(w, packed, weights, panel, tile, thread, result);
        } else {
          multiply(w, packed, weights, kind, one, tile, tile + 1, thread, result, kTile, false);
        }
        const AdaptedTiles to = adapted_tiles(low, packed, 0, one, tile, tile + 1, result, kTile);
        low.apply_gain(to);
        low.add(to);
        float* const* places = rows + packed.first_row(panel);
        for (size_t r = 0; r < packed.rows_of(one); ++r)
          std::memcpy(places[r] + tile * kTile, result + r * kTile, n * sizeof(float));
      }
    }
  });
}

}  // namespace pyinfer
