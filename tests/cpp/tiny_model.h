// Small random models, written to model.bin by docs/model-file.md alone, and their forward pass in double precision.
#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>

#include "base/process.h"
#include "packed.h"
#include "random.h"
#include "reference.h"

namespace tiny {

using pyinfer::Format;

inline std::uint32_t crc32(const std::uint8_t* bytes, std::size_t n, std::uint32_t crc = 0) {
  crc = ~crc;
  for (std::size_t i = 0; i < n; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return ~crc;
}

// A file that is removed at the end of the test.
class TemporaryFile {
 public:
  TemporaryFile() {
    static int n = 0;
    const std::string name = "pyinfer-test-" + std::to_string(pyinfer::process_id()) + "-" + std::to_string(n++);
    path_ = (std::filesystem::temp_directory_path() / name).string();
  }
  explicit TemporaryFile(const std::vector<std::uint8_t>& bytes) : TemporaryFile() { write(bytes); }
  ~TemporaryFile() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }
  void write(const std::vector<std::uint8_t>& bytes) const {
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::string path_;
};

struct Shape {
  std::uint32_t n_layers = 2, dim = 48, n_heads = 6, n_kv_heads = 2, head_dim = 8, n_ff = 80, n_vocab = 101;
  std::uint32_t context = 512, rope_dim = 8;
  float norm_eps = 1e-5f, rope_magnitude = 1.0f, attention_scale = 0.35f;
  bool tied = true;
  std::vector<Format> formats = {Format::q4};  // matrices take them in turn
  // What came with version 2 of the specification; 0 and false are "none".
  bool qkv_bias = false, o_bias = false, qk_norm = false, post_norms = false, gelu = false, local_rope = false;
  float embedding_scale = 0, attn_softcap = 0, logit_softcap = 0;
  std::uint32_t window = 0, long_context = 0;
  std::vector<std::uint32_t> windowed = {}, unrotated = {};  // layers

  std::uint32_t flags() const {
    return tied | qkv_bias << 1 | o_bias << 2 | qk_norm << 3 | post_norms << 4 | gelu << 5 | local_rope << 6;
  }
  std::uint32_t version() const {
    const bool numbers = embedding_scale > 0 || attn_softcap > 0 || logit_softcap > 0 || window > 0 || long_context > 0;
    return flags() > 1 || numbers || !unrotated.empty() ? 2 : 1;
  }
};

inline bool contains(const std::vector<std::uint32_t>& layers, std::uint32_t layer) {
  return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

struct Tensor {
  std::uint32_t role, layer;
  Format format;
  std::size_t rows, cols;
  std::vector<std::uint8_t> bytes;

  std::vector<double> row(std::size_t index) const {
    std::vector<double> values(cols);
    for (std::size_t col = 0; col < cols; ++col) {
      values[col] = format == Format::vector ? reference::float_at(Format::f32, bytes, col)
                                             : reference::weight_at(format, bytes, cols, index, col);
    }
    return values;
  }
};

// Roles by their numbers in the page.
enum Role : std::uint32_t {
  embedding,
  final_norm,
  head,
  rope_freqs,
  rope_freqs_local,
  rope_freqs_long,
  attn_norm = 16,
  q,
  k,
  v,
  o,
  ffn_norm,
  gate,
  up,
  down,
  q_bias,
  k_bias,
  v_bias,
  o_bias,
  q_norm,
  k_norm,
  post_attn_norm,
  post_ffn_norm
};
inline constexpr std::uint32_t no_layer = 0xFFFFFFFFu;

class Model {
 public:
  Model(const Shape& wanted, std::uint64_t seed) : shape(wanted), random_(seed) {
    const std::size_t dim = shape.dim, q_width = std::size_t{shape.n_heads} * shape.head_dim;
    const std::size_t kv_width = std::size_t{shape.n_kv_heads} * shape.head_dim;
    add_matrix(embedding, no_layer, shape.n_vocab, dim);
    for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer) {
      add_vector(attn_norm, layer, random_norm(dim));
      add_matrix(q, layer, q_width, dim);
      add_matrix(k, layer, kv_width, dim);
      add_matrix(v, layer, kv_width, dim);
      add_matrix(o, layer, dim, q_width);
      add_vector(ffn_norm, layer, random_norm(dim));
      add_matrix(gate, layer, shape.n_ff, dim);
      add_matrix(up, layer, shape.n_ff, dim);
      add_matrix(down, layer, dim, shape.n_ff);
      if (shape.qkv_bias) {
        add_vector(q_bias, layer, random_.normals(q_width, 0.5));
        add_vector(k_bias, layer, random_.normals(kv_width, 0.5));
        add_vector(v_bias, layer, random_.normals(kv_width, 0.5));
      }
      if (shape.o_bias) add_vector(o_bias, layer, random_.normals(dim, 0.5));
      if (shape.qk_norm) {
        add_vector(q_norm, layer, random_norm(shape.head_dim));
        add_vector(k_norm, layer, random_norm(shape.head_dim));
      }
      if (shape.post_norms) {
        add_vector(post_attn_norm, layer, random_norm(dim));
        add_vector(post_ffn_norm, layer, random_norm(dim));
      }
    }
    add_vector(final_norm, no_layer, random_norm(dim));
    if (shape.rope_dim > 0) add_vector(rope_freqs, no_layer, frequencies(10000));
    if (shape.local_rope) add_vector(rope_freqs_local, no_layer, frequencies(100));
    if (shape.long_context > 0) add_vector(rope_freqs_long, no_layer, frequencies(70000));
    if (!shape.tied) add_matrix(head, no_layer, shape.n_vocab, dim);
  }

  const Tensor& tensor(std::uint32_t role, std::uint32_t layer) const {
    for (const Tensor& one : tensors)
      if (one.role == role && one.layer == layer) return one;
    throw std::runtime_error("no such tensor");
  }

  // The whole file.
  std::vector<std::uint8_t> file(const std::string& metadata = "{}", const std::string& tokenizer = "tok") const;

  Shape shape;
  std::vector<Tensor> tensors;

 private:
  std::vector<float> random_norm(std::size_t n) {
    std::vector<float> values = random_.normals(n, 0.2);
    for (float& value : values) value += 1.0f;
    return values;
  }

  std::vector<float> frequencies(double theta) const {
    std::vector<float> values;
    for (std::uint32_t i = 0; i < shape.rope_dim / 2; ++i)
      values.push_back(static_cast<float>(std::pow(theta, -2.0 * i / shape.rope_dim)));
    return values;
  }

  void add_vector(std::uint32_t role, std::uint32_t layer, const std::vector<float>& values) {
    std::vector<std::uint8_t> bytes(4 * values.size());
    std::memcpy(bytes.data(), values.data(), bytes.size());
    tensors.push_back({role, layer, Format::vector, 1, values.size(), bytes});
  }

  void add_matrix(std::uint32_t role, std::uint32_t layer, std::size_t rows, std::size_t cols) {
    const Format format = shape.formats[n_matrices_++ % shape.formats.size()];
    const double size = 1 / std::sqrt(static_cast<double>(cols));  // activations keep their size
    tensors.push_back({role, layer, format, rows, cols, RandomMatrix(random_, format, rows, cols, size).bytes});
  }

  Random random_;
  std::size_t n_matrices_ = 0;
};

// ---- The file, field by field as the page lists them ----

template <class T>
void put(std::vector<std::uint8_t>& bytes, std::size_t offset, T value) {
  std::memcpy(&bytes[offset], &value, sizeof value);
}

// Makes the checksum of header, specification and table right again after a change.
inline void seal(std::vector<std::uint8_t>& bytes) {
  std::uint64_t table_bytes;
  std::memcpy(&table_bytes, &bytes[48], 8);
  const std::uint64_t rest = std::min<std::uint64_t>(128 + table_bytes, bytes.size() - 128);
  put(bytes, 124, crc32(&bytes[128], rest, crc32(bytes.data(), 124)));
}

inline std::vector<std::uint8_t> Model::file(const std::string& metadata, const std::string& tokenizer) const {
  const std::size_t table_bytes = 64 * tensors.size(), metadata_at = 256 + table_bytes,
                    tokenizer_at = metadata_at + metadata.size();
  const std::size_t weights_at = reference::padded(tokenizer_at + tokenizer.size(), 4096);
  std::vector<std::uint8_t> bytes(weights_at);
  std::copy(metadata.begin(), metadata.end(), &bytes[metadata_at]);
  std::copy(tokenizer.begin(), tokenizer.end(), &bytes[tokenizer_at]);

  const std::uint32_t words[] = {shape.version(), shape.n_layers, shape.dim,     shape.n_heads, shape.n_kv_heads,
                                 shape.head_dim,  shape.n_ff,     shape.n_vocab, shape.context, shape.rope_dim};
  std::memcpy(&bytes[128], words, sizeof words);
  const float floats[] = {shape.norm_eps, shape.rope_magnitude, shape.attention_scale};
  std::memcpy(&bytes[168], floats, sizeof floats);
  put<std::uint32_t>(bytes, 180, shape.flags());
  const float factors[] = {shape.embedding_scale, shape.attn_softcap, shape.logit_softcap};
  std::memcpy(&bytes[184], factors, sizeof factors);
  put(bytes, 196, shape.window);
  put(bytes, 200, shape.long_context);
  for (const std::uint32_t layer : shape.windowed) bytes[204 + layer / 8] |= static_cast<std::uint8_t>(1 << layer % 8);
  for (const std::uint32_t layer : shape.unrotated) bytes[220 + layer / 8] |= static_cast<std::uint8_t>(1 << layer % 8);

  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = tensors[i];
    bytes.resize(reference::padded(bytes.size(), 64));
    const std::uint32_t head_words[] = {tensor.role, tensor.layer, static_cast<std::uint32_t>(tensor.format), 0};
    const std::uint64_t sizes[] = {tensor.rows, tensor.cols, bytes.size(), tensor.bytes.size()};
    std::memcpy(&bytes[256 + 64 * i], head_words, 16);
    std::memcpy(&bytes[256 + 64 * i + 16], sizes, 32);
    put(bytes, 256 + 64 * i + 48, crc32(tensor.bytes.data(), tensor.bytes.size()));
    bytes.insert(bytes.end(), tensor.bytes.begin(), tensor.bytes.end());
  }

  std::memcpy(bytes.data(), "PYINFER", 8);
  put<std::uint32_t>(bytes, 8, 1);
  put<std::uint32_t>(bytes, 12, 128);
  const std::uint64_t header[] = {bytes.size(),
                                  128,
                                  128,
                                  256,
                                  table_bytes,
                                  metadata_at,
                                  metadata.size(),
                                  tokenizer_at,
                                  tokenizer.size(),
                                  weights_at,
                                  bytes.size() - weights_at};
  std::memcpy(&bytes[16], header, sizeof header);
  put(bytes, 104, crc32(&bytes[metadata_at], metadata.size()));
  put(bytes, 108, crc32(&bytes[tokenizer_at], tokenizer.size()));
  seal(bytes);
  return bytes;
}

// ---- The forward pass ----

// Tokens of one sequence through the model, position by position; keeps keys and values as the halves that the cache holds.
class Reference {
 public:
  Reference(const Model& model, bool int8) : model_(model), int8_(int8) {
    for (const Tensor& tensor : model.tensors) {
      if (tensor.format != Format::vector)
        weights_.emplace(&tensor, reference::Weights(tensor.format, tensor.bytes, tensor.rows, tensor.cols));
    }
    start();
  }

  // Begins another sequence.
  void start() {
    position_ = 0;
    keys_.assign(model_.shape.n_layers, {});
    values_.assign(model_.shape.n_layers, {});
  }

  // What a stack of adapters makes of a linear: turns W x into its outputs; the embedding's x is the token alone.
  using Adapt =
      std::function<void(Role role, std::uint32_t layer, const std::vector<double>& x, std::vector<double>& out)>;
  Adapt adapt = [](Role, std::uint32_t, const std::vector<double>&, std::vector<double>&) {};

  bool long_sequence = false;  // made for more positions than the model's long_context

  // The logits (n_vocab) after one more token.
  std::vector<double> step(int token) {
    const Shape& s = model_.shape;
    std::vector<double> x = model_.tensor(embedding, no_layer).row(static_cast<std::size_t>(token));
    adapt(embedding, no_layer, {static_cast<double>(token)}, x);
    if (s.embedding_scale > 0)
      for (double& value : x) value *= s.embedding_scale;
    for (std::uint32_t layer = 0; layer < s.n_layers; ++layer) {
      add(x, post(post_attn_norm, layer, linear(o, layer, attend(layer, norm(x, attn_norm, layer)), o_bias)));
      const std::vector<double> h = norm(x, ffn_norm, layer);
      std::vector<double> hidden = linear(gate, layer, h);
      const std::vector<double> ups = linear(up, layer, h);
      for (std::size_t i = 0; i < hidden.size(); ++i)
        hidden[i] = (s.gelu ? reference::gelu(hidden[i]) : reference::silu(hidden[i])) * ups[i];
      add(x, post(post_ffn_norm, layer, linear(down, layer, hidden)));
    }
    ++position_;
    const Values last = norm(x, final_norm, no_layer);
    Values logits = multiply_pairs(model_.tensor(s.tied ? embedding : head, no_layer), last);
    adapt(head, no_layer, last, logits);
    for (double& value : logits) value = reference::soft_cap(value, s.logit_softcap);
    return logits;
  }

 private:
  using Values = std::vector<double>;

  static void add(Values& x, const Values& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Values norm(const Values& x, std::uint32_t role, std::uint32_t layer) const {
    return reference::rms_norm(x, model_.tensor(role, layer).row(0), model_.shape.norm_eps);
  }

  Values post(Role role, std::uint32_t layer, const Values& x) const {
    return model_.shape.post_norms ? norm(x, role, layer) : x;
  }

  Values linear(Role role, std::uint32_t layer, const Values& x, std::uint32_t bias = no_layer) const {
    Values out = multiply(model_.tensor(role, layer), x, role == q || role == k || role == v ? 1 : 2);
    adapt(role, layer, x, out);
    if (bias == o_bias ? model_.shape.o_bias : bias != no_layer && model_.shape.qkv_bias)
      add(out, model_.tensor(bias, layer).row(0));
    return out;
  }

  void norm_heads(Values& x, Role role, std::uint32_t layer) const {
    const std::size_t n = model_.shape.head_dim;
    for (std::size_t at = 0; model_.shape.qk_norm && at < x.size(); at += n) {
      const auto first = x.begin() + static_cast<std::ptrdiff_t>(at);
      const Values normed = norm(Values(first, first + static_cast<std::ptrdiff_t>(n)), role, layer);
      std::copy(normed.begin(), normed.end(), first);
    }
  }

  Values angles(std::uint32_t layer) const {
    const Shape& s = model_.shape;
    if (s.rope_dim == 0 || contains(s.unrotated, layer)) return {};
    const bool local = s.local_rope && contains(s.windowed, layer);
    const Role role = local ? rope_freqs_local : long_sequence ? rope_freqs_long : rope_freqs;
    Values angles = model_.tensor(role, no_layer).row(0);
    for (double& angle : angles) angle *= position_;
    return angles;
  }

  double magnitude(std::uint32_t layer) const {
    return model_.shape.local_rope && contains(model_.shape.windowed, layer) ? 1 : model_.shape.rope_magnitude;
  }

  // `scale_blocks` blocks of activations share a scale where they are int8.
  Values multiply(const Tensor& tensor, const Values& x, std::size_t scale_blocks) const {
    const reference::Weights& weights = weights_.at(&tensor);
    const std::vector<float> narrow(x.begin(), x.end());
    const std::vector<reference::QuantizedBlock> blocks = reference::quantize_all(narrow, scale_blocks);
    Values out(tensor.rows);
    for (std::size_t row = 0; row < tensor.rows; ++row) {
      if (int8_ && reference::is_quantised(tensor.format)) {
        out[row] = reference::dot_int8(weights, row, blocks).value;
      } else {
        for (std::size_t col = 0; col < tensor.cols; ++col) out[row] += weights.values.at(row, col) * x[col];
      }
    }
    return out;
  }

  // Activations of int8, and what they lack of the floats as int8 too.
  Values multiply_pairs(const Tensor& tensor, const Values& x) const {
    Values out = multiply(tensor, x, 1);
    if (!int8_ || !reference::is_quantised(tensor.format)) return out;
    const std::vector<float> remainder = reference::remainder_of(std::vector<float>(x.begin(), x.end()));
    const Values more = multiply(tensor, Values(remainder.begin(), remainder.end()), 1);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += more[i];
    return out;
  }

  Values attend(std::uint32_t layer, const Values& x) {
    const Shape& s = model_.shape;
    Values qs = linear(q, layer, x, q_bias), ks = linear(k, layer, x, k_bias), vs = linear(v, layer, x, v_bias);
    norm_heads(qs, q_norm, layer);
    norm_heads(ks, k_norm, layer);
    const Values turns = angles(layer);
    for (std::uint32_t h = 0; h < s.n_heads; ++h) reference::rotate(&qs[h * s.head_dim], turns, magnitude(layer));
    for (std::uint32_t h = 0; h < s.n_kv_heads; ++h) reference::rotate(&ks[h * s.head_dim], turns, magnitude(layer));
    for (Values* stored : {&ks, &vs})
      for (double& value : *stored) value = reference::half_value(reference::nearest_half(value));
    keys_[layer].push_back(ks);
    values_[layer].push_back(vs);
    Values out(qs.size());
    for (std::uint32_t h = 0; h < s.n_heads; ++h) attend_head(layer, h, qs, out);
    return out;
  }

  void attend_head(std::uint32_t layer, std::uint32_t h, const Values& qs, Values& out) const {
    const Shape& s = model_.shape;
    const std::size_t at = std::size_t{h} * s.head_dim,
                      kv_at = std::size_t{h / (s.n_heads / s.n_kv_heads)} * s.head_dim;
    const std::size_t n = keys_[layer].size();
    const std::size_t first = contains(s.windowed, layer) && n > s.window ? n - s.window : 0;
    Values scores;
    for (std::size_t position = first; position < n; ++position) {
      double score = 0;
      for (std::size_t d = 0; d < s.head_dim; ++d)
        score += qs[at + d] * keys_[layer][position][kv_at + d] * s.attention_scale;
      scores.push_back(reference::soft_cap(score, s.attn_softcap));
    }
    const Values p = reference::softmax(scores);
    for (std::size_t i = 0; i < p.size(); ++i)
      for (std::size_t d = 0; d < s.head_dim; ++d) out[at + d] += p[i] * values_[layer][first + i][kv_at + d];
  }

  const Model& model_;
  bool int8_;
  std::map<const Tensor*, reference::Weights> weights_;
  double position_ = 0;
  std::vector<std::vector<Values>> keys_, values_;  // (layer, position, n_kv_heads * head_dim)
};

}  // namespace tiny
