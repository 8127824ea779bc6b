// The reader of model.bin: files written by docs/model-file.md alone are read right, and everything else is refused.
#if !defined(_WIN32)
#include <sys/stat.h>
#endif

#include <functional>

#include "base/error.h"
#include "check.h"
#include "model/file.h"
#include "tiny_model.h"

using namespace pyinfer;

namespace {

using Bytes = std::vector<std::uint8_t>;

tiny::Shape smallest() {
  tiny::Shape shape;
  shape.n_layers = 1, shape.dim = 4, shape.n_heads = 2, shape.n_kv_heads = 1, shape.head_dim = 2, shape.n_ff = 4,
  shape.n_vocab = 5;
  shape.rope_dim = 2;
  shape.formats = {Format::f32};  // no other format has its size
  return shape;
}

Bytes small_file() { return tiny::Model(smallest(), 1).file("{\"name\": \"x\"}", "tokens"); }

// Opens, and reads both blobs.
void open_all(const std::string& path) {
  const ModelFile model(path);
  static_cast<void>(model.metadata());
  static_cast<void>(model.tokenizer());
}

// One field of the file: where it lies and how wide it is.
struct Field {
  std::string name;
  std::size_t offset;
  int bytes;
};

std::vector<Field> header_fields() {
  std::vector<Field> fields = {{"magic", 0, 8}, {"version", 8, 4}, {"header_bytes", 12, 4}};
  const char* names[] = {"file_bytes",      "spec_offset",     "spec_bytes",     "table_offset",
                         "table_bytes",     "metadata_offset", "metadata_bytes", "tokenizer_offset",
                         "tokenizer_bytes", "weights_offset",  "weights_bytes"};
  for (std::size_t i = 0; i < 11; ++i) fields.push_back({names[i], 16 + 8 * i, 8});
  for (std::size_t i = 0; i < 3; ++i) fields.push_back({"reserved", 112 + 4 * i, 4});
  return fields;
}

// The fields that the shapes of the tensors hang on, the flags, and what is reserved.
std::vector<Field> spec_fields() {
  std::vector<Field> fields;
  const char* names[] = {"spec_version", "n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "n_ff", "n_vocab"};
  for (std::size_t i = 0; i < 8; ++i) fields.push_back({names[i], 128 + 4 * i, 4});
  fields.push_back({"rope_dim", 128 + 36, 4});
  for (std::size_t i = 0; i < 19; ++i) fields.push_back({"flags or reserved", 128 + 52 + 4 * i, 4});
  return fields;
}

std::vector<Field> table_fields(std::size_t n_tensors) {
  std::vector<Field> fields;
  const char* words[] = {"role", "layer", "format", "reserved"};
  const char* sizes[] = {"rows", "cols", "offset", "bytes"};
  for (std::size_t record = 0; record < n_tensors; ++record) {
    const std::size_t at = 256 + 64 * record;
    for (std::size_t i = 0; i < 4; ++i) fields.push_back({words[i], at + 4 * i, 4});
    for (std::size_t i = 0; i < 4; ++i) fields.push_back({sizes[i], at + 16 + 8 * i, 8});
    for (std::size_t i = 0; i < 3; ++i) fields.push_back({"reserved", at + 52 + 4 * i, 4});
  }
  return fields;
}

std::uint64_t read_field(const Bytes& bytes, const Field& field) {
  std::uint64_t value = 0;
  std::memcpy(&value, &bytes[field.offset], static_cast<std::size_t>(field.bytes));
  return value;
}

// Numbers that have broken readers: zero, powers of two and their neighbours, where products and sums wrap.
std::vector<std::uint64_t> hostile_values(std::uint64_t original) {
  return {0,
          1,
          2,
          3,
          63,
          64,
          65,
          4096,
          0x7fffffff,
          0x80000000,
          0xfffffffe,
          0xffffffff,
          0x100000000,
          0x7fffffffffffffff,
          0x8000000000000000,
          0xffffffffffffff80,
          0xffffffffffffffff,
          original + 1,
          original - 1,
          original + 64,
          original - 64,
          original * 2,
          original / 2,
          original + 0x100000000,
          original ^ 0x8000000000000000};
}

// Opens a file with these bytes: it must be refused as a file, with its path and a sentence that says what was expected.
void check_refused(const Bytes& bytes, const std::string& what) {
  const tiny::TemporaryFile file(bytes);
  std::string found = "no error";
  bool ok = false;
  try {
    open_all(file.path());
  } catch (const Error& error) {
    found = error.what();
    ok = error.kind() == ErrorKind::model_file && found.find(file.path()) == 0 &&
         found.find("expected") != std::string::npos;
  }
  check::report(ok, __FILE__, __LINE__, what + ": expected to be refused, found \"" + found + "\"");
}

void check_all_values_refused(const Bytes& good, const std::vector<Field>& fields) {
  for (const Field& field : fields) {
    const std::uint64_t original = read_field(good, field);
    const std::uint64_t mask = field.bytes == 8 ? ~0ull : 0xffffffffull;
    for (std::uint64_t value : hostile_values(original)) {
      value &= mask;
      if (value == original || (field.name == "spec_version" && value == 2)) continue;
      Bytes bytes = good;
      std::memcpy(&bytes[field.offset], &value, static_cast<std::size_t>(field.bytes));
      if (field.offset != 48 || value < bytes.size()) tiny::seal(bytes);
      check_refused(bytes, field.name + " = " + std::to_string(value));
    }
  }
}

}  // namespace

TEST(model_file, reads_what_the_page_describes) {
  tiny::Shape shape;
  shape.formats = {Format::q4, Format::q8m, Format::f32, Format::q4m, Format::bf16, Format::q8, Format::f16};
  shape.tied = false;
  const tiny::Model expected(shape, 2);
  const tiny::TemporaryFile file(expected.file("{\"a\": 1}", "some tokenizer"));
  const ModelFile model(file.path());
  CHECK_EQUAL(model.spec().n_layers, shape.n_layers);
  CHECK_EQUAL(model.spec().dim, shape.dim);
  CHECK_EQUAL(model.spec().n_heads, shape.n_heads);
  CHECK_EQUAL(model.spec().n_kv_heads, shape.n_kv_heads);
  CHECK_EQUAL(model.spec().head_dim, shape.head_dim);
  CHECK_EQUAL(model.spec().n_ff, shape.n_ff);
  CHECK_EQUAL(model.spec().n_vocab, shape.n_vocab);
  CHECK_EQUAL(model.spec().context, shape.context);
  CHECK_EQUAL(model.spec().rope_dim, shape.rope_dim);
  CHECK_EQUAL(model.spec().norm_eps, shape.norm_eps);
  CHECK_EQUAL(model.spec().rope_magnitude, shape.rope_magnitude);
  CHECK_EQUAL(model.spec().attention_scale, shape.attention_scale);
  CHECK_EQUAL(model.spec().tied_head(), shape.tied);
  CHECK_EQUAL(std::string(model.metadata().begin(), model.metadata().end()), "{\"a\": 1}");
  CHECK_EQUAL(std::string(model.tokenizer().begin(), model.tokenizer().end()), "some tokenizer");
  CHECK_EQUAL(model.tensors().size(), expected.tensors.size());
  for (std::size_t i = 0; i < expected.tensors.size(); ++i) {
    const tiny::Tensor& tensor = expected.tensors[i];
    const TensorRecord& record = model.tensors()[i];
    CHECK_EQUAL(static_cast<std::uint32_t>(record.role), tensor.role);
    CHECK_EQUAL(record.layer, tensor.layer);
    CHECK(record.format == tensor.format);
    CHECK_EQUAL(record.rows, tensor.rows);
    CHECK_EQUAL(record.cols, tensor.cols);
    CHECK_EQUAL(record.bytes, tensor.bytes.size());
    CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(), model.bytes_of(record)));
    CHECK(model.verify(record));
  }
}

TEST(model_file, header_fields_have_one_value_each) { check_all_values_refused(small_file(), header_fields()); }
TEST(model_file, shapes_must_agree_with_the_tensors) { check_all_values_refused(small_file(), spec_fields()); }
TEST(model_file, tensor_records_have_one_value_each) {
  check_all_values_refused(small_file(), table_fields(tiny::Model(smallest(), 1).tensors.size()));
}

// Cosines of larger angles are not computed: logits would be NaN.
TEST(model_file, frequencies_have_limits) {
  const Bytes whole = small_file();
  std::size_t n_found = 0;
  for (std::size_t i = 0; i < tiny::Model(smallest(), 1).tensors.size(); ++i) {
    if (read_field(whole, {"role", 256 + 64 * i, 4}) != tiny::rope_freqs) continue;
    const std::size_t at = read_field(whole, {"offset", 256 + 64 * i + 32, 8});
    for (const float frequency : {NAN, INFINITY, -INFINITY, 3e38f, 0x1p27f / 512}) {
      Bytes bytes = whole;
      tiny::put(bytes, at, frequency);
      check_refused(bytes, "rope_freqs[0]: expected angles below 2^27");
    }
    ++n_found;
  }
  CHECK_EQUAL(n_found, std::size_t{1});
}

TEST(model_file, free_numbers_have_limits) {
  const auto with_word = [](std::size_t offset, auto value) {
    Bytes bytes = small_file();
    tiny::put(bytes, offset, value);
    tiny::seal(bytes);
    return bytes;
  };
  for (const std::uint32_t context : {0u, 16777217u, 0xffffffffu}) check_refused(with_word(160, context), "context");
  for (const float eps : {-1e-6f, 1.0f, NAN, INFINITY}) check_refused(with_word(168, eps), "norm_eps");
  for (const float factor : {0.0f, -1.0f, NAN, INFINITY}) {
    check_refused(with_word(172, factor), "rope_magnitude");
    check_refused(with_word(176, factor), "attention_scale");
  }
  for (const std::uint32_t context : {1u, 16777216u}) {
    const tiny::TemporaryFile file(with_word(160, context));
    CHECK_EQUAL(ModelFile(file.path()).spec().context, context);
  }
}

namespace {

// All that version 2 of the specification has, in two layers.
tiny::Shape featured() {
  tiny::Shape shape = smallest();
  shape.n_layers = 2;
  shape.qkv_bias = shape.o_bias = shape.qk_norm = shape.post_norms = shape.gelu = shape.local_rope = true;
  shape.embedding_scale = 2, shape.attn_softcap = 50, shape.logit_softcap = 30;
  shape.window = 7, shape.windowed = {1}, shape.unrotated = {0}, shape.long_context = 100;
  return shape;
}

}  // namespace

TEST(model_file, reads_the_features_of_families) {
  const tiny::Shape shape = featured();
  const tiny::Model expected(shape, 1);
  const tiny::TemporaryFile path(expected.file());
  const ModelFile file(path.path());
  const ModelSpec& s = file.spec();
  CHECK_EQUAL(s.spec_version, 2u);
  for (const SpecFlag flag : {kTiedHead, kQkvBias, kOBias, kQkNorm, kPostNorms, kGelu, kLocalRope}) CHECK(s.has(flag));
  CHECK(!s.has(kNormOffset));
  CHECK_EQUAL(s.embedding_scale, 2.0f);
  CHECK_EQUAL(s.attn_softcap, 50.0f);
  CHECK_EQUAL(s.logit_softcap, 30.0f);
  CHECK_EQUAL(s.long_context, 100u);
  CHECK_EQUAL(s.window_of(0), 0u);
  CHECK_EQUAL(s.window_of(1), 7u);
  CHECK(!s.rotates(0) && s.rotates(1));
  CHECK_EQUAL(file.tensors().size(), expected.tensors.size());
}

TEST(model_file, features_must_agree_with_each_other_and_with_the_tensors) {
  const Bytes good = tiny::Model(featured(), 1).file();
  const auto refused = [&](std::size_t offset, auto value, const std::string& what) {
    Bytes bytes = good;
    tiny::put(bytes, offset, value);
    tiny::seal(bytes);
    check_refused(bytes, what);
  };
  refused(128, 1u, "features in version 1");
  refused(128, 3u, "version 3");
  for (int bit = 1; bit < 32; ++bit)
    if (bit != 5 && bit != 7) refused(180, featured().flags() ^ 1u << bit, "flag " + std::to_string(bit));
  for (const std::size_t offset : {184, 188, 192})
    for (const float value : {-1.0f, NAN, INFINITY}) refused(offset, value, "a factor");
  for (const std::uint32_t value : {0u, 16777217u, 0xffffffffu}) {
    refused(196, value, "window");
    refused(200, value, "long_context");
  }
  for (const std::uint32_t bits : {0u, 4u, 6u, 0x80000000u}) refused(204, bits, "windowed layers");
  for (const std::size_t word : {208, 212, 216, 224, 228, 232}) refused(word, 1u, "layers that there are not");
  refused(220, 4u, "an unrotated layer that there is not");
  for (std::size_t word = 236; word < 256; word += 4) refused(word, 1u, "reserved");
}

TEST(model_file, cut_anywhere_is_refused) {
  const Bytes good = small_file();
  const tiny::TemporaryFile file(good);
  for (std::size_t size = good.size(); size-- > 0;) {
    std::filesystem::resize_file(file.path(), size);
    CHECK_ERROR(ModelFile(file.path()), model_file, file.path() + ": ");
  }
}

TEST(model_file, grown_is_refused) {
  for (const std::size_t more : {1, 63, 64, 4096}) {
    Bytes bytes = small_file();
    bytes.resize(bytes.size() + more);
    check_refused(bytes, "grown");
    tiny::put<std::uint64_t>(bytes, 16, bytes.size());
    tiny::put<std::uint64_t>(bytes, 96, bytes.size() - 4096);
    tiny::seal(bytes);
    if (more >= 64) check_refused(bytes, "grown and relabelled");
  }
}

TEST(model_file, every_flipped_bit_before_the_weights_is_found) {
  const Bytes good = small_file();
  const std::size_t metadata_at = 256 + 64 * tiny::Model(smallest(), 1).tensors.size(),
                    blobs_end = metadata_at + 13 + 6;
  for (std::size_t i = 0; i < 4096; ++i) {
    Bytes bytes = good;
    bytes[i] = static_cast<std::uint8_t>(bytes[i] ^ (1 << i % 8));
    if (i < metadata_at || i >= blobs_end) {
      check_refused(bytes, "byte " + std::to_string(i));
      continue;
    }
    const tiny::TemporaryFile file(bytes);
    const ModelFile model(file.path());
    if (i < metadata_at + 13) CHECK_ERROR(model.metadata(), model_file, "metadata");
    if (i >= metadata_at + 13) CHECK_ERROR(model.tokenizer(), model_file, "tokenizer");
  }
}

TEST(model_file, every_flipped_byte_of_a_tensor_is_found_by_verify) {
  const Bytes good = small_file();
  const tiny::TemporaryFile whole(good);
  const ModelFile reader(whole.path());
  for (const TensorRecord& tensor : reader.tensors()) {
    for (const std::uint64_t place : {std::uint64_t{0}, tensor.bytes / 2, tensor.bytes - 1}) {
      Bytes bytes = good;
      bytes[tensor.offset + place] ^= 1;
      const tiny::TemporaryFile file(bytes);
      const ModelFile changed(file.path());
      for (std::size_t i = 0; i < changed.tensors().size(); ++i)
        CHECK_EQUAL(changed.verify(changed.tensors()[i]), changed.tensors()[i].offset != tensor.offset);
    }
  }
}

TEST(model_file, gaps_between_tensors_are_zero) {
  Bytes bytes = small_file();
  const std::size_t end = read_field(bytes, {"", 256 + 32, 8}) + read_field(bytes, {"", 256 + 40, 8});
  CHECK_EQUAL(end % 64, 0u);  // the embedding fills its tile; the norm behind it does not
  const std::size_t gap = read_field(bytes, {"", 320 + 32, 8}) + read_field(bytes, {"", 320 + 40, 8});
  CHECK(gap % 64 != 0);
  bytes[gap] = 1;
  check_refused(bytes, "a gap that is not zero");
}

TEST(model_file, tensors_that_are_missing_doubled_or_swapped) {
  const Bytes good = small_file();
  Bytes twice = good;
  std::copy_n(&good[256 + 64 * 2], 8, &twice[256 + 64 * 3]);  // k says that it is q
  tiny::seal(twice);
  check_refused(twice, "two q");
  Bytes swapped = good;
  std::copy_n(&good[256 + 64 * 3], 64, &swapped[256 + 64 * 4]);
  std::copy_n(&good[256 + 64 * 4], 64, &swapped[256 + 64 * 3]);
  tiny::seal(swapped);
  check_refused(swapped, "records out of order");
  Bytes fewer = good;
  tiny::put<std::uint64_t>(fewer, 48, read_field(good, {"", 48, 8}) - 64);
  tiny::seal(fewer);
  check_refused(fewer, "a record less");
}

// Kernels walk K formats in groups of 256 columns: a tensor that has no whole groups must not reach them.
TEST(model_file, k_formats_need_whole_groups_of_columns) {
  tiny::Shape shape;
  shape.dim = 256, shape.n_heads = 4, shape.n_kv_heads = 4, shape.head_dim = 64;
  for (const Format format : {Format::q4k, Format::q5k, Format::q6k}) {
    shape.formats = {format};
    shape.n_ff = 256;
    const tiny::TemporaryFile whole(tiny::Model(shape, 1).file());
    CHECK_EQUAL(ModelFile(whole.path()).spec().dim, 256u);
    shape.n_ff = 320;
    check_refused(tiny::Model(shape, 1).file(), "320 columns of a K format");
  }
}

TEST(model_file, files_that_are_none) {
  CHECK_ERROR(ModelFile("/nonexistent/model.bin"), system, "/nonexistent/model.bin");
  CHECK_ERROR(ModelFile(std::filesystem::temp_directory_path().string()), model_file, "regular file");
  check_refused({}, "an empty file");
  check_refused({'G', 'G', 'U', 'F', 3, 0, 0, 0}, "eight bytes of GGUF");
  Bytes other(8192, 'G');
  check_refused(other, "something else");
#if defined(_WIN32)
  CHECK_ERROR(ModelFile("NUL"), model_file, "regular file");
  CHECK_ERROR(ModelFile("bad\xff"), system, "cannot be opened");
#else
  CHECK_ERROR(ModelFile("/dev/null"), model_file, "/dev/null");
  const tiny::TemporaryFile fifo;
  CHECK_EQUAL(::mkfifo(fifo.path().c_str(), 0600), 0);
  CHECK_ERROR(ModelFile(fifo.path()), model_file, fifo.path());
#endif
}

#if !defined(_WIN32)  // where a file of any size takes its room on the disk
// A sparse file may claim a table of many gigabytes: it is refused before anything of that size is read.
TEST(model_file, a_huge_table_is_refused_at_once) {
  const tiny::TemporaryFile file(small_file());
  const std::uint64_t size = 64ull << 30;
  std::error_code refused;
  std::filesystem::resize_file(file.path(), size, refused);
  if (refused) return;  // the file system has no sparse files
  Bytes bytes = small_file();
  bytes.resize(4096);
  tiny::put<std::uint64_t>(bytes, 16, size);
  tiny::put<std::uint64_t>(bytes, 48, size / 2);
  tiny::put<std::uint64_t>(bytes, 56, 256 + size / 2);
  tiny::put<std::uint64_t>(bytes, 64, 0);
  tiny::put<std::uint64_t>(bytes, 72, 256 + size / 2);
  tiny::put<std::uint64_t>(bytes, 80, 0);
  tiny::put<std::uint64_t>(bytes, 88, 4096 + size / 2);
  tiny::put<std::uint64_t>(bytes, 96, size / 2 - 4096);
  std::fstream(file.path(), std::ios::binary | std::ios::in | std::ios::out)
      .write(reinterpret_cast<const char*>(bytes.data()), 4096);
  CHECK_ERROR(ModelFile(file.path()), model_file, "table_bytes");
}
#endif

// Windows refuses to cut it.
TEST(model_file, cut_while_mapped_is_an_error) {
  const Bytes good = small_file();
  const tiny::TemporaryFile file(good);
  const ModelFile model(file.path());
  CHECK(model.verify(model.tensors()[0]));
  std::error_code refused;
  std::filesystem::resize_file(file.path(), 4096, refused);
#if defined(_WIN32)
  CHECK(static_cast<bool>(refused));
  CHECK(model.verify(model.tensors()[0]));
#else
  CHECK(!refused);
  CHECK_ERROR(model.verify(model.tensors()[0]), model_file, "cut while in use");
  CHECK_ERROR(model.metadata(), model_file, "cut while in use");
#endif
}

#if defined(__linux__)
bool gives_huge_pages() {
  std::string setting;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"), setting);
  return !setting.empty() && setting.find("[never]") == std::string::npos;
}
#endif

// The copy stands where the mapping stood, and needs the file no more.
TEST(model_file, huge_pages_are_a_copy) {
  const Bytes good = small_file();
  const tiny::TemporaryFile file(good);
#if defined(__linux__)
  if (gives_huge_pages()) {
    const ModelFile model(file.path(), HugePages::on);
    const std::uint8_t* const before = model.mapping().data();
    CHECK_EQUAL(reinterpret_cast<std::uintptr_t>(before) % (2u << 20), 0u);
    for (int i = 0; i < 2; ++i) model.mapping().prefetch();
    CHECK(model.mapping().data() == before);
    CHECK(std::equal(good.begin(), good.end(), before));
    std::filesystem::resize_file(file.path(), 4096);
    CHECK(model.verify(model.tensors()[0]));
    return;
  }
#endif
  CHECK_ERROR(ModelFile(file.path(), HugePages::on), request, "huge_pages: expected auto or off");
}

#if defined(__linux__)
TEST(model_file, cut_before_it_is_copied_is_an_error) {
  if (!gives_huge_pages()) return;
  const tiny::TemporaryFile file(small_file());
  const ModelFile model(file.path(), HugePages::on);
  std::filesystem::resize_file(file.path(), 4096);
  for (int i = 0; i < 2; ++i) CHECK_ERROR(model.mapping().prefetch(), model_file, "found 4096");
}
#endif

TEST(model_file, names_are_utf_8) {
  const std::filesystem::path path = std::filesystem::temp_directory_path() / u8"pyinfer-test-äöü-模型";
  const std::u8string name = path.u8string();
  const Bytes bytes = small_file();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  CHECK_EQUAL(ModelFile(std::string(name.begin(), name.end())).spec().dim, 4u);
  std::filesystem::remove(path);
}
