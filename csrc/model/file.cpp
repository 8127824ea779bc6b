#include "model/file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "base/angle.h"
#include "base/buffer.h"
#include "base/crc32.h"
#include "base/error.h"
#include "kernels/kernels.h"

namespace pyinfer {
namespace {

constexpr char kMagic[8] = "PYINFER";
constexpr uint64_t kMaxMetadata = 64ull << 20;
constexpr uint64_t kMaxTokenizer = 256ull << 20;
constexpr uint64_t kMaxTensors = 32 * 1024;  // 1024 layers of fewer than 32 tensors
constexpr uint64_t kWeightsAlignment = 4096;

uint64_t n_expected(const ModelSpec& s) {
  uint64_t n = 0;
#define PYINFER_ROLE(name, number, layered, vector, rows, cols, present) n += !(present) ? 0 : layered ? s.n_layers : 1;
#include "model/roles.inc"
#undef PYINFER_ROLE
  return n;
}

std::string text(uint64_t value) { return std::to_string(value); }

// The system would open what is named before the NUL.
const std::string& without_nul(const std::string& path) {
  if (path.find('\0') == std::string::npos) return path;
  throw Error(ErrorKind::request, "path: expected no NUL, found one behind " + path.substr(0, path.find('\0')));
}

}  // namespace

RoleShape shape_of(Role role, const ModelSpec& s) {
  switch (role) {
#define PYINFER_ROLE(name, number, layered, vector, rows, cols, present) \
  case Role::name:                                                       \
    return {#name, layered, vector, rows, cols, present};
#include "model/roles.inc"
#undef PYINFER_ROLE
  }
  return {nullptr, false, false, 0, 0, false};
}

std::optional<Role> find_role(std::string_view name) {
#define PYINFER_ROLE(role, number, layered, vector, rows, cols, present) \
  if (name == #role) return Role::role;
#include "model/roles.inc"
#undef PYINFER_ROLE
  return std::nullopt;
}

const char* role_name(Role role) {
  const char* name = shape_of(role, ModelSpec{}).name;
  return name != nullptr ? name : "unknown";
}

ModelFile::ModelFile(const std::string& path, HugePages huge_pages) : file_(without_nul(path), huge_pages) {
  if (file_.size() < sizeof header_) refuse("file", "at least 128 bytes", text(file_.size()));
  std::memcpy(&header_, file_.data(), sizeof header_);
  check_header();
  std::memcpy(&spec_, file_.data() + header_.spec_offset, sizeof spec_);
  tensors_.resize(header_.table_bytes / sizeof(TensorRecord));
  if (!tensors_.empty()) std::memcpy(tensors_.data(), file_.data() + header_.table_offset, header_.table_bytes);
  check_head_crc();
  check_zeros("padding before the weights", header_.tokenizer_offset + header_.tokenizer_bytes, header_.weights_offset);
  check_spec();
  check_table();
  check_frequencies();
}

std::span<const uint8_t> ModelFile::metadata() const {
  return blob(header_.metadata_offset, header_.metadata_bytes, header_.metadata_crc, "metadata");
}

std::span<const uint8_t> ModelFile::tokenizer() const {
  return blob(header_.tokenizer_offset, header_.tokenizer_bytes, header_.tokenizer_crc, "tokenizer");
}

bool ModelFile::verify(const TensorRecord& tensor) const {
  file_.check_whole();
  return crc32(0, bytes_of(tensor), tensor.bytes) == tensor.crc;
}

std::span<const uint8_t> ModelFile::blob(uint64_t offset, uint64_t bytes, uint32_t crc, const char* name) const {
  file_.check_whole();
  const std::span<const uint8_t> data{file_.data() + offset, bytes};
  const uint32_t found = crc32(0, data.data(), data.size());
  if (found != crc) refuse(name, "checksum " + text(crc), text(found));
  return data;
}

void ModelFile::refuse(const std::string& field, const std::string& expected, const std::string& found) const {
  throw Error(ErrorKind::model_file, file_.path() + ": " + field + ": expected " + expected + ", found " + found);
}

void ModelFile::expect(const std::string& field, uint64_t found, uint64_t expected) const {
  if (found != expected) refuse(field, text(expected), text(found));
}

void ModelFile::expect_within(const std::string& field, uint64_t found, uint64_t low, uint64_t high) const {
  if (found < low || found > high) refuse(field, text(low) + " to " + text(high), text(found));
}

void ModelFile::check_header() const {
  const FileHeader& h = header_;
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0)
    refuse("magic", "\"PYINFER\"", "something else: not a model.bin");
  expect("version", h.version, 1);
  expect("header_bytes", h.header_bytes, sizeof(FileHeader));
  expect("file_bytes (the file is cut or has grown)", file_.size(), h.file_bytes);
  expect("spec_offset", h.spec_offset, sizeof(FileHeader));
  expect("spec_bytes", h.spec_bytes, sizeof(ModelSpec));
  expect("table_offset", h.table_offset, sizeof(FileHeader) + sizeof(ModelSpec));
  // Each size is held against what is left of the file, so that no sum below can wrap; the table also against the largest there can
  // be, so that a huge sparse file is refused before its table is summed.
  const uint64_t left = h.file_bytes - std::min<uint64_t>(h.file_bytes, h.table_offset);
  expect_within("table_bytes", h.table_bytes, 0, std::min(left, kMaxTensors * sizeof(TensorRecord)));
  if (h.table_bytes % sizeof(TensorRecord) != 0) refuse("table_bytes", "a multiple of 64", text(h.table_bytes));
  expect("metadata_offset", h.metadata_offset, h.table_offset + h.table_bytes);
  expect_within("metadata_bytes", h.metadata_bytes, 0, std::min(kMaxMetadata, h.file_bytes - h.metadata_offset));
  expect("tokenizer_offset", h.tokenizer_offset, h.metadata_offset + h.metadata_bytes);
  expect_within("tokenizer_bytes", h.tokenizer_bytes, 0, std::min(kMaxTokenizer, h.file_bytes - h.tokenizer_offset));
  expect("weights_offset", h.weights_offset, round_up(h.tokenizer_offset + h.tokenizer_bytes, kWeightsAlignment));
  expect_within("weights_offset", h.weights_offset, 0, h.file_bytes);
  expect("weights_bytes", h.weights_bytes, h.file_bytes - h.weights_offset);
  for (const uint8_t byte : h.reserved) expect("reserved", byte, 0);
}

void ModelFile::check_head_crc() const {
  uint32_t crc = crc32(0, &header_, offsetof(FileHeader, head_crc));
  crc = crc32(crc, &spec_, sizeof spec_);
  crc = crc32(crc, tensors_.data(), header_.table_bytes);
  expect("head_crc", header_.head_crc, crc);
}

void ModelFile::check_zeros(const std::string& name, uint64_t begin, uint64_t end) const {
  for (uint64_t i = begin; i < end; ++i) expect(name, file_.data()[i], 0);
}

void ModelFile::check_spec() const {
  const ModelSpec& s = spec();
  expect_within("spec_version", s.spec_version, 1, 2);
  expect_within("n_layers", s.n_layers, 1, 1024);
  expect_within("dim", s.dim, 1, 65536);
  expect_within("n_heads", s.n_heads, 1, 1024);
  expect_within("n_kv_heads", s.n_kv_heads, 1, s.n_heads);
  if (s.n_heads % s.n_kv_heads != 0)
    refuse("n_kv_heads", "a divisor of n_heads = " + text(s.n_heads), text(s.n_kv_heads));
  expect_within("head_dim", s.head_dim, 2, 1024);
  if (s.head_dim % 2 != 0) refuse("head_dim", "an even number", text(s.head_dim));
  expect_within("n_ff", s.n_ff, 1, 1048576);
  expect_within("n_vocab", s.n_vocab, 1, 4194304);
  expect_within("context", s.context, 1, kMostPositions);
  expect_within("rope_dim", s.rope_dim, 0, s.head_dim);
  if (s.rope_dim % 2 != 0) refuse("rope_dim", "an even number", text(s.rope_dim));
  if (!(s.norm_eps >= 0.0f && s.norm_eps < 1.0f)) refuse("norm_eps", "0 to 1", std::to_string(s.norm_eps));
  for (const auto& [name, value] :
       {std::pair{"rope_magnitude", s.rope_magnitude}, std::pair{"attention_scale", s.attention_scale}}) {
    if (!(std::isfinite(value) && value > 0.0f)) refuse(name, "a positive number", std::to_string(value));
  }
  expect_within("flags", s.flags, 0, s.spec_version == 1 ? uint32_t{kTiedHead} : uint32_t{kSpecFlags});
  check_features();
  for (const uint32_t word : s.reserved) expect("spec reserved", word, 0);
}

// What files of version 1 do not have.
void ModelFile::check_features() const {
  const ModelSpec& s = spec();
  for (const auto& [name, value] :
       {std::pair{"embedding_scale", s.embedding_scale}, std::pair{"attn_softcap", s.attn_softcap},
        std::pair{"logit_softcap", s.logit_softcap}}) {
    if (!(std::isfinite(value) && value >= 0.0f)) refuse(name, "a positive number or 0", std::to_string(value));
  }
  expect_within("window", s.window, 0, kMostPositions);
  expect_within("long_context", s.long_context, 0, s.rope_dim > 0 ? kMostPositions : 0);
  if (s.has(kLocalRope) && (s.rope_dim == 0 || s.window == 0))
    refuse("flags", "local_rope only with a window and rotating dimensions", text(s.flags));
  bool any = false;
  for (uint32_t i = 0; i < ModelSpec::kMarkedLayers; ++i) {
    const bool windowed = ModelSpec::marked(s.windowed, i);
    any = any || windowed;
    if (i >= s.n_layers && (windowed || !s.rotates(i)))
      refuse("marked layers", "none from " + text(s.n_layers), text(i));
  }
  if (any != (s.window > 0))
    refuse("windowed", s.window > 0 ? "a layer with the window" : "no layer", any ? "one" : "none");
  if (s.spec_version > 1) return;
  for (const uint8_t* p = reinterpret_cast<const uint8_t*>(&s.embedding_scale);
       p < reinterpret_cast<const uint8_t*>(s.reserved); ++p)
    expect("spec reserved", *p, 0);
}

void ModelFile::check_table() const {
  const auto records = tensors();
  const uint64_t n = n_expected(spec());
  if (records.size() != n)
    refuse("table_bytes", text(n * sizeof(TensorRecord)) + " for " + text(n) + " tensors", text(header_.table_bytes));
  std::set<std::pair<Role, uint32_t>> seen;
  uint64_t end = header_.weights_offset;
  for (const TensorRecord& tensor : records) {
    check_tensor(tensor, end);
    check_zeros("gap before a tensor", end, tensor.offset);
    end = tensor.offset + tensor.bytes;
    const std::string name = std::string(role_name(tensor.role)) + " of layer " + text(tensor.layer);
    if (!seen.emplace(tensor.role, tensor.layer).second) refuse("table", "one tensor " + name, "two");
  }
  expect_within("end of the last tensor", end, file_.size() - std::min<size_t>(file_.size(), kAlignment - 1),
                file_.size());
  check_zeros("gap after the last tensor", end, file_.size());
}

void ModelFile::check_frequencies() const {
  for (const TensorRecord& tensor : tensors()) {
    if (tensor.role != Role::rope_freqs && tensor.role != Role::rope_freqs_local &&
        tensor.role != Role::rope_freqs_long)
      continue;
    const auto* frequencies = reinterpret_cast<const float*>(bytes_of(tensor));
    for (size_t i = 0; i < tensor.cols; ++i) {
      if (!(std::abs(static_cast<double>(frequencies[i])) * spec().context < kAngleLimit))
        refuse(std::string(role_name(tensor.role)) + "[" + text(i) + "]", "angles below 2^27 in the whole context",
               std::to_string(frequencies[i]) + " a position");
    }
  }
}

void ModelFile::check_tensor(const TensorRecord& tensor, uint64_t previous_end) const {
  const ModelSpec& s = spec();
  const RoleShape shape = shape_of(tensor.role, s);
  if (shape.name == nullptr) refuse("tensor role", "a known role", text(static_cast<uint32_t>(tensor.role)));
  const std::string name = std::string("tensor ") + shape.name;
  if (!shape.present) refuse(name, "none, by the specification", "one");
  if (shape.layered) {
    expect_within(name + " layer", tensor.layer, 0, s.n_layers - 1);
  } else {
    expect(name + " layer", tensor.layer, kNoLayer);
  }
  if (shape.vector) {
    expect(name + " format", static_cast<uint32_t>(tensor.format), 0);
  } else {
    expect_within(name + " format", static_cast<uint32_t>(tensor.format), 1, kFormats - 1);
  }
  expect(name + " rows", tensor.rows, shape.rows);
  expect(name + " cols", tensor.cols, shape.cols);
  // Kernels read whole groups of columns, and activations are padded to kPanelCols only.
  const uint64_t group = shape.vector ? 1 : group_cols(tensor.format);
  if (group > kPanelCols && tensor.cols % group != 0)
    refuse(name + " cols", "a multiple of " + text(group), text(tensor.cols));
  expect(name + " bytes", tensor.bytes, packed_bytes(tensor.format, tensor.rows, tensor.cols));
  expect(name + " offset", tensor.offset, round_up(previous_end, kAlignment));
  if (tensor.bytes > file_.size() - std::min<uint64_t>(file_.size(), tensor.offset)) {
    refuse(name + " offset + bytes", "at most the file's " + text(file_.size()),
           text(tensor.offset) + " + " + text(tensor.bytes));
  }
  expect(name + " reserved", tensor.reserved0 | tensor.reserved1[0] | tensor.reserved1[1] | tensor.reserved1[2], 0);
}

}  // namespace pyinfer
