// model.bin: its layout, and a reader that checks every field before it touches a weight. See docs/model-file.md.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "formats/format.h"
#include "model/spec.h"

namespace pyinfer {

struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint64_t file_bytes;
  uint64_t spec_offset, spec_bytes;
  uint64_t table_offset, table_bytes;
  uint64_t metadata_offset, metadata_bytes;
  uint64_t tokenizer_offset, tokenizer_bytes;
  uint64_t weights_offset, weights_bytes;
  uint32_t metadata_crc;
  uint32_t tokenizer_crc;
  uint8_t reserved[12];
  uint32_t head_crc;
};
static_assert(sizeof(FileHeader) == 128);

enum class Role : uint32_t {
#define PYINFER_ROLE(name, number, layered, vector, rows, cols, present) name = number,
#include "model/roles.inc"
#undef PYINFER_ROLE
};
const char* role_name(Role role);

// What the specification asks of the tensors of a role.
struct RoleShape {
  const char* name;  // nullptr for a number that is no role
  bool layered;
  bool vector;
  uint64_t rows;
  uint64_t cols;
  bool present;  // whether the model has such a tensor
};
RoleShape shape_of(Role role, const ModelSpec& spec);
std::optional<Role> find_role(std::string_view name);

inline constexpr uint32_t kNoLayer = 0xFFFFFFFFu;

struct TensorRecord {
  Role role;
  uint32_t layer;  // kNoLayer outside the layers
  Format format;
  uint32_t reserved0;
  uint64_t rows;
  uint64_t cols;
  uint64_t offset;
  uint64_t bytes;
  uint32_t crc;
  uint32_t reserved1[3];
};
static_assert(sizeof(TensorRecord) == 64);

class ModelFile {
 public:
  // Opens, maps and checks. Header, specification and table are copied first: what was checked holds, whatever becomes of the file. Throws
  // model_file errors that name the field, what was expected and what was found.
  explicit ModelFile(const std::string& path, HugePages huge_pages = HugePages::automatic);

  const ModelSpec& spec() const { return spec_; }
  std::span<const TensorRecord> tensors() const { return tensors_; }
  const uint8_t* bytes_of(const TensorRecord& tensor) const { return file_.data() + tensor.offset; }
  size_t file_bytes() const { return file_.size(); }
  size_t weights_bytes() const { return header_.weights_bytes; }
  const std::string& path() const { return file_.path(); }
  const MappedFile& mapping() const { return file_; }

  // The blobs that only Python reads, their checksums verified.
  std::span<const uint8_t> metadata() const;
  std::span<const uint8_t> tokenizer() const;
  // Whether the bytes of a tensor match its checksum.
  bool verify(const TensorRecord& tensor) const;

 private:
  void check_header() const;
  void check_head_crc() const;
  void check_zeros(const std::string& name, uint64_t begin, uint64_t end) const;
  void check_spec() const;
  void check_features() const;
  void check_table() const;
  void check_frequencies() const;  // angles have cosines
  void check_tensor(const TensorRecord& tensor, uint64_t previous_end) const;
  std::span<const uint8_t> blob(uint64_t offset, uint64_t bytes, uint32_t crc, const char* name) const;
  [[noreturn]] void refuse(const std::string& field, const std::string& expected, const std::string& found) const;
  void expect(const std::string& field, uint64_t found, uint64_t expected) const;
  void expect_within(const std::string& field, uint64_t found, uint64_t low, uint64_t high) const;

  MappedFile file_;
  FileHeader header_;
  ModelSpec spec_;
  std::vector<TensorRecord> tensors_;
};

}  // namespace pyinfer
