// One timeline of tokens with its KV cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>

#include "engine/adapter_set.h"
#include "engine/engine.h"
#include "nn/kv_cache.h"

namespace pyinfer {

// Which tokens of an `eval` want logits.
enum class Wanted { none, last, all };
inline size_t rows_wanted(Wanted wanted, size_t n_tokens) {
  return wanted == Wanted::all ? n_tokens : wanted == Wanted::last && n_tokens > 0 ? 1 : 0;
}

// Throws a request error unless 1 ≤ context ≤ kMostPositions.
size_t checked_context(uint64_t context);

class Session {
 public:
  // Throws what checked_context throws, a memory error if the cache cannot be had.
  Session(std::shared_ptr<Engine> engine, size_t context, KvFormat format);
  // With the engine's usual format.
  Session(std::shared_ptr<Engine> engine, size_t context) : Session(engine, context, engine->usual_kv()) {}

  Engine& engine() const { return *engine_; }
  size_t position() const { return position_; }
  size_t context() const { return context_; }
  void truncate(size_t position);

  // Throws a context_full error unless so many tokens fit behind those that are held.
  void check_room(size_t n_tokens) const;
  // The same, and unless all tokens are of the vocabulary.
  void check(std::span<const int32_t> tokens) const;

  // Appends tokens in chunks of at most `chunk` rows. `logits` as in BatchItem.
  void eval(std::span<const int32_t> tokens, float* logits, bool all_logits, size_t chunk, const Poll& poll);

  // What the next step runs with; nullptr for the model alone. May be set at any time, by any thread: a call that runs keeps the set that
  // it began with. Throws a request error for a set of another engine.
  void set_adapters(std::shared_ptr<const AdapterSet> adapters);
  std::shared_ptr<const AdapterSet> adapters() const;

  // Makes a running or the next step throw a cancelled error. From any thread.
  void cancel() { cancelled_.store(true); }

 private:
  friend class Engine;
  friend class Occupied;

  // Of the call that occupies the session.
  const Model& model() const { return running_ ? running_->model() : engine_->model(); }
  const Adapters* running_adapters() const { return running_ ? running_->adapters() : nullptr; }
  bool occupy();
  void leave();

  std::shared_ptr<Engine> engine_;
  size_t context_;
  KvCache cache_;
  std::atomic<size_t> position_{0};  // may be asked for while a step runs
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> busy_{false};
  mutable std::mutex swap_;  // of adapters_
  std::shared_ptr<const AdapterSet> adapters_;
  std::shared_ptr<const AdapterSet> running_;
};

// Marks the sessions of a batch as busy while it lives. Throws a request error if one is busy already or stands there twice.
class Occupied {
 public:
  explicit Occupied(std::span<const BatchItem> items);
  ~Occupied() { release(); }
  Occupied(const Occupied&) = delete;
  Occupied& operator=(const Occupied&) = delete;

 private:
  void release();

  std::span<const BatchItem> items_;
  size_t n_ = 0;
};

}  // namespace pyinfer
