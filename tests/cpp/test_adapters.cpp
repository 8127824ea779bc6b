// Stacks of adapters beside the base: against double precision, bit for bit whatever stands beside a row, swapped while steps run.
#include <atomic>
#include <map>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "engine/adapter_set.h"
#include "engine/session.h"
#include "tiny_model.h"

using namespace pyinfer;

namespace {

constexpr Poll never{[](void*) { return false; }, nullptr};
constexpr std::uint32_t n_vocab = 101;
const std::vector<tiny::Role> layer_roles = {tiny::q, tiny::k, tiny::v, tiny::o, tiny::gate, tiny::up, tiny::down};
const char* const names[] = {"q", "k", "v", "o", "gate", "up", "down"};

tiny::Shape shape_of(Format format, bool tied = false) {
  tiny::Shape shape;
  shape.formats = {format}, shape.tied = tied;
  return shape;
}

std::shared_ptr<Engine> make_engine(const tiny::Model& tiny, Activations activations, int threads = 3) {
  const tiny::TemporaryFile file(tiny.file());
  return std::make_shared<Engine>(std::make_shared<const ModelFile>(file.path()), threads, activations);
}

// Values in a float format, with what they are worth there.
struct Values {
  Format format;
  std::size_t rows, cols;
  std::vector<std::uint8_t> bytes;
  std::vector<double> worth;

  Values(Random& random, Format in, std::size_t n_rows, std::size_t n_cols, double mean, double size)
      : format(in), rows(n_rows), cols(n_cols) {
    for (std::size_t i = 0; i < rows * cols; ++i) {
      const float value = static_cast<float>(mean + random.normal() * size);
      std::uint16_t half;
      if (format == Format::f16) half = reference::nearest_half(value);
      if (format == Format::bf16) std::memcpy(&half, reinterpret_cast<const char*>(&value) + 2, 2);  // cut
      const auto* from = format == Format::f32 ? reinterpret_cast<const std::uint8_t*>(&value)
                                               : reinterpret_cast<std::uint8_t*>(&half);
      bytes.insert(bytes.end(), from, from + (format == Format::f32 ? 4 : 2));
      worth.push_back(reference::float_at(format, bytes, i));
    }
  }
  AdapterValues view() const { return {format, rows, cols, bytes.data()}; }
};

// What a stack does to one linear.
struct Part {
  std::shared_ptr<Values> a, b, scale, gain, bias;
};

// Random parts for all linears, or for one role only. Sizes keep the delta near a third of the product it is added to.
class Stack {
 public:
  Stack(const tiny::Shape& s, std::uint64_t seed, std::vector<Format> formats, std::size_t rank, bool gains = false)
      : random_(seed) {
    formats_ = std::move(formats);
    const std::size_t q = std::size_t{s.n_heads} * s.head_dim, kv = std::size_t{s.n_kv_heads} * s.head_dim;
    const std::size_t outs[] = {q, kv, kv, s.dim, s.n_ff, s.n_ff, s.dim},
                      ins[] = {s.dim, s.dim, s.dim, q, s.dim, s.dim, s.n_ff};
    for (std::uint32_t layer = 0; layer < s.n_layers; ++layer)
      for (std::size_t i = 0; i < 7; ++i) add(names[i], layer_roles[i], layer, outs[i], ins[i], rank + i % 3, gains);
    add("head", tiny::head, tiny::no_layer, s.n_vocab, s.dim, rank, gains);
    add("embedding", tiny::embedding, tiny::no_layer, s.dim, s.n_vocab, rank, gains);
  }

  std::shared_ptr<AdapterSet> set(const std::shared_ptr<Engine>& engine) const {
    return std::make_shared<AdapterSet>(engine, modules, std::vector<ReplacedTensor>());
  }

  // For tiny::Reference::adapt.
  void operator()(tiny::Role role, std::uint32_t layer, const std::vector<double>& x, std::vector<double>& out) const {
    const Part& part = parts.at({role, layer});
    const std::size_t rank = part.a->rows;
    std::vector<double> t(rank);
    for (std::size_t r = 0; r < rank; ++r) {
      const double* a = &part.a->worth[r * part.a->cols];
      if (role == tiny::embedding) t[r] = a[static_cast<std::size_t>(x[0])];
      for (std::size_t i = 0; role != tiny::embedding && i < x.size(); ++i) t[r] += a[i] * x[i];
      t[r] *= part.scale->worth[r];
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (part.gain) out[i] *= part.gain->worth[i];
      for (std::size_t r = 0; r < rank; ++r) out[i] += part.b->worth[i * rank + r] * t[r];
      if (part.bias) out[i] += part.bias->worth[i];
    }
  }

  std::vector<AdapterModule> modules;
  std::map<std::pair<tiny::Role, std::uint32_t>, Part> parts;

 private:
  void add(const char* name, tiny::Role role, std::uint32_t layer, std::size_t outs, std::size_t ins, std::size_t rank,
           bool gains) {
    const double in_size = role == tiny::embedding ? 1 : 1 / std::sqrt(static_cast<double>(ins));
    const double out_size = (role == tiny::embedding ? 0.1 : 0.3) / std::sqrt(static_cast<double>(rank));
    Part part;
    part.a = std::make_shared<Values>(random_, next(), rank, ins, 0.0, in_size);
    part.b = std::make_shared<Values>(random_, next(), outs, rank, 0.0, out_size);
    part.scale = std::make_shared<Values>(random_, Format::f32, 1, rank, 0.0, 1.0);
    if (gains) part.gain = std::make_shared<Values>(random_, Format::f32, 1, outs, 1.0, 0.2);
    if (gains) part.bias = std::make_shared<Values>(random_, Format::f32, 1, outs, 0.0, 0.1);
    parts[{role, layer}] = part;
    modules.push_back({name, layer == tiny::no_layer ? -1 : std::int64_t{layer}, part.a->view(), part.b->view(),
                       part.scale->view(), gains ? part.gain->view() : AdapterValues(),
                       gains ? part.bias->view() : AdapterValues()});
  }
  Format next() { return formats_[n_++ % formats_.size()]; }

  Random random_;
  std::vector<Format> formats_;
  std::size_t n_ = 0;
};

std::vector<std::int32_t> random_tokens(std::uint64_t seed, std::size_t n) {
  Random random(seed);
  std::vector<std::int32_t> tokens(n);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(n_vocab));
  return tokens;
}

std::vector<float> logits_in(Session& session, const std::shared_ptr<AdapterSet>& set,
                             const std::vector<std::int32_t>& tokens, std::size_t chunk = 512) {
  session.set_adapters(set);
  std::vector<float> logits(tokens.size() * n_vocab);
  session.eval(tokens, logits.data(), true, chunk, never);
  return logits;
}

std::vector<float> logits_of(const std::shared_ptr<Engine>& engine, const std::shared_ptr<AdapterSet>& set,
                             const std::vector<std::int32_t>& tokens, std::size_t chunk = 512) {
  Session session(engine, tokens.size());
  return logits_in(session, set, tokens, chunk);
}

// The root of the mean squared difference over that of the expected values.
double error_of(const std::vector<float>& found, const std::vector<double>& expected) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < found.size(); ++i)
    error += std::pow(found[i] - expected[i], 2), size += expected[i] * expected[i];
  return std::sqrt(error / size);
}

std::vector<double> reference_logits(const tiny::Model& tiny, bool int8, const Stack& stack,
                                     const std::vector<std::int32_t>& tokens) {
  tiny::Reference reference(tiny, int8);
  reference.adapt = stack;
  std::vector<double> logits;
  for (const std::int32_t token : tokens)
    for (const double logit : reference.step(token)) logits.push_back(logit);
  return logits;
}

}  // namespace

// Float rounding is a few u; what tips a key, value or activation to its neighbour shows more, but in few of short sequences.
TEST(adapters, match_double_precision) {
  const std::vector<Format> mixed = {Format::f16, Format::f32, Format::bf16, Format::bf16, Format::f32};
  for (const Activations activations : {Activations::f32, Activations::int8}) {
    for (const bool gains : {false, true}) {
      for (const std::size_t rank : {1, 6, 19}) {
        const tiny::Model tiny(shape_of(Format::q8, rank == 6), rank);
        const auto engine = make_engine(tiny, activations);
        const Stack stack(tiny.shape, rank, rank == 1 ? std::vector<Format>{Format::f16} : mixed, rank, gains);
        std::vector<double> errors;
        for (std::uint64_t seed = 0; seed < 9; ++seed) {
          const auto tokens = random_tokens(seed, 3);
          const auto expected = reference_logits(tiny, activations == Activations::int8, stack, tokens);
          Session session(engine, tokens.size(), kKvF16);  // as the reference has it
          errors.push_back(error_of(logits_in(session, stack.set(engine), tokens), expected));
        }
        std::sort(errors.begin(), errors.end());
        CHECK_NEAR(errors[4], 0, 2e-5);
        CHECK_NEAR(errors.back(), 0, activations == Activations::int8 ? 0.1 : 5e-4);
      }
    }
  }
}

TEST(adapters, change_what_they_should) {
  const tiny::Model tiny(shape_of(Format::q4), 1);
  const auto engine = make_engine(tiny, Activations::int8);
  const Stack stack(tiny.shape, 2, {Format::f16}, 4, true);
  const auto tokens = random_tokens(1, 5);
  const std::vector<float> base = logits_of(engine, nullptr, tokens);
  CHECK(logits_of(engine,
                  std::make_shared<AdapterSet>(engine, std::vector<AdapterModule>(), std::vector<ReplacedTensor>()),
                  tokens) == base);
  for (const AdapterModule& module : stack.modules) {
    const std::vector<AdapterModule> one = {module};
    const auto set = std::make_shared<AdapterSet>(engine, one, std::vector<ReplacedTensor>());
    CHECK(logits_of(engine, set, tokens) != base);
  }
}

TEST(adapters, bits_do_not_depend_on_threads_or_chunks) {
  for (const bool gains : {false, true}) {
    tiny::Shape shape = shape_of(Format::q4);
    shape.n_ff = 1080;  // three chunks of columns, the last of them a short product
    const tiny::Model tiny(shape, 3);
    const Stack stack(tiny.shape, 4, {Format::f16, Format::f32}, 18, gains);
    const auto tokens = random_tokens(2, 150);
    std::vector<float> expected;
    for (const int threads : {1, 2, 3, 7}) {
      const auto engine = make_engine(tiny, Activations::int8, threads);
      const auto set = stack.set(engine);
      for (const std::size_t chunk : {1, 7, 13, 64, 512}) {
        const std::vector<float> found = logits_of(engine, set, tokens, chunk);
        if (expected.empty()) expected = found;
        CHECK(found == expected);
      }
    }
  }
}

TEST(adapters, a_batch_of_many_sets_gives_each_session_what_it_gets_alone) {
  const tiny::Model tiny(shape_of(Format::q4), 5);
  const auto engine = make_engine(tiny, Activations::int8);
  std::vector<std::shared_ptr<AdapterSet>> sets = {nullptr};
  for (std::uint64_t i = 0; i < 4; ++i) {
    const Stack stack(tiny.shape, i, {i % 2 ? Format::f16 : Format::f32}, 3 + 9 * i, i >= 2);
    sets.push_back(stack.set(engine));
  }
  const std::vector<float> norm(tiny.shape.dim, 0.5f);
  const std::vector<ReplacedTensor> replaced = {
      {"final_norm",
       -1,
       Format::f32,
       {Format::f32, 1, tiny.shape.dim, reinterpret_cast<const std::uint8_t*>(norm.data())}}};
  sets.push_back(std::make_shared<AdapterSet>(engine, std::vector<AdapterModule>(), replaced));
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<std::vector<float>> logits;
  for (std::size_t i = 0; i < 9; ++i) {
    sessions.push_back(std::make_unique<Session>(engine, 100));
    sessions.back()->set_adapters(sets[i * 5 % sets.size()]);
    tokens.push_back(random_tokens(i, 1 + i * i % 30));
    logits.emplace_back(tokens.back().size() * n_vocab);
  }
  std::vector<BatchItem> items;
  for (std::size_t i = 0; i < 9; ++i) items.push_back({sessions[i].get(), tokens[i], logits[i].data(), true});
  engine->step(items, never);
  for (std::size_t i = 0; i < 9; ++i) CHECK(logits[i] == logits_of(engine, sets[i * 5 % sets.size()], tokens[i]));
  // A token more of each, by single rows.
  const std::vector<std::int32_t> next = {42};
  for (std::size_t i = 0; i < 9; ++i) items[i].tokens = next;
  engine->step(items, never);
  for (std::size_t i = 0; i < 9; ++i) {
    tokens[i].push_back(42);
    const std::vector<float> alone = logits_of(engine, sets[i * 5 % sets.size()], tokens[i]);
    CHECK(std::equal(alone.end() - n_vocab, alone.end(), logits[i].begin()));
  }
}

// A tensor that was replaced is as if the file had held it.
TEST(adapters, replaced_tensors_stand_in_for_the_base) {
  const tiny::Shape shape = shape_of(Format::q8);
  const tiny::Model tiny(shape, 6);
  const auto tokens = random_tokens(3, 40);
  for (const Format format : {Format::f32, Format::f16, Format::q4}) {
    for (const auto& [name, role, layer] : {std::tuple{"embedding", tiny::embedding, tiny::no_layer},
                                            {"head", tiny::head, tiny::no_layer},
                                            {"gate", tiny::gate, 1u},
                                            {"attn_norm", tiny::attn_norm, 0u}}) {
      tiny::Model other(shape, 6);
      const auto tensor =
          std::find_if(other.tensors.begin(), other.tensors.end(),
                       [&, r = role, l = layer](const tiny::Tensor& t) { return t.role == r && t.layer == l; });
      Random random(7);
      const Values values(random, Format::f32, tensor->rows, tensor->cols, tensor->format == Format::vector ? 1 : 0,
                          0.2);
      if (tensor->format == Format::vector) {
        tensor->bytes = values.bytes;
      } else {
        tensor->format = format;
        tensor->bytes.resize(packed_bytes(format, tensor->rows, tensor->cols));
        pack(format, reinterpret_cast<const float*>(values.bytes.data()), tensor->rows, tensor->cols,
             tensor->bytes.data());
      }
      const auto engine = make_engine(tiny, Activations::int8);
      const std::vector<ReplacedTensor> replaced = {
          {name, layer == tiny::no_layer ? -1 : std::int64_t{layer}, format, values.view()}};
      const auto set = std::make_shared<AdapterSet>(engine, std::vector<AdapterModule>(), replaced);
      CHECK(logits_of(engine, set, tokens) == logits_of(make_engine(other, Activations::int8), nullptr, tokens));
    }
  }
}

TEST(adapters, what_does_not_fit_is_refused_by_name) {
  const tiny::Model tiny(shape_of(Format::q4), 8);
  const auto engine = make_engine(tiny, Activations::int8), other = make_engine(tiny, Activations::int8);
  Random random(9);
  const Values a(random, Format::f32, 4, 48, 0, 1), b(random, Format::f32, 48, 4, 0, 1),
      wide(random, Format::f32, 48, 5, 0, 1);
  const Values scale(random, Format::f32, 1, 3, 0, 1), norm(random, Format::f32, 1, 47, 0, 1);
  Values infinite(random, Format::f32, 4, 48, 0, 1), half(random, Format::f16, 4, 48, 0, 1);
  const float infinity = INFINITY;
  std::memcpy(&infinite.bytes[4 * 49], &infinity, 4);
  half.bytes[2 * 96 + 1] = 0x7e;  // NaN
  const AdapterValues none;
  const auto with = [&](const std::vector<AdapterModule>& modules) {
    AdapterSet(engine, modules, std::vector<ReplacedTensor>());
  };
  const auto replacing = [&](const ReplacedTensor& tensor) {
    AdapterSet(engine, std::vector<AdapterModule>(), {&tensor, 1});
  };
  CHECK_ERROR(with({{"query", 0, a.view(), b.view(), none, none, none}}), request, "found query");
  CHECK_ERROR(with({{"final_norm", -1, none, none, none, none, norm.view()}}), request, "found final_norm");
  CHECK_ERROR(with({{"q", 2, a.view(), b.view(), none, none, none}}), request, "q: expected layer 0 to 1, found 2");
  CHECK_ERROR(with({{"q", -1, a.view(), b.view(), none, none, none}}), request, "q: expected layer 0 to 1, found -1");
  CHECK_ERROR(with({{"head", 0, a.view(), b.view(), none, none, none}}), request, "head: expected layer -1, found 0");
  CHECK_ERROR(with({{"q", 0, a.view(), none, none, none, none}}), request, "q of layer 0: expected both a and b");
  CHECK_ERROR(with({{"q", 0, none, b.view(), none, none, none}}), request, "q of layer 0: expected both a and b");
  CHECK_ERROR(with({{"q", 1, a.view(), wide.view(), none, none, none}}), request,
              "q of layer 1, b: expected shape (48, 4), found (48, 5)");
  CHECK_ERROR(with({{"down", 1, a.view(), b.view(), none, none, none}}), request,
              "down of layer 1, a: expected shape (4, 80), found (4, 48)");
  CHECK_ERROR(with({{"q", 0, a.view(), b.view(), scale.view(), none, none}}), request,
              "scale: expected shape (1, 4), found (1, 3)");
  CHECK_ERROR(with({{"q", 0, none, none, none, norm.view(), none}}), request,
              "q of layer 0, gain: expected shape (1, 48)");
  CHECK_ERROR(with({{"q", 0, infinite.view(), b.view(), none, none, none}}), request,
              "a: expected finite values, found inf at row 1, column 1");
  CHECK_ERROR(with({{"q", 0, half.view(), b.view(), none, none, none}}), request, "at row 2, column 0");
  CHECK_ERROR(with({{"q", 0, a.view(), b.view(), none, none, none}, {"q", 0, a.view(), b.view(), none, none, none}}),
              request, "q of layer 0: expected one module, found two");
  CHECK_ERROR(replacing({"final_norm", -1, Format::f32, norm.view()}), request,
              "final_norm: expected shape (1, 48), found (1, 47)");
  CHECK_ERROR(replacing({"rope_freqs", -1, Format::f32, norm.view()}), request, "rope_freqs");
  CHECK_ERROR(replacing({"q_bias", 0, Format::f32, norm.view()}), request,
              "q_bias of layer 0: expected a tensor of the model, found one that it has not");
  Session session(engine, 10);
  const Stack stack(tiny.shape, 2, {Format::f16}, 4);
  CHECK_ERROR(session.set_adapters(stack.set(other)), request, "expected a set of the session's engine");
  session.set_adapters(stack.set(engine));
  CHECK(session.adapters() != nullptr);
}

// Another thread swaps while steps run: every call's logits are those of one of the sets, never of a mixture, and no set is left over.
TEST(adapters, swapped_under_load) {
  const tiny::Model tiny(shape_of(Format::q4), 10);
  const auto engine = make_engine(tiny, Activations::int8, 2);
  const auto tokens = random_tokens(4, 8);
  std::vector<std::shared_ptr<AdapterSet>> sets = {nullptr};
  std::vector<std::weak_ptr<AdapterSet>> watched;
  std::vector<std::vector<float>> expected;
  for (std::uint64_t i = 0; i < 3; ++i)
    sets.push_back(Stack(tiny.shape, i, {Format::f16}, 2 + 7 * i, i == 2).set(engine));
  for (const auto& set : sets) watched.push_back(set), expected.push_back(logits_of(engine, set, tokens));
  Session session(engine, 8);
  std::atomic<bool> done{false};
  std::thread swapping([&] {
    for (std::size_t i = 0; i < 10000; ++i) session.set_adapters(sets[i % sets.size()]);
    done = true;
  });
  std::vector<float> found(expected[0].size());
  for (int i = 0; i < 20 || !done; ++i) {
    session.truncate(0);
    session.eval(tokens, found.data(), true, 3, never);
    CHECK(std::find(expected.begin(), expected.end(), found) != expected.end());
  }
  swapping.join();
  session.set_adapters(nullptr);
  sets.clear();
  for (const auto& set : watched) CHECK(set.expired());
}
