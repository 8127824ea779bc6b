// The forward pass on tiny random models of many shapes, on every instruction set, against the double-precision one.
#include <memory>

#include "base/buffer.h"
#include "base/thread_pool.h"
#include "check.h"
#include "isas.h"
#include "model/decoder.h"
#include "tiny_model.h"

using namespace pyinfer;

namespace {

const std::vector<Format> all_formats = {Format::q4,   Format::q8m, Format::f16, Format::q4m,
                                         Format::bf16, Format::q8,  Format::f32};

// What families have besides a plain LLaMA: one thing each, then many at once.
std::vector<tiny::Shape> family_shapes() {
  std::vector<tiny::Shape> all(9);
  all[0].qkv_bias = true;
  all[1].o_bias = true, all[1].dim = 33, all[1].n_heads = 3, all[1].n_kv_heads = 1, all[1].head_dim = 10,
  all[1].qkv_bias = true, all[1].rope_dim = 4;  // biases that fill no tile
  all[2].qk_norm = true;
  all[3].post_norms = true, all[3].gelu = true, all[3].embedding_scale = 6.9f;
  all[4].attn_softcap = 1.5f, all[4].attention_scale = 1.0f, all[4].logit_softcap = 2.0f;
  all[5].window = 5, all[5].windowed = {0, 1};
  all[6].window = 17, all[6].windowed = {0, 2}, all[6].n_layers = 3, all[6].unrotated = {1}, all[6].rope_dim = 4,
  all[6].rope_magnitude = 1.2f;
  all[7].window = 20, all[7].windowed = {0}, all[7].local_rope = true, all[7].rope_magnitude = 0.9f;
  all[8].window = 9, all[8].windowed = {1}, all[8].local_rope = true, all[8].qk_norm = true, all[8].qkv_bias = true,
  all[8].post_norms = true, all[8].gelu = true, all[8].attn_softcap = 3.0f, all[8].logit_softcap = 4.0f,
  all[8].embedding_scale = 2.0f, all[8].formats = {Format::q8, Format::f32}, all[8].tied = false;
  return all;
}

std::vector<tiny::Shape> shapes() {
  std::vector<tiny::Shape> all(10);
  all[1].n_kv_heads = 6;  // multi-head
  all[2].n_kv_heads = 1;  // multi-query
  all[3].tied = false, all[3].n_vocab = 97;
  all[4].dim = 64, all[4].n_heads = 8, all[4].n_kv_heads = 4,
  all[4].n_ff = 172;                                   // as in stories260K: 172 is no multiple of 32
  all[5].rope_dim = 4, all[5].rope_magnitude = 1.25f;  // part of a head rotates
  all[6].rope_dim = 0;
  all[7].dim = 33, all[7].n_heads = 3, all[7].n_kv_heads = 3, all[7].head_dim = 10, all[7].rope_dim = 10,
  all[7].n_ff = 17;
  all[8].formats = all_formats, all[8].tied = false, all[8].n_layers = 3;
  all[9].dim = 256, all[9].n_heads = 4, all[9].head_dim = 64, all[9].rope_dim = 64, all[9].n_ff = 512,
  all[9].attention_scale = 0.125f;
  all[9].formats = {Format::q4k, Format::q6k, Format::q5k};
  for (const tiny::Shape& shape : family_shapes()) all.push_back(shape);
  return all;
}

constexpr Poll never{[](void*) { return false; }, nullptr};

// A model with all that a step needs.
struct Runner {
  tiny::TemporaryFile path;
  ModelFile file;
  Model model;
  ThreadPool pool;
  Workspace workspace;

  Runner(const Kernels& kernels, const tiny::Model& tiny, Activations activations, int threads = 2)
      : path(tiny.file()),
        file(path.path()),
        model(file, activations),
        pool(threads),
        workspace(kernels, pool, model.workspace_shape(512)) {}

  // The logits (n_tokens, n_vocab) of tokens from `first` on, in chunks.
  std::vector<float> run(KvCache& cache, const std::vector<int>& tokens, std::size_t first, std::size_t chunk) {
    std::vector<float> logits((tokens.size() - first) * model.spec.n_vocab);
    for (std::size_t at = first; at < tokens.size(); at += chunk) {
      std::vector<BatchRow> rows;
      for (std::size_t i = at; i < std::min(at + chunk, tokens.size()); ++i)
        rows.push_back({&cache, tokens[i], i, &logits[(i - first) * model.spec.n_vocab]});
      CHECK(forward(model, workspace, rows, never));
    }
    return logits;
  }

  std::vector<float> run(const std::vector<int>& tokens, std::size_t chunk, KvFormat format = kKvF16) {
    KvCache cache(model.kv_shape(format), tokens.size());
    return run(cache, tokens, 0, chunk);
  }
};

std::vector<int> random_tokens(Random& random, std::size_t n, std::uint32_t n_vocab) {
  std::vector<int> tokens(n);
  for (int& token : tokens) token = static_cast<int>(random.below(n_vocab));
  return tokens;
}

// The logits (n_tokens, n_vocab) of one sequence in double precision.
std::vector<double> expected_logits(tiny::Reference& reference, const std::vector<int>& tokens) {
  reference.start();
  std::vector<double> logits;
  for (const int token : tokens)
    for (const double logit : reference.step(token)) logits.push_back(logit);
  return logits;
}

// Of each position, the root of the mean squared difference of its logits over that of the expected ones; least first.
std::vector<double> sorted_errors(const std::vector<float>& found, const std::vector<double>& expected,
                                  std::size_t n_vocab) {
  std::vector<double> errors;
  for (std::size_t at = 0; at < expected.size();) {
    double error = 0, size = 0;
    for (const std::size_t end = at + n_vocab; at < end; ++at) {
      error += std::pow(found[at] - expected[at], 2);
      size += expected[at] * expected[at];
    }
    errors.push_back(std::sqrt(error / size));
  }
  std::sort(errors.begin(), errors.end());
  return errors;
}

// The two passes differ by float rounding, a few u, except where that tips a number which is rounded coarsely to its neighbour: a
// key or value to the next half (2^-11), an activation to the next integer (1/127 of the greatest of its block). Of the positions
// of short sequences most have no such tip behind them; along a long sequence they add up, but stay small.
void check_forward(Activations activations, double most_short, double most_long) {
  const bool int8 = activations == Activations::int8;
  Random random(1);
  for (const tiny::Shape& shape : shapes()) {
    const tiny::Model tiny(shape, random.bits());
    std::vector<std::vector<int>> sequences(12);
    for (std::vector<int>& tokens : sequences) tokens = random_tokens(random, 4, shape.n_vocab);
    sequences.push_back(random_tokens(random, 70, shape.n_vocab));
    tiny::Reference reference(tiny, int8);
    std::vector<std::vector<double>> expected;
    for (const std::vector<int>& tokens : sequences) expected.push_back(expected_logits(reference, tokens));
    on_every_isa([&](const Kernels& kernels) {
      Runner runner(kernels, tiny, activations);
      std::vector<double> errors;
      for (std::size_t i = 0; i < 12; ++i)
        for (const double error : sorted_errors(runner.run(sequences[i], 4), expected[i], shape.n_vocab))
          errors.push_back(error);
      std::sort(errors.begin(), errors.end());
      CHECK_NEAR(errors[errors.size() / 2], 0, most_short);
      CHECK_NEAR(sorted_errors(runner.run(sequences[12], 23), expected[12], shape.n_vocab).back(), 0, most_long);
    });
  }
}

}  // namespace

TEST(forward, f32_activations_match_double_precision) { check_forward(Activations::f32, 2e-5, 5e-4); }
TEST(forward, int8_activations_match_exact_integers) { check_forward(Activations::int8, 2e-6, 0.1); }

TEST(forward, a_vocabulary_of_32001_rows) {
  tiny::Shape shape;
  shape.n_layers = 1, shape.dim = 192, shape.n_heads = 3, shape.n_kv_heads = 1, shape.head_dim = 64,
  shape.rope_dim = 64;
  shape.n_ff = 96, shape.n_vocab = 32001, shape.attention_scale = 0.125f, shape.formats = {Format::q8, Format::q4};
  const tiny::Model tiny(shape, 3);
  const std::vector<int> tokens = {0, 32000, 17};
  tiny::Reference reference(tiny, true);
  const std::vector<double> expected = expected_logits(reference, tokens);
  on_every_isa([&](const Kernels& kernels) {
    const std::vector<float> logits = Runner(kernels, tiny, Activations::int8).run(tokens, 3);
    const std::vector<double> errors = sorted_errors(logits, expected, shape.n_vocab);
    CHECK_NEAR(errors.front(), 0, 2e-6);
    CHECK_NEAR(errors.back(), 0, 0.1);
  });
}

namespace {

// Every number of threads and every size of chunks, but not each with each: emulated, a pass takes seconds. Passes of different chunks
// follow each other in one workspace.
void check_threads_and_chunks(const tiny::Shape& shape, std::size_t n_tokens) {
  struct Way {
    int threads;
    std::vector<std::size_t> chunks;
  };
  const Way ways[] = {{1, {7, 512}}, {2, {1, 65}}, {3, {64, 512}}, {7, {7, 65, 512}}};
  Random random(4);
  const tiny::Model tiny(shape, random.bits());
  const std::vector<int> tokens = random_tokens(random, n_tokens, shape.n_vocab);
  on_every_isa([&](const Kernels& kernels) {
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      const std::vector<float> expected = Runner(kernels, tiny, activations, 1).run(tokens, 1);
      for (const Way& way : ways) {
        Runner runner(kernels, tiny, activations, way.threads);
        for (const std::size_t chunk : way.chunks) CHECK(runner.run(tokens, chunk) == expected);
      }
    }
  });
}

}  // namespace

TEST(forward, bits_do_not_depend_on_threads_or_chunks) {
  tiny::Shape shape;
  shape.formats = all_formats, shape.tied = false;
  check_threads_and_chunks(shape, 150);
}

// Windows of less than a page, of a page and of more, so that rows of one round begin at different pages.
// Rows enough for threads to share them out, which takes 32 panels.
TEST(forward, bits_do_not_depend_on_who_takes_which_rows) {
  Random random(19);
  const tiny::Model tiny(tiny::Shape(), random.bits());
  const std::vector<int> tokens = random_tokens(random, 400, 101);
  on_every_isa([&](const Kernels& kernels) {
    const std::vector<float> alone = Runner(kernels, tiny, Activations::int8, 1).run(tokens, 400, kKvI16);
    for (const int threads : {2, 5}) {
      CHECK(Runner(kernels, tiny, Activations::int8, threads).run(tokens, 400, kKvI16) == alone);
    }
  });
}

TEST(forward, bits_of_windows_and_soft_caps_do_not_depend_on_threads_or_chunks) {
  for (const std::uint32_t window : {3u, 64u, 100u}) {
    tiny::Shape shape = family_shapes().back();
    shape.window = window;
    check_threads_and_chunks(shape, 210);
  }
}

// A sequence made for more positions than long_context rotates by other frequencies, from its first token on.
TEST(forward, long_sequences_have_frequencies_of_their_own) {
  tiny::Shape shape;
  shape.long_context = 40, shape.rope_magnitude = 1.1f, shape.formats = {Format::f32};
  const tiny::Model tiny(shape, 9);
  Random random(9);
  const std::vector<int> tokens = random_tokens(random, 30, shape.n_vocab);
  on_every_isa([&](const Kernels& kernels) {
    Runner runner(kernels, tiny, Activations::f32);
    for (const std::size_t context : {30, 40, 41, 400}) {
      tiny::Reference reference(tiny, false);
      reference.long_sequence = context > 40;
      const std::vector<double> expected = expected_logits(reference, tokens);
      KvCache cache(runner.model.kv_shape(kKvF16), context);
      CHECK_NEAR(sorted_errors(runner.run(cache, tokens, 0, 7), expected, shape.n_vocab).back(), 0, 5e-4);
    }
  });
}

TEST(forward, bits_do_not_depend_on_the_instruction_set) {
  Random random(10);
  for (const tiny::Shape& shape : shapes()) {
    const tiny::Model tiny(shape, random.bits());
    const std::vector<int> tokens = random_tokens(random, 70, shape.n_vocab);
    for (const Activations activations : {Activations::int8, Activations::f32}) {
      for (const KvFormat format : {kKvF16, kKvQ8, kKvI16}) {
        std::vector<float> expected;
        on_every_isa([&](const Kernels& kernels) {
          const std::vector<float> found = Runner(kernels, tiny, activations).run(tokens, 37, format);
          if (expected.empty()) expected = found;
          CHECK(found == expected);
        });
      }
    }
  }
}

TEST(forward, bits_do_not_depend_on_the_rest_of_the_batch) {
  on_every_isa([](const Kernels& kernels) {
    Random random(5);
    const tiny::Model tiny(tiny::Shape(), random.bits());
    Runner runner(kernels, tiny, Activations::int8, 3);
    const std::vector<std::vector<int>> sequences = {random_tokens(random, 90, 101), random_tokens(random, 3, 101),
                                                     random_tokens(random, 67, 101)};
    std::vector<std::unique_ptr<KvCache>> caches;
    std::vector<std::vector<float>> logits;
    std::vector<BatchRow> rows;
    for (const std::vector<int>& tokens : sequences) {
      caches.push_back(std::make_unique<KvCache>(runner.model.kv_shape(kKvF16), 100));
      logits.emplace_back(tokens.size() * 101);
      for (std::size_t i = 0; i < tokens.size(); ++i)
        rows.push_back({caches.back().get(), tokens[i], i, &logits.back()[i * 101]});
    }
    CHECK(forward(runner.model, runner.workspace, rows, never));
    for (std::size_t s = 0; s < sequences.size(); ++s) CHECK(logits[s] == runner.run(sequences[s], 512));
    // A step with one more token of each, which takes the way of single rows.
    rows.clear();
    std::vector<std::vector<float>> next(3, std::vector<float>(101));
    for (std::size_t s = 0; s < 3; ++s) rows.push_back({caches[s].get(), 42, sequences[s].size(), next[s].data()});
    CHECK(forward(runner.model, runner.workspace, rows, never));
    for (std::size_t s = 0; s < 3; ++s) {
      std::vector<int> longer = sequences[s];
      longer.push_back(42);
      const std::vector<float> alone = runner.run(longer, 512);
      CHECK(std::equal(next[s].begin(), next[s].end(), alone.end() - 101));
    }
  });
}

// Rows that want no logits cost no head, and leave those that do as they are.
TEST(forward, only_the_rows_that_ask_get_logits) {
  Random random(6);
  const tiny::Model tiny(tiny::Shape(), random.bits());
  Runner runner(active_kernels(), tiny, Activations::int8);
  const std::vector<int> tokens = random_tokens(random, 40, 101);
  const std::vector<float> all = runner.run(tokens, 512);
  KvCache cache(runner.model.kv_shape(kKvF16), 40);
  std::vector<float> some(40 * 101, -1.0f);
  std::vector<BatchRow> rows;
  for (std::size_t i = 0; i < 40; ++i) rows.push_back({&cache, tokens[i], i, i % 7 == 3 ? &some[i * 101] : nullptr});
  CHECK(forward(runner.model, runner.workspace, rows, never));
  for (std::size_t i = 0; i < some.size(); ++i) CHECK_EQUAL(some[i], i / 101 % 7 == 3 ? all[i] : -1.0f);
}

TEST(forward, a_cancelled_pass_can_be_repeated) {
  Random random(7);
  const tiny::Model tiny(tiny::Shape(), random.bits());
  Runner runner(active_kernels(), tiny, Activations::int8);
  const std::vector<int> tokens = random_tokens(random, 80, 101);
  const std::vector<float> expected = runner.run(tokens, 512);
  KvCache cache(runner.model.kv_shape(kKvF16), 80);
  runner.run(cache, std::vector<int>(tokens.begin(), tokens.begin() + 50), 0, 512);
  std::vector<float> unused(101);
  std::vector<BatchRow> rows;
  for (std::size_t i = 50; i < 80; ++i) rows.push_back({&cache, 0, i, unused.data()});
  int asked = 0;
  const Poll second{[](void* n) { return ++*static_cast<int*>(n) == 2; }, &asked};
  CHECK(!forward(runner.model, runner.workspace, rows, second));
  CHECK_EQUAL(asked, 2);
  const std::vector<float> rest = runner.run(cache, tokens, 50, 512);
  CHECK(std::equal(rest.begin(), rest.end(), expected.begin() + 50 * 101));
}

// Weights that are NaN must show in the logits, not turn into some number on the way.
TEST(forward, nan_reaches_the_logits) {
  on_every_isa([](const Kernels& kernels) {
    for (const std::uint32_t role : {tiny::attn_norm, tiny::ffn_norm, tiny::final_norm, tiny::q, tiny::k, tiny::v,
                                     tiny::o, tiny::gate, tiny::up, tiny::down}) {
      tiny::Model tiny(tiny::Shape(), 8);
      for (tiny::Tensor& tensor : tiny.tensors) {
        const std::uint16_t half = 0x7e00;
        const float whole = NAN;
        if (tensor.role != role) continue;
        if (tensor.format == Format::vector) std::memcpy(tensor.bytes.data(), &whole, 4);
        if (tensor.format != Format::vector) std::memcpy(tensor.bytes.data(), &half, 2);  // the scale of a block
      }
      for (const KvFormat format : {kKvF16, kKvQ8, kKvI16}) {
        const std::vector<float> logits = Runner(kernels, tiny, Activations::int8).run({1, 2, 3}, 3, format);
        const bool any = std::any_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); });
        check::report(any, __FILE__, __LINE__,
                      std::string(kernels.isa) + ": NaN in role " + std::to_string(role) + " vanishes");
      }
    }
  });
}
