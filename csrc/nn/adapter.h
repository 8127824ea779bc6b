// Views of a packed stack of adapters, as a step meets it. They own nothing; who built them outlives the step.
//
// A stack changes a linear to  y = gain ⊙ (W x) + B t + bias,  t = scale ⊙ (A x).  Linears that share an input share one A.
#pragma once

#include <cstddef>

#include "nn/tensor.h"

namespace pyinfer {

// What the stack does to one linear.
struct LowRank {
  Matrix b;           // (outputs, rank) in a float format; no tiles where the stack has no delta here
  size_t first;       // its t begins at this row of the input's A, a multiple of 4
  const float* gain;  // (outputs, to whole tiles) or nullptr
  const float* bias;  // (outputs, to whole tiles) or nullptr
};

// An input and the linears that share it, at most three.
struct AdaptedInput {
  Matrix a;            // (ranks together, inputs) in a float format; no tiles where there is no delta
  const float* scale;  // (ranks together, to whole tiles)
  LowRank targets[3];
};

// A stack as a whole. Inputs are numbered: four a layer, then the head's, then the embedding's, whose A lies transposed,
// (n_vocab, rank), since its input is one token.
struct Adapters {
  enum Input : size_t { qkv, o, gate_up, down, kInputsPerLayer };
  static size_t head_input(size_t n_layers) { return n_layers * kInputsPerLayer; }
  static size_t embedding_input(size_t n_layers) { return n_layers * kInputsPerLayer + 1; }

  const AdaptedInput* inputs;
};

// Consecutive rows of a step with one stack, all within one panel of the base product.
struct Piece {
  size_t first_row;
  size_t n_rows;
  const Adapters* adapters;
};

}  // namespace pyinfer
