#include "nn/low_rank.h"

#include <algorithm>

#include "base/cpu.h"
#include "formats/format.h"

namespace pyinfer {
namespace {

// The pieces among rows [first_row, first_row + n_rows).
std::span<const Piece> pieces_in(std::span<const Piece> pieces, size_t first_row, size_t n_rows) {
  if (pieces.size() == 1)
    return pieces.first(pieces[0].first_row - first_row < n_rows ? 1 : 0);  // decode: as quick as can be
  const auto starts_before = [](size_t row) { return [row](const Piece& piece) { return piece.first_row < row; }; };
  const auto from = std::partition_point(pieces.begin(), pieces.end(), starts_before(first_row));
  return {from, std::partition_point(from, pieces.end(), starts_before(first_row + n_rows))};
}

Matmul matmul_of(const Workspace& w, const Matrix& matrix) {
  return w.kernels.matmul_f32[static_cast<size_t>(matrix.format)];
}

// Tiles [begin, end) of B times t, onto `out`.
void add_product(const Workspace& w, const LowRank& low, const float* t, size_t n_rows, size_t begin, size_t end,
                 float* out, size_t stride) {
  const MatmulArgs args{low.b.tiles + begin * low.b.tile_bytes,
                        end - begin,
                        low.b.tile_bytes,
                        low.b.n_groups,
                        reinterpret_cast<const uint8_t*>(t + low.first * n_rows),
                        static_cast<int>(n_rows),
                        out,
                        stride,
                        true};
  matmul_of(w, low.b)(args);
}

}  // namespace

// A part is (piece, chunk of columns, tile of A), so that few rows keep all threads busy too; who is done with the last of a piece adds the
// chunks up. With many pieces a thread takes one as a whole, and packs it once.
LowRankJob::LowRankJob(Workspace& w, const LinearInput& input)
    : w_(w), input_(input), n_chunks_((input.cols + kLowRankChunk - 1) / kLowRankChunk) {
  size_t n_unfinished = 0;
  for (const Piece& piece : input.pieces) {
    n_tiles_ = std::max(n_tiles_, adapted(piece).a.n_tiles());
    n_unfinished += adapted(piece).a.n_tiles() > 0;
    for (const LowRank& low : adapted(piece).targets) has_gains_ |= low.gain != nullptr;
  }
  const size_t n_threads = static_cast<size_t>(w.pool.n_threads()), units = n_chunks_ * n_tiles_;
  n_parts_ = input.pieces.size() * units;
  at_once_ = input.pieces.size() >= 2 * n_threads ? units : 1;
  n_unfinished_.store(n_unfinished, std::memory_order_relaxed);
  if (n_parts_ > 0) std::fill_n(packed_, n_threads, size_t{0});
}

void LowRankJob::help(int thread) {
  const size_t units = n_chunks_ * n_tiles_;
  while (next_.load(std::memory_order_relaxed) < n_parts_) {
    const size_t begin = next_.fetch_add(at_once_, std::memory_order_relaxed),
                 end = std::min(begin + at_once_, n_parts_);
    for (size_t i = begin; i < end; ++i) multiply(i / units, i % units / n_tiles_, i % n_tiles_, thread);
  }
}

void LowRankJob::multiply(size_t index, size_t chunk, size_t tile, int thread) {
  const Piece& piece = input_.pieces[index];
  const Matrix& a = adapted(piece).a;
  if (tile >= a.n_tiles()) return;
  const size_t groups_before = chunk * kLowRankChunk / kFloatGroupCols;
  const MatmulArgs args{a.tiles + tile * a.tile_bytes + groups_before * (a.tile_bytes / a.n_groups),
                        1,
                        a.tile_bytes,
                        std::min(kLowRankChunk / kFloatGroupCols, a.n_groups - groups_before),
                        panel(index, thread) + chunk * kLowRankChunk * piece.n_rows * sizeof(float),
                        static_cast<int>(piece.n_rows),
                        partial(piece, chunk) + tile * kTile,
                        w_.low_rank,
                        false};
  matmul_of(w_, a)(args);
  if (w_.low_rank_done[index].fetch_add(1, std::memory_order_acq_rel) + 1 == n_chunks_ * a.n_tiles()) finish(index);
}

// The piece's rows as a float panel of this thread, normed if the input is; one row is a panel as it is.
const uint8_t* LowRankJob::panel(size_t index, int thread) {
  const Piece& piece = input_.pieces[index];
  const auto at = static_cast<size_t>(thread);
  float* normed = w_.own_rows + at * kMaxPanelRows * w_.max_cols;
  uint8_t* own = w_.own_panels[1] + at * kMaxPanelRows * w_.row_bytes[1];
  const bool is_normed = input_.norm != nullptr;
  const float* x = input_.x + piece.first_row * input_.stride;
  const float* rows = is_normed ? normed : x;
  const bool as_it_is = piece.n_rows == 1 && input_.cols % kFloatGroupCols == 0;
  if (packed_[at] != index + 1) {
    for (size_t r = 0; is_normed && r < piece.n_rows; ++r) {
      w_.kernels.rms_norm(x + r * input_.stride, input_.norm, input_.eps, input_.cols, normed + r * w_.max_cols);
    }
    const size_t stride = is_normed ? w_.max_cols : input_.stride;
    if (!as_it_is) w_.kernels.pack_f32(rows, stride, static_cast<int>(piece.n_rows), input_.cols, own);
    packed_[at] = index + 1;
  }
  return as_it_is ? reinterpret_cast<const uint8_t*>(rows) : own;
}

// A x of one chunk: (rows of the piece, low_rank).
float* LowRankJob::partial(const Piece& piece, size_t chunk) const {
  return w_.low_rank_partial + (piece.first_row * n_chunks_ + chunk * piece.n_rows) * w_.low_rank;
}

// t as a panel: (ranks together, rows of the piece).
void LowRankJob::finish(size_t index) {
  const Piece& piece = input_.pieces[index];
  const AdaptedInput& stack = adapted(piece);
  const size_t ranks = stack.a.n_tiles() * kTile;
  float* t = w_.low_rank_t + piece.first_row * w_.low_rank;
  for (size_t row = 0; row < piece.n_rows; ++row) {
    float* sums = partial(piece, 0) + row * w_.low_rank;
    for (size_t chunk = 1; chunk < n_chunks_; ++chunk) {
      const float* more = partial(piece, chunk) + row * w_.low_rank;
      for (size_t r = 0; r < ranks; ++r) sums[r] += more[r];
    }
    for (size_t r = 0; r < ranks; ++r) t[r * piece.n_rows + row] = stack.scale[r] * sums[r];
  }
  w_.low_rank_done[index].store(0, std::memory_order_relaxed);
  n_unfinished_.fetch_sub(1, std::memory_order_release);
}

void LowRankJob::expect_next(size_t begin, size_t end, size_t n_tiles) const {
  for (const Piece& piece : input_.pieces) {
    const Matrix& a = piece.adapters->inputs[input_.number + 1].a;
    const size_t bytes = a.tiles == nullptr ? 0 : a.n_tiles() * a.tile_bytes, from = bytes * begin / n_tiles;
    cpu_prefetch(a.tiles + from, bytes * end / n_tiles - from);
  }
}

void LowRankJob::expect(const AdaptedTiles& tiles) const {
  for (const Piece& piece : pieces_in(input_.pieces, tiles.first_row, tiles.n_rows)) {
    const Matrix& b = adapted(piece).targets[tiles.target].b;
    const size_t n_tiles = b.tiles == nullptr ? 0 : tiles.end - tiles.begin;
    cpu_prefetch(b.tiles + tiles.begin * b.tile_bytes, n_tiles * b.tile_bytes);
  }
}

void LowRankJob::wait() const {
  for (int spin = 0; n_unfinished_.load(std::memory_order_acquire) != 0; ++spin) cpu_wait(spin);
}

bool LowRankJob::has_gain(size_t target, size_t first_row, size_t n_rows) const {
  if (!has_gains_) return false;
  const auto pieces = pieces_in(input_.pieces, first_row, n_rows);
  return std::any_of(pieces.begin(), pieces.end(),
                     [&](const Piece& piece) { return adapted(piece).targets[target].gain != nullptr; });
}

void LowRankJob::apply_gain(const AdaptedTiles& tiles) const {
  if (!has_gains_) return;
  for (const Piece& piece : pieces_in(input_.pieces, tiles.first_row, tiles.n_rows)) {
    const float* gain = adapted(piece).targets[tiles.target].gain;
    if (gain == nullptr) continue;
    for (size_t r = 0; r < piece.n_rows; ++r) {
      float* out = tiles.out + (piece.first_row - tiles.first_row + r) * tiles.stride;
      for (size_t i = 0; i < (tiles.end - tiles.begin) * kTile; ++i) out[i] *= gain[tiles.begin * kTile + i];
    }
  }
}

void LowRankJob::add(const AdaptedTiles& tiles) const {
  if (input_.pieces.empty()) return;
  wait();
  for (const Piece& piece : pieces_in(input_.pieces, tiles.first_row, tiles.n_rows)) {
    const LowRank& low = adapted(piece).targets[tiles.target];
    float* out = tiles.out + (piece.first_row - tiles.first_row) * tiles.stride;
    const float* t = w_.low_rank_t + piece.first_row * w_.low_rank;
    if (low.b.tiles != nullptr) add_product(w_, low, t, piece.n_rows, tiles.begin, tiles.end, out, tiles.stride);
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
    add_product(w, low, t, 1, 0, low.b.n_tiles(), out, 0);
  }
  for (size_t i = 0; low.bias != nullptr && i < low.b.rows; ++i) out[i] += low.bias[i];
}

}  // namespace pyinfer
