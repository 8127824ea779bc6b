#include "engine/adapter_set.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "base/buffer.h"
#include "base/error.h"
#include "base/half.h"

namespace pyinfer {
namespace {

std::string text(uint64_t value) { return std::to_string(value); }
std::string shape_text(size_t rows, size_t cols) { return "(" + text(rows) + ", " + text(cols) + ")"; }

[[noreturn]] void refuse(const std::string& where, const std::string& expected, const std::string& found) {
  throw Error(ErrorKind::request, where + ": expected " + expected + ", found " + found);
}

// The role and layer that a module or tensor names. Throws unless the model has them.
std::pair<Role, uint32_t> find_place(const ModelSpec& spec, const std::string& role, int64_t layer) {
  const auto found = find_role(role);
  if (!found) refuse("role of an adapter", "a tensor of the model", role);
  const bool layered = shape_of(*found, spec).layered;
  if (!layered && layer != -1) refuse(role, "layer -1", std::to_string(layer));
  if (layered && (layer < 0 || layer >= int64_t{spec.n_layers})) {
    refuse(role, "layer 0 to " + text(spec.n_layers - 1), std::to_string(layer));
  }
  return {*found, layered ? static_cast<uint32_t>(layer) : kNoLayer};
}

// Which input of the step a role's adapters belong to, and which of its targets the role is.
std::pair<size_t, size_t> input_of(Role role, uint32_t layer, const ModelSpec& spec) {
  const size_t first = size_t{layer} * Adapters::kInputsPerLayer;
  switch (role) {
    case Role::q:
      return {first + Adapters::qkv, 0};
    case Role::k:
      return {first + Adapters::qkv, 1};
    case Role::v:
      return {first + Adapters::qkv, 2};
    case Role::o:
      return {first + Adapters::o, 0};
    case Role::gate:
      return {first + Adapters::gate_up, 0};
    case Role::up:
      return {first + Adapters::gate_up, 1};
    case Role::down:
      return {first + Adapters::down, 0};
    case Role::head:
      return {Adapters::head_input(spec.n_layers), 0};
    case Role::embedding:
      return {Adapters::embedding_input(spec.n_layers), 0};
    default:
      refuse("role of an adapter", "a linear, the head or the embedding", role_name(role));
  }
}

float value_at(const AdapterValues& values, size_t index) {
  float f;
  uint16_t half;
  if (values.format == Format::f32) {
    std::memcpy(&f, values.data + index * sizeof f, sizeof f);
    return f;
  }
  std::memcpy(&half, values.data + index * sizeof half, sizeof half);
  return values.format == Format::f16 ? half_to_float(half) : bf16_to_float(half);
}

// Whether the exponents of n values are below the one of infinities and NaN.
template <class Bits>
bool all_finite(const uint8_t* data, size_t n, Bits exponent) {
  constexpr size_t kAtOnce = 32;  // a loop of known length becomes vectors
  Bits found[kAtOnce] = {};
  const auto look = [&](size_t i, size_t lane) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
    found[lane] |= static_cast<Bits>(-((bits & exponent) == exponent));
  };
  size_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce) {
    for (size_t lane = 0; lane < kAtOnce; ++lane) look(i + lane, lane);
  }
  for (; i < n; ++i) look(i, 0);
  return std::all_of(std::begin(found), std::end(found), [](Bits any) { return any == 0; });
}

bool all_finite(const AdapterValues& values) {
  const size_t n = values.rows * values.cols;
  if (values.format == Format::f32) return all_finite<uint32_t>(values.data, n, 0x7f800000);
  return all_finite<uint16_t>(values.data, n, values.format == Format::f16 ? 0x7c00 : 0x7f80);
}

void check_finite(const std::string& where, const AdapterValues& values) {
  if (all_finite(values)) return;
  for (size_t i = 0; i < values.rows * values.cols; ++i) {
    const float value = value_at(values, i);
    if (std::isfinite(value)) continue;
    refuse(where, "finite values",
           std::to_string(value) + " at row " + text(i / values.cols) + ", column " + text(i % values.cols));
  }
}

void check_values(const std::string& where, const AdapterValues& values, size_t rows, size_t cols) {
  if (values.data == nullptr) return;
  if (values.rows != rows || values.cols != cols)
    refuse(where, "shape " + shape_text(rows, cols), shape_text(values.rows, values.cols));
  check_finite(where, values);
}

// Values in their own type, or as floats, to rows [first, …) of the tiles of a packed float matrix of that type.
template <class T>
void put_rows(const uint8_t* from, size_t rows, size_t cols, bool transposed, size_t first, const Matrix& to) {
  auto* tiles = reinterpret_cast<T*>(const_cast<uint8_t*>(to.tiles));
  const size_t row_step = transposed ? 1 : cols, col_step = transposed ? rows : 1;
  for (size_t row = 0; row < rows; ++row) {
    T* tile = tiles + (first + row) / kTile * to.n_groups * kTile * kFloatGroupCols + (first + row) % kTile;
    for (size_t col = 0; col < cols; ++col)
      std::memcpy(tile + col * kTile, from + (row * row_step + col * col_step) * sizeof(T), sizeof(T));
  }
}

// `values`, or its transpose, to rows [first, …) of a packed matrix of the same format or of f32.
void put_matrix(const AdapterValues& values, bool transposed, size_t first, const Matrix& to) {
  const size_t rows = transposed ? values.cols : values.rows, cols = transposed ? values.rows : values.cols;
  if (to.format == Format::f32) {
    std::vector<float> floats(rows * cols);
    for (size_t i = 0; i < floats.size(); ++i) floats[i] = value_at(values, i);
    put_rows<float>(reinterpret_cast<const uint8_t*>(floats.data()), rows, cols, transposed, first, to);
  } else {
    put_rows<uint16_t>(values.data, rows, cols, transposed, first, to);
  }
}

void put_floats(const AdapterValues& values, float absent, size_t n, const float* to) {
  auto* out = const_cast<float*>(to);
  for (size_t i = 0; i < n; ++i) out[i] = values.data == nullptr ? absent : value_at(values, i);
}

Matrix take_matrix(Layout& layout, Format format, size_t rows, size_t cols) {
  return Matrix::view(format, rows, cols, layout.take<uint8_t>(packed_bytes(format, rows, cols)));
}

}  // namespace

std::string place_name(const std::string& role, int64_t layer) {
  return layer < 0 ? role : role + " of layer " + std::to_string(layer);
}

struct AdapterSet::Part {
  const AdapterModule& module;
  size_t input;
  size_t target;
  size_t rows;  // outputs
  size_t cols;  // inputs
  std::string name;

  bool is_embedding(const ModelSpec& spec) const { return input == Adapters::embedding_input(spec.n_layers); }
  size_t rank() const { return module.a.rows; }

  static Part find(const AdapterModule& module, const ModelSpec& spec) {
    const auto [role, layer] = find_place(spec, module.role, module.layer);
    const auto [input, target] = input_of(role, layer, spec);
    const RoleShape shape = shape_of(role, spec);
    const bool turned = role == Role::embedding;  // its input is the token
    Part part{module,
              input,
              target,
              turned ? shape.cols : shape.rows,
              turned ? shape.rows : shape.cols,
              place_name(module.role, module.layer)};
    part.check();
    return part;
  }

  void check() const {
    const AdapterModule& m = module;
    if ((m.a.data == nullptr) != (m.b.data == nullptr))
      refuse(name, "both a and b or neither", m.a.data == nullptr ? "b alone" : "a alone");
    if (m.a.data == nullptr && m.scale.data != nullptr) refuse(name, "scale only with a and b", "it alone");
    if (m.a.data != nullptr && rank() == 0) refuse(name + ", a", "a rank of at least 1", "0");
    check_values(name + ", a", m.a, rank(), cols);
    check_values(name + ", b", m.b, rows, rank());
    check_values(name + ", scale", m.scale, 1, rank());
    check_values(name + ", gain", m.gain, 1, rows);
    check_values(name + ", bias", m.bias, 1, rows);
  }
};

struct AdapterSet::Replacement {
  const ReplacedTensor& tensor;
  Role role;
  uint32_t layer;
  RoleShape shape;
  mutable uint8_t* bytes = nullptr;

  static Replacement find(const ReplacedTensor& tensor, const ModelSpec& spec) {
    const std::string name = place_name(tensor.role, tensor.layer);
    const auto [role, layer] = find_place(spec, tensor.role, tensor.layer);
    if (role == Role::rope_freqs || role == Role::rope_freqs_local || role == Role::rope_freqs_long)
      refuse(name, "a tensor that adapters may replace", "the rotary frequencies");
    const RoleShape shape = shape_of(role, spec);
    // A head of its own beside a tied one is what a replaced head is.
    if (!shape.present && role != Role::head) refuse(name, "a tensor of the model", "one that it has not");
    if (tensor.values.data == nullptr) refuse(name, "values", "none");
    check_values(name, tensor.values, shape.rows, shape.cols);
    return {tensor, role, layer, shape};
  }
  Format format() const { return shape.vector ? Format::vector : tensor.format; }
};

std::vector<AdapterSet::Part> AdapterSet::parts_of(std::span<const AdapterModule> modules, const ModelSpec& spec) {
  std::vector<Part> parts;
  std::set<std::pair<size_t, size_t>> places;
  for (const AdapterModule& module : modules) {
    parts.push_back(Part::find(module, spec));
    if (!places.insert({parts.back().input, parts.back().target}).second)
      refuse(parts.back().name, "one module", "two");
  }
  return parts;
}

std::vector<AdapterSet::Replacement> AdapterSet::replacements_of(std::span<const ReplacedTensor> replaced,
                                                                 const ModelSpec& spec) {
  std::vector<Replacement> replacements;
  std::set<std::pair<Role, uint32_t>> places;
  for (const ReplacedTensor& tensor : replaced) {
    replacements.push_back(Replacement::find(tensor, spec));
    if (!places.insert({replacements.back().role, replacements.back().layer}).second)
      refuse(place_name(tensor.role, tensor.layer), "one replaced tensor", "two");
  }
  return replacements;
}

AdapterSet::AdapterSet(std::shared_ptr<Engine> engine, std::span<const AdapterModule> modules,
                       std::span<const ReplacedTensor> replaced)
    : engine_(std::move(engine)), touches_linears_(!modules.empty()) {
  const ModelSpec& spec = engine_->spec();
  const std::vector<Part> parts = parts_of(modules, spec);
  const std::vector<Replacement> replacements = replacements_of(replaced, spec);
  inputs_.resize(Adapters::embedding_input(spec.n_layers) + 1);
  adapters_.inputs = inputs_.data();
  Layout measure(nullptr);
  lay_out(parts, replacements, measure);
  memory_ = AnonymousMemory(measure.used());
  Layout layout(memory_.data());
  lay_out(parts, replacements, layout);
  for (const Part& part : parts) fill(part);
  for (const Replacement& one : replacements) replace(one);
  engine_->make_room(model(), most_ranks());
}

// Of all adapters that share an input, in whole tiles.
size_t AdapterSet::most_ranks() const {
  size_t most = 0;
  for (const AdaptedInput& input : inputs_) {
    const bool embedding = &input == &inputs_.back();  // whose A is transposed: its ranks are columns
    most = std::max(most, round_up(embedding ? input.a.cols : input.a.rows, kTile));
  }
  return most;
}

void AdapterSet::lay_out(std::span<const Part> parts, std::span<const Replacement> replacements, Layout& layout) {
  for (size_t number = 0; number < inputs_.size(); ++number) {
    std::vector<Part> sharing;
    for (const Part& part : parts) {
      if (part.input == number) sharing.push_back(part);
    }
    inputs_[number] = {};
    if (!sharing.empty()) lay_out_input(sharing, inputs_[number], layout);
  }
  for (const Replacement& one : replacements)
    one.bytes = layout.take<uint8_t>(packed_bytes(one.format(), one.shape.rows, one.shape.cols));
}

// Room for the parts of one input. Their A's stand in one matrix, each from a multiple of 4 rows on, so that its t is whole column groups
// of B; in their own type if that is one and the same, else in f32, which holds all of them exactly.
void AdapterSet::lay_out_input(std::span<const Part> parts, AdaptedInput& input, Layout& layout) {
  size_t ranks = 0;
  Format format = Format::vector;
  for (const Part& part : parts) {
    const AdapterModule& m = part.module;
    LowRank& low = input.targets[part.target];
    low.first = ranks;
    if (m.gain.data != nullptr) low.gain = layout.take<float>(round_up(part.rows, kTile));
    if (m.bias.data != nullptr) low.bias = layout.take<float>(round_up(part.rows, kTile));
    if (m.a.data == nullptr) continue;
    ranks += round_up(part.rank(), kFloatGroupCols);
    format = format == Format::vector || format == m.a.format ? m.a.format : Format::f32;
  }
  if (ranks > 0) {
    const bool embedding = parts[0].is_embedding(engine_->spec());
    input.scale = layout.take<float>(round_up(ranks, kTile));
    input.a = embedding ? take_matrix(layout, format, parts[0].cols, ranks)
                        : take_matrix(layout, format, ranks, parts[0].cols);
  }
  for (const Part& part : parts) {
    const AdapterModule& m = part.module;
    LowRank& low = input.targets[part.target];
    low.b.rows = part.rows;
    if (m.b.data != nullptr) low.b = take_matrix(layout, m.b.format, part.rows, part.rank());
  }
}

void AdapterSet::fill(const Part& part) {
  const AdapterModule& m = part.module;
  const AdaptedInput& input = inputs_[part.input];
  const LowRank& low = input.targets[part.target];
  if (low.gain != nullptr) put_floats(m.gain, 1.0f, part.rows, low.gain);
  if (low.bias != nullptr) put_floats(m.bias, 0.0f, part.rows, low.bias);
  if (m.a.data == nullptr) return;
  put_matrix(m.a, part.is_embedding(engine_->spec()), low.first, input.a);
  put_matrix(m.b, false, 0, low.b);
  put_floats(m.scale, 1.0f, part.rank(), input.scale + low.first);
}

void AdapterSet::replace(const Replacement& one) {
  if (!replaced_) replaced_ = engine_->model();
  const AdapterValues& values = one.tensor.values;
  const size_t rows = one.shape.rows, cols = one.shape.cols;
  std::vector<float> floats(rows * cols);
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = value_at(values, i);
  if (one.shape.vector) {
    std::memcpy(one.bytes, floats.data(), floats.size() * sizeof(float));
    replaced_->place(one.role, one.layer, Matrix{}, reinterpret_cast<const float*>(one.bytes));
  } else {
    pack(one.format(), floats.data(), rows, cols, one.bytes);
    replaced_->place(one.role, one.layer, Matrix::view(one.format(), rows, cols, one.bytes), nullptr);
  }
}

}  // namespace pyinfer
