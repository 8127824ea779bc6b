// What stacks of adapters add to the products of a step: t = scale ⊙ (A x) as a small job before the base's, and B t within the
// base's job, by the thread that has just written those outputs. Rows without adapters are not touched. The bits of a row depend
// neither on the rows beside it nor on the number of threads: columns of A are cut at fixed places and summed in order.
#pragma once

#include <cstddef>

#include "nn/linear.h"
#include "nn/workspace.h"

namespace pyinfer {

// The outputs of tiles [begin, end) of one target, for rows [first_row, first_row + n_rows), which lie within a panel. `out` is the
// first of them.
struct AdaptedTiles {
  size_t target;  // of those that share the input
  size_t first_row;
  size_t n_rows;
  size_t begin;
  size_t end;
  float* out;
  size_t stride;
};

// t of every piece of the input, into the workspace. To be called before the job of the base product.
void low_rank_inputs(Workspace& workspace, const LinearInput& input);

// Whether a stack scales the base product of the target in some of these rows: such a product must not be accumulated at once.
bool has_gain(const LinearInput& input, size_t target, size_t first_row, size_t n_rows);
// out = gain ⊙ out
void apply_gain(const LinearInput& input, const AdaptedTiles& tiles);
// out += B t + bias
void add_low_rank(const Workspace& workspace, const LinearInput& input, const AdaptedTiles& tiles);

// out = embedding of a token with its stack; `out` (cols, to whole tiles) holds the base's. `row` is the row's number in the step.
void adapt_embedding(const Workspace& workspace, const AdaptedInput& adapted, size_t token, size_t row, float* out);

}  // namespace pyinfer
