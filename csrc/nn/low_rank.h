// What stacks of adapters add to the products of a step, within the jobs of the base's product: t = scale ⊙ (A x) is made as rows are
// packed or, where they are few, by all threads before their first tiles; B t is added to runs of tiles after them or, of a row or two, to each
// short tile as it is made. Rows without adapters are not touched. The bits of a row depend neither on the rows beside it nor on the number of
// threads: columns of A are cut at fixed places and summed in order.
#pragma once

#include <atomic>
#include <cstddef>

#include "nn/linear.h"
#include "nn/workspace.h"

namespace pyinfer {

// The outputs of tiles [begin, end) of one target, for rows [first_row, first_row + n_rows), which begin a panel. `out` is the first
// of them.
struct AdaptedTiles {
  size_t target;                  // of those that share the input
  std::span<const Piece> pieces;  // of the rows: see LowRankJob::pieces_of
  size_t first_row;
  size_t n_rows;
  size_t begin;
  size_t end;
  float* out;
  size_t stride;
};

// The adapters' part of one job.
class LowRankJob {
 public:
  LowRankJob(Workspace& workspace, const LinearInput& input);
  LowRankJob(const LowRankJob&) = delete;
  LowRankJob& operator=(const LowRankJob&) = delete;

  // The pieces among rows [first_row, first_row + n_rows), which begin a panel.
  std::span<const Piece> pieces_of(size_t first_row, size_t n_rows) const;

  // Whether t is made panel by panel, by who packs them: where there are many.
  bool by_panels() const { return by_panels_; }
  // t of the rows of one panel, which stand at `rows`, normed if the input is.
  void make(size_t first_row, size_t n_rows, const FloatRows& rows) const;
  // Else: to be called by a thread before its first tiles; makes parts of t until all are taken. Uses the thread's own rows and panels.
  void help(int thread);

  // Whether rows are so few that a step waits for weights, and A and B are asked for ahead: they are too short for the processor to see
  // them coming. With more rows they stay in the cache, and it is t that does not.
  bool asks_ahead() const;
  // As a thread takes tiles [begin, end) of a job's n_tiles: asks for their share of the next input's A, and for what describes it, if it asks
  // ahead.
  void expect_next(size_t begin, size_t end, size_t n_tiles) const;
  // Before the base's product of some tiles: asks for B, or for t.
  void expect(const AdaptedTiles& tiles) const;

  // What the base's product of some tiles can add as it goes: puts B t of each stack into `products` and returns their number. 0 where `add` has
  // to follow instead: with more rows, before t is there, and where a stack scales the product or has a bias.
  size_t added(const AdaptedTiles& tiles, AddedProduct (&products)[kAddedRows]) const;

  // Whether a stack scales the base's product for some of these rows: such a product must not be accumulated at once.
  bool has_gain(const AdaptedTiles& tiles) const;
  // out = gain ⊙ out
  void apply_gain(const AdaptedTiles& tiles) const;
  // out += B t + bias; waits until t is there.
  void add(const AdaptedTiles& tiles) const;

 private:
  size_t panel_rows() const { return static_cast<size_t>(w_.kernels.panel_rows); }
  const AdaptedInput& adapted(const Piece& piece) const { return piece.adapters->inputs[input_.number]; }
  void make_part(size_t index, size_t chunk, size_t tile, int thread);
  void multiply(const Piece& piece, const FloatRows& rows, size_t chunk, size_t tile, size_t n_tiles, float* out,
                bool accumulate) const;
  FloatRows rows_of(size_t index, int thread);
  float* partial(const Piece& piece, size_t chunk) const;
  float* t_of(const Piece& piece, size_t row) const;
  void wait() const;

  Workspace& w_;
  const LinearInput& input_;
  size_t n_chunks_;
  size_t n_tiles_ = 0;  // of the largest A
  size_t n_parts_;
  bool has_gains_ = false;
  bool by_panels_;
  size_t packed_[ThreadPool::kMaxThreads];  // 1 + the piece whose panel a thread holds; set where there are parts
  std::atomic<size_t> next_{0};             // part to be taken
  std::atomic<size_t> n_unfinished_{0};     // pieces without t
};

// out = embedding of a token with its stack; `out` (cols, to whole tiles) holds the base's. `row` is the row's number in the step.
void adapt_embedding(const Workspace& workspace, const AdaptedInput& adapted, size_t token, size_t row, float* out);

}  // namespace pyinfer
