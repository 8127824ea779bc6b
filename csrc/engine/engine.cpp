#include "engine/engine.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/cpu.h"
#include "base/error.h"
#include "engine/session.h"
#include "kernels/dispatch.h"

namespace pyinfer {
namespace {

std::string text(size_t value) { return std::to_string(value); }

}  // namespace

KvFormat usual_kv(Activations activations, bool biased_keys) {
  return activations == Activations::int8 && !biased_keys ? active_kernels().kv : kKvF16;
}

Engine::Engine(std::shared_ptr<const ModelFile> file, int threads, Activations activations)
    : file_(std::move(file)),
      model_(*file_, activations),
      pool_(threads == 0 ? default_threads() : threads),
      workspace_(active_kernels(), pool_, model_.workspace_shape(kMaxRows)),
      rows_(std::make_unique<BatchRow[]>(kMaxRows)),
      workspace_bytes_(workspace_.bytes()) {}

MemoryNeeds Engine::memory(size_t context, KvFormat format) const {
  if (context > kMostPositions) {
    throw Error(ErrorKind::request,
                "context: expected at most " + std::to_string(kMostPositions) + ", found " + std::to_string(context));
  }
  return {file_->file_bytes(), KvShape::n_pages(context) * kv_shape(format).page_bytes(), workspace_bytes_.load()};
}

void Engine::make_room(const Model& model, size_t low_rank) {
  WorkspaceShape shape = model.workspace_shape(kMaxRows);
  shape.low_rank = low_rank;
  shape.needs_f32 |= low_rank > 0;
  const Turns::Turn turn = take_turn();
  workspace_.grow(shape);
  workspace_bytes_.store(workspace_.bytes());
}

void Engine::check_process() const {
  if (pool_.alive_here()) return;
  throw Error(ErrorKind::request,
              "engine: expected the process that loaded it, found a fork, where its threads do not exist");
}

Turns::Turn Engine::take_turn() {
  check_process();
  if (turns_.is_mine())
    throw Error(ErrorKind::request, "engine: expected no step at work in this thread, found one that a poll came from");
  return Turns::Turn(turns_);
}

void Engine::check(int32_t token) const {
  if (token >= 0 && static_cast<uint32_t>(token) < spec().n_vocab) return;
  throw Error(ErrorKind::request,
              "token: expected 0 to " + text(spec().n_vocab - 1) + ", found " + std::to_string(token));
}

void Engine::check(std::span<const BatchItem> items) const {
  size_t n_rows = 0;
  for (const BatchItem& item : items) {
    const Session& session = *item.session;
    if (&session.engine() != this)
      throw Error(ErrorKind::request, "session: expected one of this engine, found one of another");
    session.check(item.tokens);
    n_rows += item.tokens.size();
  }
  if (n_rows > kMaxRows)
    throw Error(ErrorKind::request,
                "batch: expected at most " + text(kMaxRows) + " tokens a step, found " + text(n_rows));
}

// Sessions of one stack stand together, so that their rows meet its factors together; the bits of a row are the same in any order.
std::span<const BatchRow> Engine::rows_of(std::span<const BatchItem> items, const Model& model) {
  size_t n = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const Adapters* adapters = items[i].session->running_adapters();
    const auto same = [&](const BatchItem& item) { return item.session->running_adapters() == adapters; };
    if (std::any_of(items.begin(), items.begin() + static_cast<ptrdiff_t>(i), same)) continue;
    for (const BatchItem& item : items.subspan(i)) {
      if (same(item) && &item.session->model() == &model) n = add_rows(item, n);
    }
  }
  return {rows_.get(), n};
}

// Puts the rows of one session at row `n`; returns what comes after them.
size_t Engine::add_rows(const BatchItem& item, size_t n) {
  float* logits = item.logits;
  for (size_t i = 0; i < item.tokens.size(); ++i) {
    const bool wanted = logits != nullptr && (item.all_logits || i + 1 == item.tokens.size());
    rows_[n] = {&item.session->cache_, item.tokens[i], item.session->position_ + i, wanted ? logits : nullptr,
                item.session->running_adapters()};
    check(rows_[n++].token);  // again: the caller's array may have been changed since
    if (wanted) logits += spec().n_vocab;
  }
  return n;
}

// The rows of one model: all, unless some sessions' adapters replace tensors.
bool Engine::pass(std::span<const BatchItem> items, const Model& model, const Poll& poll) {
  const auto rows = rows_of(items, model);
  return rows.empty() || forward(model, workspace_, rows, poll);
}

void Engine::step(std::span<const BatchItem> items, const Poll& poll) {
  const Occupied occupied(items);
  run(items, poll);
}

void Engine::run(std::span<const BatchItem> items, const Poll& poll) {
  check(items);
  const Turns::Turn turn = take_turn();
  file_->mapping().check_whole();
  struct Context {
    std::span<const BatchItem> items;
    const Poll& poll;
  } context{items, poll};
  const Poll any{[](void* c) {
                   const auto& all = *static_cast<Context*>(c);
                   const bool asked = std::any_of(all.items.begin(), all.items.end(), [](const BatchItem& item) {
                     return item.session->cancelled_.load();
                   });
                   return asked || all.poll.cancelled(all.poll.context);
                 },
                 &context};
  for (size_t i = 0; i < items.size(); ++i) {
    const Model& model = items[i].session->model();
    const auto same = [&](const BatchItem& item) { return &item.session->model() == &model; };
    if (std::any_of(items.begin(), items.begin() + static_cast<ptrdiff_t>(i), same) || pass(items, model, any))
      continue;
    for (const BatchItem& item : items) item.session->cancelled_.store(false);
    throw Error(ErrorKind::cancelled, "the step was cancelled");
  }
  for (const BatchItem& item : items) item.session->position_ += item.tokens.size();
}

}  // namespace pyinfer
