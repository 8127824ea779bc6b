// Matrix products of a step: rows of activations, normed and quantised on the way, times packed weights, over all threads.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>

#include "nn/adapter.h"
#include "nn/tensor.h"
#include "nn/workspace.h"

namespace pyinfer {

// Rows that go into a product. With `norm`, each row is rms-normed first, with `eps`.
struct LinearInput {
  const float* x;  // (n_rows, stride)
  size_t stride;
  size_t n_rows;
  size_t cols;
  const float* norm = nullptr;  // (cols)
  float eps = 0.0f;
  Activations activations;
  int scale_blocks;  // blocks of 32 columns that share a scale where activations are int8: 1 or 2; in pairs always 1
  std::span<const Piece> pieces = {};  // the rows with adapters, in ascending order
  size_t number = 0;                   // of this input among Adapters::inputs
};

// One product of an input: out (n_rows, stride) = or += x · Wᵀ + bias; whole tiles of 16 columns are written.
struct LinearTarget {
  const Matrix* weights;
  float* out;
  size_t stride;
  bool accumulate;
  const float* bias = nullptr;  // (rows of the weights) or nullptr
};

// (rows, stride)
struct FloatRows {
  const float* x;
  size_t stride;
};

// n_rows rows of an input as the float panel `out`: normed if the input is, padded with zeros to whole groups of any format.
FloatRows pack_floats(const Workspace& workspace, const LinearInput& input, size_t first_row, size_t n_rows,
                      uint8_t* out);

// Several products of the same input as one job.
void linear(Workspace& workspace, const LinearInput& input, std::initializer_list<LinearTarget> targets);

// out (n_rows, stride) = act(x · gateᵀ) · (x · upᵀ) with the kernels' `unit`
void linear_gated(Workspace& workspace, const LinearInput& input, const Matrix& gate, const Matrix& up, GatedUnit unit,
                  float* out, size_t stride);

// As `linear`, but each row goes to a place of its own with exactly `weights.rows` floats. The input has a norm; as int8 its rows come in
// pairs, value and remainder.
void linear_scatter(Workspace& workspace, const LinearInput& input, const Matrix& weights, float* const* rows);

}  // namespace pyinfer
