// The C interface: sessions, and passes with several of them.
#include <string>
#include <vector>

#include "api/capi.h"

using namespace pyinfer;
using capi::guarded;

namespace {

constexpr pyi_session_options kSessionDefaults{sizeof(pyi_session_options), 0, -1, 0};
constexpr pyi_eval_options kEvalDefaults{sizeof(pyi_eval_options), PYI_LAST_LOGITS, Engine::kMaxRows, nullptr, nullptr};
constexpr pyi_batch_item kItemDefaults{nullptr, nullptr, 0, nullptr, 0, PYI_LAST_LOGITS, 0};

// A caller's poll function as the engine asks it.
struct CallersPoll {
  int32_t (*asked)(void*);
  void* context;

  explicit CallersPoll(const pyi_eval_options& options) : asked(options.poll), context(options.poll_context) {}
  Poll poll() {
    return {[](void* self) {
              const auto& me = *static_cast<const CallersPoll*>(self);
              return me.asked != nullptr && me.asked(me.context) != 0;
            },
            this};
  }
};

size_t session_context(uint64_t asked, size_t limit) {
  if (asked > limit)
    capi::refuse("context", "at most the model's limit of " + std::to_string(limit), std::to_string(asked));
  return asked == 0 ? limit : static_cast<size_t>(asked);
}

std::shared_ptr<capi::OpenSession> open_session(const capi::Model& model, const pyi_session_options& options) {
  capi::check_reserved(options.reserved, "pyi_session_options");
  const KvFormat kv = options.kv == -1 ? model.kv : capi::kv_of(model, options.kv);
  auto opened = std::make_shared<capi::OpenSession>();
  opened->session = std::make_shared<Session>(model.engine, session_context(options.context, model.context_limit), kv);
  opened->logits = std::make_unique<float[]>(opened->n_vocab());
  return opened;
}

// A caller's tokens. More than the session has room for are refused before they are looked at.
std::span<const int32_t> tokens_of(const Session& session, const int32_t* tokens, size_t n_tokens) {
  if (tokens == nullptr && n_tokens > 0) capi::refuse("tokens", "an array", "NULL");
  session.check_room(n_tokens);
  return {tokens, n_tokens};
}

Wanted wanted_of(int32_t value) {
  if (value == PYI_NO_LOGITS) return Wanted::none;
  if (value == PYI_LAST_LOGITS) return Wanted::last;
  if (value == PYI_ALL_LOGITS) return Wanted::all;
  capi::refuse("wanted", "PYI_NO_LOGITS, PYI_LAST_LOGITS or PYI_ALL_LOGITS", std::to_string(value));
}

// Where logits go, or nullptr where none are wanted; throws unless the room is theirs.
float* room_of(Wanted wanted, size_t n_tokens, size_t n_vocab, float* logits, size_t n_logits) {
  const uint64_t needed = uint64_t{rows_wanted(wanted, n_tokens)} * n_vocab;
  if (needed == 0) return nullptr;
  if (logits == nullptr) capi::refuse("logits", "room for " + std::to_string(needed) + " floats", "NULL");
  if (n_logits != needed) capi::refuse("n_logits", std::to_string(needed), std::to_string(n_logits));
  return logits;
}

void append(capi::OpenSession& opened, std::span<const int32_t> tokens) {
  CallersPoll nobody(kEvalDefaults);
  opened.session->eval(tokens, opened.logits.get(), false, Engine::kMaxRows, nobody.poll());
}

// Items of a batch as the engine takes them, and the sessions kept alive for the pass.
struct Batch {
  std::vector<std::shared_ptr<capi::OpenSession>> sessions;
  std::vector<BatchItem> items;

  void add(const pyi_batch_item& item) {
    capi::check_reserved(item.reserved, "pyi_batch_item");
    sessions.push_back(capi::get(item.session));
    Session& session = *sessions.back()->session;
    const auto tokens = tokens_of(session, item.tokens, item.n_tokens);
    const Wanted wanted = wanted_of(item.wanted);
    items.push_back({&session, tokens,
                     room_of(wanted, item.n_tokens, sessions.back()->n_vocab(), item.logits, item.n_logits),
                     wanted == Wanted::all});
  }
};

Batch batch_of(const pyi_batch_item* items, size_t n_items, size_t item_size) {
  if (items == nullptr && n_items > 0) capi::refuse("items", "an array", "NULL");
  if (n_items > Engine::kMaxRows)  // each has a token, or no reason to be there
    capi::refuse("n_items", "at most " + std::to_string(Engine::kMaxRows), std::to_string(n_items));
  Batch batch;
  for (size_t i = 0; i < n_items; ++i) {
    const auto* item = reinterpret_cast<const uint8_t*>(items) + i * item_size;
    batch.add(capi::taken<pyi_batch_item>(item, item_size, kItemDefaults, "pyi_batch_item"));
  }
  return batch;
}

}  // namespace

pyi_status pyi_session_options_init(pyi_session_options* options, size_t size) {
  return guarded([&] { capi::give(kSessionDefaults, options, size, "pyi_session_options"); });
}

pyi_status pyi_session_open(pyi_model* model, const pyi_session_options* options, pyi_session** session) {
  return guarded([&] {
    const auto opened = capi::get(model);
    auto& to = capi::out(session, "session");
    to =
        capi::opened<pyi_session>(open_session(*opened, capi::taken(options, kSessionDefaults, "pyi_session_options")));
  });
}

void pyi_session_close(pyi_session* session) { capi::closed(session); }

pyi_status pyi_session_get_position(const pyi_session* session, uint64_t* position) {
  return guarded([&] {
    const auto opened = capi::get(session);
    capi::out(position, "position") = opened->session->position();
  });
}

pyi_status pyi_session_get_context(const pyi_session* session, uint64_t* context) {
  return guarded([&] {
    const auto opened = capi::get(session);
    capi::out(context, "context") = opened->session->context();
  });
}

pyi_status pyi_session_truncate(pyi_session* session, uint64_t position) {
  return guarded([&] { capi::get(session)->session->truncate(static_cast<size_t>(position)); });
}

pyi_status pyi_session_prefill(pyi_session* session, const int32_t* tokens, size_t n_tokens) {
  return guarded([&] {
    const auto opened = capi::get(session);
    append(*opened, tokens_of(*opened->session, tokens, n_tokens));
  });
}

pyi_status pyi_session_step(pyi_session* session, int32_t token) {
  return guarded([&] { append(*capi::get(session), {&token, 1}); });
}

const float* pyi_session_logits(const pyi_session* session) {
  const float* logits = nullptr;
  guarded([&] { logits = capi::get(session)->logits.get(); });
  return logits;
}

pyi_status pyi_eval_options_init(pyi_eval_options* options, size_t size) {
  return guarded([&] { capi::give(kEvalDefaults, options, size, "pyi_eval_options"); });
}

pyi_status pyi_session_eval(pyi_session* session, const int32_t* tokens, size_t n_tokens, const pyi_eval_options* given,
                            float* logits, size_t n_logits) {
  return guarded([&] {
    const auto opened = capi::get(session);
    const pyi_eval_options options = capi::taken(given, kEvalDefaults, "pyi_eval_options");
    if (options.chunk < 1 || options.chunk > Engine::kMaxRows)
      capi::refuse("chunk", "1 to " + std::to_string(Engine::kMaxRows), std::to_string(options.chunk));
    const Wanted wanted = wanted_of(options.wanted);
    const auto span = tokens_of(*opened->session, tokens, n_tokens);
    float* to = room_of(wanted, n_tokens, opened->n_vocab(), logits, n_logits);
    CallersPoll poll(options);
    opened->session->eval(span, to, wanted == Wanted::all, options.chunk, poll.poll());
  });
}

pyi_status pyi_model_forward(pyi_model* model, const pyi_batch_item* items, size_t n_items, size_t item_size,
                             const pyi_eval_options* given) {
  return guarded([&] {
    const auto opened = capi::get(model);
    const Batch batch = batch_of(items, n_items, item_size);
    CallersPoll poll(capi::taken(given, kEvalDefaults, "pyi_eval_options"));
    opened->engine->step(batch.items, poll.poll());
  });
}

pyi_status pyi_session_cancel(pyi_session* session) {
  return guarded([&] { capi::get(session)->session->cancel(); });
}

pyi_status pyi_session_set_adapters(pyi_session* session, pyi_adapters* adapters) {
  return guarded([&] {
    const auto opened = capi::get(session);
    opened->session->set_adapters(adapters == nullptr ? nullptr : capi::get(adapters));
  });
}
