#include "engine/session.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

namespace pyinfer {
namespace {

constexpr size_t kMaxContext = 16777216;

size_t checked_context(size_t context) {
  if (context >= 1 && context <= kMaxContext) return context;
  throw Error(ErrorKind::request, "context: expected 1 to " + std::to_string(kMaxContext) + ", found " + std::to_string(context));
}

}  // namespace

Session::Session(std::shared_ptr<Engine> engine, size_t context)
    : engine_(std::move(engine)), context_(checked_context(context)), cache_(engine_->kv_shape(), context_) {}

void Session::truncate(size_t position) {
  if (position > position_) {
    throw Error(ErrorKind::request, "position: expected 0 to " + std::to_string(position_) + ", found " + std::to_string(position));
  }
  if (!enter()) throw Error(ErrorKind::request, "session: expected no step under way, found one");
  position_ = position;
  leave();
}

void Session::check(std::span<const int32_t> tokens) const {
  const uint32_t n_vocab = engine_->spec().n_vocab;
  for (const int32_t token : tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= n_vocab) {
      throw Error(ErrorKind::request, "token: expected 0 to " + std::to_string(n_vocab - 1) + ", found " + std::to_string(token));
    }
  }
  if (position_ + tokens.size() > context_) {
    throw Error(ErrorKind::context_full, "context: expected at most " + std::to_string(context_) + " tokens, found " +
                                             std::to_string(position_) + " held and " + std::to_string(tokens.size()) + " more");
  }
}

void Session::eval(std::span<const int32_t> tokens, float* logits, bool all_logits, size_t chunk, const Poll& poll) {
  check(tokens);
  chunk = std::clamp<size_t>(chunk, 1, Engine::kMaxRows);
  for (size_t done = 0; done < tokens.size();) {
    const size_t n = std::min(chunk, tokens.size() - done);
    const bool wanted = logits != nullptr && (all_logits || done + n == tokens.size());
    float* to = wanted ? logits + (all_logits ? done * engine_->spec().n_vocab : 0) : nullptr;
    const BatchItem item{this, tokens.subspan(done, n), to, all_logits};
    engine_->step({&item, 1}, poll);
    done += n;
  }
}

}  // namespace pyinfer
