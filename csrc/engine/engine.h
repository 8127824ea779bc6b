// A model with threads and room to work in: immutable to its users, shared by any number of threads, which take turns.
#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "base/turns.h"
#include "model/decoder.h"
#include "model/file.h"
#include "model/model.h"

namespace pyinfer {

class Session;

struct MemoryNeeds {
  size_t weights;    // the mapped file
  size_t kv_cache;   // one session
  size_t workspace;  // once an engine
};

// What one session appends in a step.
struct BatchItem {
  Session* session;
  std::span<const int32_t> tokens;
  float* logits;  // rows of n_vocab floats: for all tokens, for the last, or nullptr
  bool all_logits;
};

// How sessions keep keys and values unless told otherwise: what this processor is faster with, but halves with float activations, and where
// keys have a bias, which makes a few dimensions so large that the others would be coarse integers.
KvFormat usual_kv(Activations activations, bool biased_keys);

class Engine {
 public:
  // Rows that one pass over the weights takes; longer prompts go through in chunks.
  static constexpr size_t kMaxRows = 512;

  // `threads` 0 means default_threads(). Starts the threads, but reads nothing of the weights and touches no page of its own yet: memory()
  // may be asked and the engine given up before much is spent.
  Engine(std::shared_ptr<const ModelFile> file, int threads, Activations activations);

  const Model& model() const { return model_; }
  const ModelSpec& spec() const { return model_.spec; }
  int n_threads() const { return pool_.n_threads(); }
  const char* isa() const { return workspace_.kernels.isa; }
  KvShape kv_shape(KvFormat format) const { return model_.kv_shape(format); }
  KvFormat usual_kv() const { return pyinfer::usual_kv(model_.activations, spec().has(kQkvBias)); }
  MemoryNeeds memory(size_t context, KvFormat format) const;
  // Has the system read the weights ahead, in the background; with HugePages::on they are read now, see MappedFile.
  void prefetch() const { file_->mapping().prefetch(); }
  // Room for steps with adapters that share an input with so many ranks together, over such a model. Waits for a step that runs; not to
  // be called with Python's lock, which such a step may want. Throws as `step` does in a fork and within a poll.
  void make_room(const Model& model, size_t low_rank);
  // Throws in a fork, where locks may be held by threads that do not exist there.
  void check_process() const;
  // Throws unless the token is of the vocabulary.
  void check(int32_t token) const;

  // Appends the items' tokens, at most kMaxRows together, in one pass. Throws before any work where a token, a position or a session is not
  // as it must be, in a fork, and where this engine's step asks for another by way of its poll; a cancelled error if `poll` or a session's
  // cancel() says so. Sessions then hold what they held.
  void step(std::span<const BatchItem> items, const Poll& poll);

 private:
  friend class Session;
  // Waits for the turn. Throws in a fork, where a thread that does not exist may have it, and where this thread has it.
  Turns::Turn take_turn();
  // As `step`, with sessions that the caller occupies.
  void run(std::span<const BatchItem> items, const Poll& poll);
  void check(std::span<const BatchItem> items) const;
  std::span<const BatchRow> rows_of(std::span<const BatchItem> items, const Model& model);
  size_t add_rows(const BatchItem& item, size_t n);
  bool pass(std::span<const BatchItem> items, const Model& model, const Poll& poll);

  std::shared_ptr<const ModelFile> file_;
  Model model_;
  ThreadPool pool_;
  Workspace workspace_;
  std::unique_ptr<BatchRow[]> rows_;
  Turns turns_;
  std::atomic<size_t> workspace_bytes_;  // may be asked for while the workspace grows
};

}  // namespace pyinfer
