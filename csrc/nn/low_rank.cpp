#include "nn/low_rank.h"

#include <algorithm>

#include "base/cpu.h"
#include "formats/format.h"

namespace pyinfer {
namespace {

Matmul matmul_of(const Workspace& w, const Matrix& matrix) {
  return w.kernels.matmul_f32[static_cast<size_t>(matrix.format)];
}

// Tiles [begin, end) of B times t, onto `out`.
MatmulArgs product(const Workspace& w, const LowRank& low, const float* t, size_t n_rows, size_t begin, size_t end,
                   float* out, size_t stride) {
  return {.tiles = low.b.tiles + begin * low.b.tile_bytes,
          .n_tiles = end - begin,
          .tile_bytes = low.b.tile_bytes,
          .n_groups = low.b.n_groups,
          .panel = reinterpret_cast<const uint8_t*>(t + low.first),
          .panel_stride = w.low_rank,
          .n_rows = static_cast<int>(n_rows),
          .out = out,
          .out_stride = stride,
          .accumulate = true};
}

// t = scale ⊙ sums, of one row; t may be sums.
void scale(const AdaptedInput& adapted, const float* sums, float* t) {
  const size_t ranks = adapted.a.n_tiles() * kTile;
  for (size_t r = 0; r < ranks; r += kTile) {
    float scaled[kTile];
    for (size_t i = 0; i < kTile; ++i) scaled[i] = adapted.scale[r + i] * sums[r + i];
    for (size_t i = 0; i < kTile; ++i) t[r + i] = scaled[i];
  }
}

}  // namespace

// A part is (piece, chunk of columns, tile of A), so that few rows keep all threads busy too; who is done with the last of a piece adds the
// chunks up.
LowRankJob::LowRankJob(Workspace& w, const LinearInput& input)
    : w_(w), input_(input), n_chunks_((input.cols + kLowRankChunk - 1) / kLowRankChunk) {
  size_t n_unfinished = 0;
  for (const Piece& piece : input.pieces) {
    n_tiles_ = std::max(n_tiles_, adapted(piece).a.n_tiles());
    n_unfinished += adapted(piece).a.n_tiles() > 0;
    for (const LowRank& low : adapted(piece).targets) has_gains_ |= low.gain != nullptr;
  }
  const size_t n_threads = static_cast<size_t>(w.pool.n_threads());
  const size_t n_panels = (input.n_rows + panel_rows() - 1) / panel_rows();
  by_panels_ = n_tiles_ > 0 && n_panels >= 2 * n_threads && input.cols % kFloatGroupCols == 0;
  n_parts_ = by_panels_ ? 0 : input.pieces.size() * n_chunks_ * n_tiles_;
  n_unfinished_.store(by_panels_ ? 0 : n_unfinished, std::memory_order_relaxed);
  if (n_parts_ > 0) std::fill_n(packed_, n_threads, size_t{0});
}

void LowRankJob::help(int thread) {
  while (next_.load(std::memory_order_relaxed) < n_parts_) {
    const size_t part = next_.fetch_add(1, std::memory_order_relaxed);
    if (part < n_parts_) make_part(part / n_tiles_ / n_chunks_, part / n_tiles_ % n_chunks_, part % n_tiles_, thread);
  }
}

void LowRankJob::make(size_t first_row, size_t n_rows, const FloatRows& rows) const {
  for (const Piece& piece : pieces_of(first_row, n_rows)) {
    const AdaptedInput& stack = adapted(piece);
    if (stack.a.n_tiles() == 0) continue;
    const FloatRows x{rows.x + (piece.first_row - first_row) * rows.stride, rows.stride};
    for (size_t chunk = 0; chunk < n_chunks_; ++chunk)
      multiply(piece, x, chunk, 0, stack.a.n_tiles(), t_of(piece, 0), chunk > 0);
    for (size_t row = 0; row < piece.n_rows; ++row) scale(stack, t_of(piece, row), t_of(piece, row));
  }
}

void LowRankJob::make_part(size_t index, size_t chunk, size_t tile, int thread) {
  const Piece& piece = input_.pieces[index];
  const size_t n_tiles = adapted(piece).a.n_tiles();
  if (tile >= n_tiles) return;
  multiply(piece, rows_of(index, thread), chunk, tile, 1, partial(piece, chunk) + tile * kTile, false);
  if (w_.low_rank_done[index].fetch_add(1, std::memory_order_acq_rel) + 1 < n_chunks_ * n_tiles) return;
  w_.low_rank_done[index].store(0, std::memory_order_relaxed);
  for (size_t row = 0; row < piece.n_rows; ++row) {
    float* sums = partial(piece, 0) + row * w_.low_rank;
    for (size_t next = 1; next < n_chunks_; ++next) {
      const float* more = partial(piece, next) + row * w_.low_rank;
      for (size_t r = 0; r < n_tiles * kTile; ++r) sums[r] += more[r];
    }
    scale(adapted(piece), sums, t_of(piece, row));
  }
  n_unfinished_.fetch_sub(1, std::memory_order_release);
}

// out (rows of the piece, low_rank) = or += A x of one chunk, of n_tiles tiles of A.
void LowRankJob::multiply(const Piece& piece, const FloatRows& rows, size_t chunk, size_t tile, size_t n_tiles,
                          float* out, bool accumulate) const {
  const Matrix& a = adapted(piece).a;
  const size_t groups_before = chunk * kLowRankChunk / kFloatGroupCols;
  const MatmulArgs args{.tiles = a.tiles + tile * a.tile_bytes + groups_before * (a.tile_bytes / a.n_groups),
                        .n_tiles = n_tiles,
                        .tile_bytes = a.tile_bytes,
                        .n_groups = std::min(kLowRankChunk / kFloatGroupCols, a.n_groups - groups_before),
                        .panel = reinterpret_cast<const uint8_t*>(rows.x + chunk * kLowRankChunk),
                        .panel_stride = rows.stride,
                        .n_rows = static_cast<int>(piece.n_rows),
                        .out = out,
                        .out_stride = w_.low_rank,
                        .accumulate = accumulate};
  matmul_of(w_, a)(args);
}

// The rows of a piece, normed if the input is, and in whole groups: as they are, or in this thread's float panel.
FloatRows LowRankJob::rows_of(size_t index, int thread) {
  const Piece& piece = input_.pieces[index];
  if (input_.norm == nullptr && input_.cols % kFloatGroupCols == 0)
    return {input_.x + piece.first_row * input_.stride, input_.stride};
  const auto at = static_cast<size_t>(thread);
  uint8_t* own = w_.own_panels[1] + at * kMaxPanelRows * w_.row_bytes[1];
  if (packed_[at] == index + 1) return {reinterpret_cast<const float*>(own), w_.float_stride()};
  packed_[at] = index + 1;
  return pack_floats(w_, input_, piece.first_row, piece.n_rows, own);
}

std::span<const Piece> LowRankJob::pieces_of(size_t first_row, size_t n_rows) const {
  const std::span<const Piece> pieces = input_.pieces;
  if (pieces.empty()) return {};
  const size_t i = first_row / panel_rows();  // most often every panel is one piece
  if (i < pieces.size() && pieces[i].first_row == first_row &&
      (i + 1 == pieces.size() || pieces[i + 1].first_row >= first_row + n_rows))
    return pieces.subspan(i, 1);
  const auto starts_before = [](size_t row) { return [row](const Piece& piece) { return piece.first_row < row; }; };
  const auto from = std::partition_point(pieces.begin(), pieces.end(), starts_before(first_row));
  return {from, std::partition_point(from, pieces.end(), starts_before(first_row + n_rows))};
}

// A x of one chunk: (rows of the piece, low_rank).
float* LowRankJob::partial(const Piece& piece, size_t chunk) const {
  return w_.low_rank_partial + (piece.first_row * n_chunks_ + chunk * piece.n_rows) * w_.low_rank;
}

// t of a row of a piece, for all targets together.
float* LowRankJob::t_of(const Piece& piece, size_t row) const {
  return w_.low_rank_t + (piece.first_row + row) * w_.low_rank;
}

bool LowRankJob::asks_ahead() const {
  constexpr size_t kFewRows = 16;
  return !input_.pieces.empty() && input_.n_rows <= kFewRows;
}

void LowRankJob::expect_next(size_t begin, size_t end, size_t n_tiles) const {
  if (!asks_ahead()) return;
  for (const Piece& piece : input_.pieces) {
    const AdaptedInput* next = piece.adapters->inputs + input_.number + 1;
    const size_t tiles = next->a.tiles == nullptr ? 0 : next->a.n_tiles();
    const size_t bytes = tiles * next->a.tile_bytes, from = bytes * begin / n_tiles;
    cpu_prefetch(next->a.tiles + from, bytes * end / n_tiles - from);
    cpu_prefetch(next->scale, tiles * kTile * sizeof(float));
    cpu_prefetch(next + 1, sizeof *next);  // there is one: the embedding's is the last
  }
}

void LowRankJob::expect(const AdaptedTiles& tiles) const {
  for (const Piece& piece : tiles.pieces) {
    const LowRank& low = adapted(piece).targets[tiles.target];
    if (low.b.tiles == nullptr) continue;
    if (asks_ahead()) {
      cpu_prefetch(low.b.tiles + tiles.begin * low.b.tile_bytes, (tiles.end - tiles.begin) * low.b.tile_bytes);
    } else {
      for (size_t row = 0; row < piece.n_rows; ++row)
        cpu_prefetch(t_of(piece, row) + low.first, low.b.cols * sizeof(float));
    }
  }
}

size_t LowRankJob::added(const AdaptedTiles& tiles, AddedProduct (&products)[kAddedRows]) const {
  if (tiles.pieces.empty() || input_.n_rows > kAddedRows) return 0;
  if (n_unfinished_.load(std::memory_order_acquire) != 0) return 0;
  size_t n = 0;
  for (const Piece& piece : tiles.pieces) {
    const LowRank& low = adapted(piece).targets[tiles.target];
    if (low.gain != nullptr || low.bias != nullptr) return 0;
    if (low.b.tiles == nullptr) continue;
    float* out = tiles.out + (piece.first_row - tiles.first_row) * tiles.stride;
    products[n++] = {w_.kernels.matmul_tile[static_cast<size_t>(low.b.format)],
                     product(w_, low, t_of(piece, 0), piece.n_rows, tiles.begin, tiles.end, out, tiles.stride)};
  }
  return n;
}

void LowRankJob::wait() const {
  for (int spin = 0; n_unfinished_.load(std::memory_order_acquire) != 0; ++spin) cpu_wait(spin);
}

bool LowRankJob::has_gain(const AdaptedTiles& tiles) const {
  if (!has_gains_) return false;
  return std::any_of(tiles.pieces.begin(), tiles.pieces.end(),
                     [&](const Piece& piece) { return adapted(piece).targets[tiles.target].gain != nullptr; });
}

void LowRankJob::apply_gain(const AdaptedTiles& tiles) const {
  if (!has_gains_) return;
  for (const Piece& piece : tiles.pieces) {
    const float* gain = adapted(piece).targets[tiles.target].gain;
    if (gain == nullptr) continue;
    for (size_t r = 0; r < piece.n_rows; ++r) {
      float* out = tiles.out + (piece.first_row - tiles.first_row + r) * tiles.stride;
      for (size_t i = 0; i < (tiles.end - tiles.begin) * kTile; ++i) out[i] *= gain[tiles.begin * kTile + i];
    }
  }
}

void LowRankJob::add(const AdaptedTiles& tiles) const {
  if (tiles.pieces.empty()) return;
  wait();
  for (const Piece& piece : tiles.pieces) {
    const LowRank& low = adapted(piece).targets[tiles.target];
    float* out = tiles.out + (piece.first_row - tiles.first_row) * tiles.stride;
    if (low.b.tiles != nullptr)
      matmul_of(w_, low.b)(product(w_, low, t_of(piece, 0), piece.n_rows, tiles.begin, tiles.end, out, tiles.stride));
    for (size_t r = 0; low.bias != nullptr && r < piece.n_rows; ++r) {
      for (size_t i = 0; i < (tiles.end - tiles.begin) * kTile; ++i)
        out[r * tiles.stride + i] += low.bias[tiles.begin * kTile + i];
    }
  }
}

void adapt_embedding(const Workspace& w, const AdaptedInput& adapted, size_t token, size_t row, float* out) {
  const LowRank& low = adapted.targets[0];
  for (size_t i = 0; low.gain != nullptr && i < low.b.rows; ++i) out[i] *= low.gain[i];
  if (low.b.tiles != nullptr) {
    float* t = w.low_rank_t + row * w.low_rank;
    std::fill(t, t + w.low_rank, 0.0f);
    unpack_row(adapted.a.format, adapted.a.tiles, adapted.a.cols, token, t);
    for (size_t r = 0; r < adapted.a.cols; ++r) t[r] *= adapted.scale[r];
    matmul_of(w, low.b)(product(w, low, t, 1, 0, low.b.n_tiles(), out, 0));
  }
  for (size_t i = 0; low.bias != nullptr && i < low.b.rows; ++i) out[i] += low.bias[i];
}

}  // namespace pyinfer
