// The forward pass.
#pragma once

#include <cstdint>
#include <span>

#include "model/model.h"
#include "nn/adapter.h"
#include "nn/kv_cache.h"
#include "nn/workspace.h"

namespace pyinfer {

// One row of a step: a token at a position of a sequence. Rows of one sequence stand together, positions ascending by one.
struct BatchRow {
  KvCache* cache;
  int32_t token;
  size_t position;
  float* logits;                       // room for n_vocab floats, or nullptr where none are wanted
  const Adapters* adapters = nullptr;  // what the row runs with besides the model
};

// Asked between layers whether to give up. May be called from the calling thread only.
struct Poll {
  bool (*cancelled)(void* context);
  void* context;
};

// Runs 1 … workspace.max_rows rows through the model: prefill, decode, batches of sequences alike. Tokens and positions
// have been checked. Returns false if cancelled; caches then hold rubbish from the first of these positions on.
bool forward(const Model& model, Workspace& workspace, std::span<const BatchRow> rows, const Poll& poll);

}  // namespace pyinfer
