// Engine and sessions: positions, chunks, errors before any work, cancelling, sharing by threads.
#include <atomic>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "engine/engine.h"
#include "engine/session.h"
#include "tiny_model.h"

using namespace pyinfer;

namespace {

constexpr Poll never{[](void*) { return false; }, nullptr};
constexpr std::size_t n_vocab = 101;

std::shared_ptr<Engine> make_engine(int threads = 2, std::uint64_t seed = 1) {
  const tiny::TemporaryFile file(tiny::Model(tiny::Shape(), seed).file());
  return std::make_shared<Engine>(std::make_shared<const ModelFile>(file.path()), threads, Activations::int8);
}

std::vector<std::int32_t> random_tokens(std::uint64_t seed, std::size_t n) {
  Random random(seed);
  std::vector<std::int32_t> tokens(n);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(n_vocab));
  return tokens;
}

std::vector<float> all_logits(Session& session, const std::vector<std::int32_t>& tokens, std::size_t chunk = 512) {
  std::vector<float> logits(tokens.size() * n_vocab);
  session.eval(tokens, logits.data(), true, chunk, never);
  return logits;
}

}  // namespace

TEST(engine, last_logits_are_the_last_of_all) {
  const auto engine = make_engine();
  const auto tokens = random_tokens(1, 150);
  Session one(engine, 200), other(engine, 200);
  const std::vector<float> all = all_logits(one, tokens);
  for (const std::size_t chunk : {512, 64, 7}) {
    std::vector<float> last(n_vocab);
    other.truncate(0);
    other.eval(tokens, last.data(), false, chunk, never);
    CHECK(std::equal(last.begin(), last.end(), all.end() - n_vocab));
    CHECK_EQUAL(other.position(), 150u);
  }
  Session silent(engine, 200);
  silent.eval(tokens, nullptr, false, 512, never);
  CHECK_EQUAL(silent.position(), 150u);
  CHECK(all_logits(silent, {5}) == all_logits(one, {5}));
}

TEST(engine, a_prompt_longer_than_the_workspace_goes_in_chunks) {
  const auto engine = make_engine();
  const auto tokens = random_tokens(2, Engine::kMaxRows + 100);
  Session one(engine, 1000), other(engine, 1000);
  CHECK(all_logits(one, tokens, 100000) == all_logits(other, tokens, 300));
}

TEST(engine, truncated_sessions_continue_as_if_new) {
  const auto engine = make_engine();
  const auto tokens = random_tokens(3, 130);
  Session session(engine, 130);
  const std::vector<float> expected = all_logits(session, tokens);
  for (const std::size_t kept : {129, 64, 63, 1, 0}) {
    session.truncate(kept);
    CHECK_EQUAL(session.position(), kept);
    const std::vector<float> again =
        all_logits(session, {tokens.begin() + static_cast<std::ptrdiff_t>(kept), tokens.end()});
    CHECK(std::equal(again.begin(), again.end(), expected.begin() + static_cast<std::ptrdiff_t>(kept * n_vocab)));
  }
  CHECK_ERROR(session.truncate(131), request, "expected 0 to 130, found 131");
}

TEST(engine, a_batch_gives_each_session_what_it_gets_alone) {
  const auto engine = make_engine(3);
  Session alone(engine, 100), a(engine, 100), b(engine, 100);
  const auto tokens_a = random_tokens(4, 30), tokens_b = random_tokens(5, 71);
  std::vector<float> last_a(n_vocab), all_b(71 * n_vocab);
  const BatchItem items[] = {{&a, tokens_a, last_a.data(), false}, {&b, tokens_b, all_b.data(), true}};
  engine->step(items, never);
  CHECK(all_logits(alone, tokens_b) == all_b);
  alone.truncate(0);
  const std::vector<float> all_a = all_logits(alone, tokens_a);
  CHECK(std::equal(last_a.begin(), last_a.end(), all_a.end() - n_vocab));
  CHECK_EQUAL(a.position(), 30u);
  CHECK_EQUAL(b.position(), 71u);
}

TEST(engine, what_cannot_be_done_is_refused_before_any_work) {
  const auto engine = make_engine(), other = make_engine();
  Session session(engine, 10), stranger(other, 10);
  std::vector<float> logits(20 * n_vocab, -7.0f);
  const std::vector<std::int32_t> good(4, 1), eleven(11, 1);
  session.eval(good, nullptr, false, 512, never);
  for (const std::int32_t token : {-1, 101, 2147483647, -2147483647}) {
    const std::vector<std::int32_t> bad = {1, token};
    CHECK_ERROR(session.eval(bad, logits.data(), true, 512, never), request,
                "token: expected 0 to 100, found " + std::to_string(token));
    CHECK_ERROR(session.eval(bad, logits.data(), true, 1, never), request, "token: expected 0 to 100");
    CHECK_EQUAL(session.position(), 4u);
  }
  CHECK_ERROR(session.eval(std::vector<std::int32_t>(7, 1), logits.data(), true, 1, never), context_full,
              "at most 10 tokens, found 4 held and 7 more");
  CHECK_ERROR(session.eval(eleven, logits.data(), true, 1, never), context_full, "at most 10 tokens");
  const BatchItem twice[] = {{&session, good, nullptr, false}, {&session, good, nullptr, false}};
  CHECK_ERROR(engine->step(twice, never), request, "session");
  const BatchItem foreign[] = {{&session, good, nullptr, false}, {&stranger, good, nullptr, false}};
  CHECK_ERROR(engine->step(foreign, never), request, "engine");
  CHECK_EQUAL(session.position(), 4u);
  for (const float logit : logits) CHECK_EQUAL(logit, -7.0f);
  session.eval(std::vector<std::int32_t>(6, 1), nullptr, false, 4, never);
  CHECK_EQUAL(session.position(), 10u);
}

TEST(engine, too_many_rows_at_once) {
  const auto engine = make_engine();
  Session session(engine, 2000);
  const std::vector<std::int32_t> tokens(Engine::kMaxRows + 1, 1);
  const BatchItem items[] = {{&session, tokens, nullptr, false}};
  CHECK_ERROR(engine->step(items, never), request, "at most 512 tokens a step, found 513");
}

TEST(engine, contexts_and_threads_have_limits) {
  const auto engine = make_engine();
  CHECK_ERROR(Session(engine, 0), request, "context: expected 1 to 16777216, found 0");
  CHECK_ERROR(Session(engine, 16777217), request, "context");
  CHECK_ERROR(make_engine(-1), request, "threads");
  CHECK_ERROR(make_engine(257), request, "threads");
  CHECK(make_engine(0)->n_threads() >= 1);
}

TEST(engine, nothing_to_append_changes_nothing) {
  const auto engine = make_engine();
  Session session(engine, 10);
  session.eval({}, nullptr, true, 512, never);
  engine->step({}, never);
  CHECK_EQUAL(session.position(), 0u);
}

TEST(engine, cancelling_ends_the_step_and_keeps_the_session) {
  const auto engine = make_engine();
  const auto tokens = random_tokens(6, 100);
  Session session(engine, 100), expected(engine, 100);
  session.cancel();
  CHECK_ERROR(session.eval(tokens, nullptr, false, 40, never), cancelled, "cancelled");
  CHECK_EQUAL(session.position(), 0u);
  // Two layers are asked about in each chunk: the fourth question falls into the second chunk.
  int asked = 0;
  const Poll fourth{[](void* n) { return ++*static_cast<int*>(n) == 4; }, &asked};
  CHECK_ERROR(session.eval(tokens, nullptr, false, 40, fourth), cancelled, "cancelled");
  CHECK_EQUAL(session.position(), 40u);
  const std::vector<float> rest = all_logits(session, {tokens.begin() + 40, tokens.end()});
  const std::vector<float> all = all_logits(expected, tokens);
  CHECK(std::equal(rest.begin(), rest.end(), all.begin() + 40 * n_vocab));
}

// Several threads, a session each, one engine: they take turns, and each gets its own bits.
TEST(engine, threads_share_an_engine) {
  const auto engine = make_engine(2);
  const auto tokens = random_tokens(7, 60);
  Session expected_session(engine, 60);
  const std::vector<float> expected = all_logits(expected_session, tokens);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      Session session(engine, 60);
      for (int round = 0; round < 3; ++round) {
        session.truncate(0);
        right += all_logits(session, tokens, 1 + 9 * i) == expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(right.load(), 24);
}

// Two threads on one session: a step either happens whole or is refused; nothing interleaves.
TEST(engine, a_session_belongs_to_one_thread_at_a_time) {
  const auto engine = make_engine(1);
  Session session(engine, 4000);
  std::atomic<long> appended{0}, refused{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 40; ++round) {
        try {
          session.eval(std::vector<std::int32_t>(20, 1), nullptr, false, 4, never);
          appended += 20;
        } catch (const Error& error) {
          refused += error.kind() == ErrorKind::request;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(appended.load() / 20 + refused.load(), 120);
  CHECK_EQUAL(session.position(), static_cast<std::size_t>(appended.load()));
}

// cancel() may come from any thread, at any time; the session goes on afterwards.
TEST(engine, cancelling_from_another_thread) {
  const auto engine = make_engine(2);
  Session session(engine, 2000), expected(engine, 2000);
  const auto tokens = random_tokens(8, 500);
  std::atomic<bool> done{false};
  std::thread canceller([&] {
    while (!done) {
      session.cancel();
      std::this_thread::yield();
    }
  });
  int cancelled = 0;
  for (int i = 0; i < 20; ++i) {
    try {
      session.eval(std::span(tokens).subspan(session.position()), nullptr, false, 16, never);
    } catch (const Error& error) {
      cancelled += error.kind() == ErrorKind::cancelled;
    }
    if (session.position() == 500) session.truncate(0);
  }
  done = true;
  canceller.join();
  CHECK(cancelled > 0);
  session.truncate(0);
  try {
    session.eval({}, nullptr, false, 1, never);
    session.eval(std::span(tokens).first(1), nullptr, false, 1, never);  // takes up a cancel that came last
  } catch (const Error&) {
  }
  session.truncate(0);
  CHECK(all_logits(session, tokens) == all_logits(expected, tokens));
}

#if !defined(_WIN32)  // where the system refuses to cut it
TEST(engine, a_file_cut_while_in_use_is_an_error) {
  const tiny::TemporaryFile path(tiny::Model(tiny::Shape(), 1).file());
  const auto engine = std::make_shared<Engine>(std::make_shared<const ModelFile>(path.path()), 1, Activations::int8);
  Session session(engine, 10);
  std::filesystem::resize_file(path.path(), 4096);
  CHECK_ERROR(session.eval(std::vector<std::int32_t>{1}, nullptr, false, 1, never), model_file, "cut while in use");
  CHECK_EQUAL(session.position(), 0u);
}
#endif

TEST(engine, memory_is_told) {
  const auto engine = make_engine();
  const MemoryNeeds needs = engine->memory(100, kKvF16);
  // Two pages of 64 positions: 2 layers, 2 heads, K of 8 and V of 8 padded to 16 halves a position.
  CHECK_EQUAL(needs.kv_cache, 2u * 64 * 2 * 2 * (8 + 16) * 2);
  CHECK(needs.weights > 0 && needs.workspace > 0);
  // As bytes, with a float scale a position for K and one for V.
  CHECK_EQUAL(engine->memory(100, kKvQ8).kv_cache, 2u * 64 * 2 * 2 * (8 + 4 + 16 + 4));
  CHECK_EQUAL(engine->memory(100, kKvI16).kv_cache, 2u * 64 * 2 * 2 * (2 * 8 + 4 + 2 * 16 + 4));
}
