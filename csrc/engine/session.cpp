#include "engine/session.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

namespace pyinfer {
size_t checked_context(uint64_t context) {
  if (context >= 1 && context <= kMostPositions) return static_cast<size_t>(context);
  throw Error(ErrorKind::request,
              "context: expected 1 to " + std::to_string(kMostPositions) + ", found " + std::to_string(context));
}

Session::Session(std::shared_ptr<Engine> engine, size_t context, KvFormat format)
    : engine_(std::move(engine)), context_(checked_context(context)), cache_(engine_->kv_shape(format), context_) {}

void Session::set_adapters(std::shared_ptr<const AdapterSet> adapters) {
  if (adapters && &adapters->engine() != engine_.get()) {
    throw Error(ErrorKind::request, "adapters: expected a set of the session's engine, found one of another");
  }
  engine_->check_process();
  const std::lock_guard<std::mutex> lock(swap_);
  adapters_.swap(adapters);  // the old one may be freed, after the lock
}

std::shared_ptr<const AdapterSet> Session::adapters() const {
  const std::lock_guard<std::mutex> lock(swap_);
  return adapters_;
}

bool Session::occupy() {
  engine_->check_process();
  if (busy_.exchange(true)) return false;
  running_ = adapters();
  return true;
}

void Session::leave() {
  running_.reset();
  busy_.store(false);
}

Occupied::Occupied(std::span<const BatchItem> items) : items_(items) {
  for (; n_ < items.size(); ++n_) {
    if (items[n_].session->occupy()) continue;
    release();
    throw Error(ErrorKind::request,
                "session: expected one step at a time and each session once a batch, found a second step");
  }
}

void Occupied::release() {
  for (size_t i = 0; i < n_; ++i) items_[i].session->leave();
}

void Session::truncate(size_t position) {
  const BatchItem self{this, {}, nullptr, false};
  const Occupied occupied({&self, 1});
  if (position > position_) {
    throw Error(ErrorKind::request,
                "position: expected 0 to " + std::to_string(position_) + ", found " + std::to_string(position));
  }
  position_ = position;
}

void Session::check_room(size_t n_tokens) const {
  const size_t held = position_;
  if (n_tokens <= context_ - held) return;
  throw Error(ErrorKind::context_full, "context: expected at most " + std::to_string(context_) + " tokens, found " +
                                           std::to_string(held) + " held and " + std::to_string(n_tokens) + " more");
}

void Session::check(std::span<const int32_t> tokens) const {
  check_room(tokens.size());
  for (const int32_t token : tokens) engine_->check(token);
}

void Session::eval(std::span<const int32_t> tokens, float* logits, bool all_logits, size_t chunk, const Poll& poll) {
  const BatchItem whole{this, tokens, logits, all_logits};
  const Occupied occupied({&whole, 1});  // to the end, or another thread's tokens could come between two chunks
  check(tokens);
  chunk = std::clamp<size_t>(chunk, 1, Engine::kMaxRows);
  for (size_t done = 0; done < tokens.size();) {
    const size_t n = std::min(chunk, tokens.size() - done);
    const bool wanted = logits != nullptr && (all_logits || done + n == tokens.size());
    float* to = wanted ? logits + (all_logits ? done * engine_->spec().n_vocab : 0) : nullptr;
    const BatchItem item{this, tokens.subspan(done, n), to, all_logits};
    engine_->run({&item, 1}, poll);
    done += n;
  }
}

}  // namespace pyinfer
