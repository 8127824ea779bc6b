// A stack of adapters, packed for one engine: immutable, shared by any number of sessions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/anonymous_memory.h"
#include "base/layout.h"
#include "engine/engine.h"
#include "model/model.h"
#include "nn/adapter.h"

namespace pyinfer {

// Somebody else's values, row-major; no data where there are none. A run of floats is one row.
struct AdapterValues {
  Format format = Format::f32;  // a float format
  size_t rows = 0;
  size_t cols = 0;
  const uint8_t* data = nullptr;
};

// What a stack does to one linear, see nn/adapter.h: a (rank, inputs), b (outputs, rank), scale (rank), gain and bias (outputs).
struct AdapterModule {
  std::string role;
  int64_t layer;  // -1 outside the layers
  AdapterValues a, b, scale, gain, bias;
};

// A tensor that stands in for the base's, to be packed in `format` unless it is a vector.
struct ReplacedTensor {
  std::string role;
  int64_t layer;
  Format format;
  AdapterValues values;
};

// "q of layer 3", "head": how errors name a place.
std::string place_name(const std::string& role, int64_t layer);

class AdapterSet {
 public:
  // Copies what it is given. Throws request errors that name role, layer, expected and found; a memory error if there is no room.
  AdapterSet(std::shared_ptr<Engine> engine, std::span<const AdapterModule> modules,
             std::span<const ReplacedTensor> replaced);

  const Engine& engine() const { return *engine_; }
  // What rows run with, or nullptr where the set changes no linear.
  const Adapters* adapters() const { return touches_linears_ ? &adapters_ : nullptr; }
  // The engine's model, or its likeness with the replaced tensors.
  const Model& model() const { return replaced_ ? *replaced_ : engine_->model(); }
  size_t bytes() const { return memory_.size(); }

 private:
  struct Part;         // a module with its place
  struct Replacement;  // a replaced tensor with its place

  static std::vector<Part> parts_of(std::span<const AdapterModule> modules, const ModelSpec& spec);
  static std::vector<Replacement> replacements_of(std::span<const ReplacedTensor> replaced, const ModelSpec& spec);
  size_t most_ranks() const;
  void lay_out(std::span<const Part> parts, std::span<const Replacement> replacements, Layout& layout);
  void lay_out_input(std::span<const Part> parts, AdaptedInput& input, Layout& layout);
  void fill(const Part& part);
  void replace(const Replacement& one);

  std::shared_ptr<Engine> engine_;
  std::vector<AdaptedInput> inputs_;  // by number
  Adapters adapters_{};
  bool touches_linears_;
  std::optional<Model> replaced_;
  AnonymousMemory memory_;
};

}  // namespace pyinfer
