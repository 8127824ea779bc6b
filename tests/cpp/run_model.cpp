// Runs a model.bin on one thread: `run_model MODEL ACTIVATIONS KV LOGITS GREEDY TOKEN…` evaluates the tokens, continues with GREEDY most likely
// ones, and prints the instruction set and, on a line of its own, the ids of those. The file LOGITS, unless its name is empty,
// becomes the logits behind each given token, (tokens, n_vocab) float32 as this machine stores them.
// For machines without Python, emulated ones above all: tools/test_emulated.py and bench/count_instructions.py read what it tells.
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/session.h"

using namespace pyinfer;

namespace {

constexpr Poll never{[](void*) { return false; }, nullptr};

std::int32_t whole_number(std::string_view text) {
  std::int32_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    throw Error(ErrorKind::request, "argument: expected a whole number from 0 on, found " + std::string(text));
  return value;
}

void write(const char* path, const std::vector<float>& logits) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
  if (!file.flush()) throw Error(ErrorKind::request, std::string(path) + ": expected to write logits, could not");
}

std::int32_t most_likely(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Activations activations_named(std::string_view name) {
  if (name == "int8") return Activations::int8;
  if (name == "f32") return Activations::f32;
  throw Error(ErrorKind::request, "activations: expected int8 or f32, found " + std::string(name));
}

KvFormat kv_named(std::string_view name) {
  if (name == "f16") return kKvF16;
  if (name == "i16") return kKvI16;
  throw Error(ErrorKind::request, "kv: expected f16 or i16, found " + std::string(name));
}

void run(const char* path, Activations activations, KvFormat kv, const char* logits_path, int n_greedy,
         const std::vector<std::int32_t>& tokens) {
  const auto engine = std::make_shared<Engine>(std::make_shared<ModelFile>(path), 1, activations);
  const std::size_t n_vocab = engine->spec().n_vocab;
  Session session(engine, tokens.size() + static_cast<std::size_t>(n_greedy), kv);
  const bool all = *logits_path != '\0';
  std::vector<float> logits((all ? tokens.size() : 1) * n_vocab);  // (tokens or 1, n_vocab)
  session.eval(tokens, logits.data(), all, Engine::kMaxRows, never);
  if (all) write(logits_path, logits);
  std::printf("%s\n", engine->isa());
  const std::span<float> last(logits.end() - static_cast<std::ptrdiff_t>(n_vocab), logits.end());
  for (int i = 0; i < n_greedy; ++i) {
    const std::int32_t token = most_likely(last);
    std::printf("%d ", token);
    session.eval({&token, 1}, last.data(), false, 1, never);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: run_model MODEL int8|f32 f16|i16 LOGITS GREEDY TOKEN…\n");
    return 2;
  }
  try {
    std::vector<std::int32_t> tokens;
    for (int i = 6; i < argc; ++i) tokens.push_back(whole_number(argv[i]));
    run(argv[1], activations_named(argv[2]), kv_named(argv[3]), argv[4], whole_number(argv[5]), tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
