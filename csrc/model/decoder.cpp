#include "model/decoder.h"

#include <algorithm>
#include <cstring>

#include "formats/format.h"
#include "nn/attention.h"
#include "nn/linear.h"
#include "nn/low_rank.h"
#include "nn/residual.h"

namespace pyinfer {
namespace {

// Blocks of 32 columns that share a scale of activations. Two cost most quality in what q, k and v are made of; elsewhere they make products a
// twentieth faster or more (docs/tuning.md).
constexpr int kFineBlocks = 1, kCoarseBlocks = 2;

// Runs of rows that are consecutive positions of one sequence. Writes to `segments`, which has room for one a row.
std::span<const Segment> find_segments(std::span<const BatchRow> rows, Segment* segments) {
  size_t n = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool continues = i > 0 && rows[i].cache == rows[i - 1].cache && rows[i].position == rows[i - 1].position + 1;
    if (continues) {
      ++segments[n - 1].n_rows;
    } else {
      segments[n++] = {rows[i].cache, i, 1, rows[i].position};
    }
  }
  return {segments, n};
}

// Adds row `row` of a step, or of the rows that want logits, to the pieces: rows of one stack within one panel.
void add_piece(Workspace& w, size_t& n_pieces, size_t row, const Adapters* adapters) {
  if (adapters == nullptr) return;
  if (n_pieces > 0 && row % static_cast<size_t>(w.kernels.panel_rows) != 0) {
    Piece& last = w.pieces[n_pieces - 1];
    if (last.adapters == adapters && last.first_row + last.n_rows == row) {
      ++last.n_rows;
      return;
    }
  }
  w.pieces[n_pieces++] = {row, 1, adapters};
}

std::span<const Piece> find_pieces(Workspace& w, std::span<const BatchRow> rows) {
  size_t n = 0;
  for (size_t i = 0; i < rows.size(); ++i) add_piece(w, n, i, rows[i].adapters);
  return {w.pieces, n};
}

void embed(const Model& model, Workspace& w, std::span<const BatchRow> rows) {
  w.pool.run(rows.size(), 8, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      unpack_row(model.embedding.format, model.embedding.tiles, model.embedding.cols,
                 static_cast<size_t>(rows[i].token), w.x + i * w.x_stride);
      if (rows[i].adapters != nullptr) {
        const AdaptedInput& stack = rows[i].adapters->inputs[Adapters::embedding_input(model.layers.size())];
        adapt_embedding(w, stack, static_cast<size_t>(rows[i].token), i, w.x + i * w.x_stride);
      }
      if (model.spec.embedding_scale != 0.0f) {
        for (size_t d = 0; d < model.spec.dim; ++d) w.x[i * w.x_stride + d] *= model.spec.embedding_scale;
      }
    }
  });
}

constexpr size_t kUsualAngles = 0, kLocalAngles = 1;  // the sets of angles

void find_angles(const Model& model, Workspace& w, std::span<const Segment> segments) {
  const ModelSpec& s = model.spec;
  rope_angles(w, segments, {model.rope_freqs, model.rope_freqs_long, s.long_context, s.rope_magnitude}, kUsualAngles);
  if (s.has(kLocalRope)) rope_angles(w, segments, {model.rope_freqs_local, nullptr, 0, 1.0f}, kLocalAngles);
}

AttentionShape attention_shape(const ModelSpec& s, const Layer& layer, size_t index) {
  const size_t window = s.window_of(index);
  return {.n_heads = s.n_heads,
          .n_kv_heads = s.n_kv_heads,
          .head_dim = s.head_dim,
          .rope_pairs = s.rotates(index) ? s.rope_dim / 2 : 0,
          .scale = s.attention_scale,
          .softcap = s.attn_softcap,
          .window = window,
          .rope_set = s.has(kLocalRope) && window > 0 ? kLocalAngles : kUsualAngles,
          .q_norm = layer.q_norm,
          .k_norm = layer.k_norm,
          .norm_eps = s.norm_eps};
}

// The residual stream, normed, as an input.
LinearInput normed_input(const Model& model, const Workspace& w, size_t n, const float* norm, int scale_blocks) {
  return {.x = w.x,
          .stride = w.x_stride,
          .n_rows = n,
          .cols = model.spec.dim,
          .norm = norm,
          .eps = model.spec.norm_eps,
          .activations = model.activations,
          .scale_blocks = scale_blocks};
}

// Adds what a block gives to the residual stream, normed where the family asks for it.
void add_block(const Model& model, Workspace& w, const LinearInput& input, const Matrix& weights, const float* bias,
               const float* norm) {
  const bool direct = norm == nullptr;
  linear(w, input, {{&weights, direct ? w.x : w.branch, w.x_stride, direct, bias}});
  if (!direct) add_normed_branch(w, norm, model.spec.norm_eps, input.n_rows, model.spec.dim);
}

void attention_block(const Model& model, const Layer& layer, Workspace& w, std::span<const Segment> segments,
                     std::span<const Piece> pieces, size_t index, size_t n) {
  const ModelSpec& s = model.spec;
  const size_t number = index * Adapters::kInputsPerLayer;
  LinearInput x = normed_input(model, w, n, layer.attn_norm, kFineBlocks);
  x.pieces = pieces, x.number = number + Adapters::qkv;
  linear(w, x,
         {{&layer.q, w.qkv, w.qkv_stride, false, layer.q_bias},
          {&layer.k, w.qkv + w.q_width, w.qkv_stride, false, layer.k_bias},
          {&layer.v, w.qkv + w.q_width + w.kv_width, w.qkv_stride, false, layer.v_bias}});
  attention(w, attention_shape(s, layer, index), segments, index);
  const LinearInput attended{.x = w.attended,
                             .stride = w.q_width,
                             .n_rows = n,
                             .cols = s.q_width(),
                             .activations = model.activations,
                             .scale_blocks = kCoarseBlocks,
                             .pieces = pieces,
                             .number = number + Adapters::o};
  add_block(model, w, attended, layer.o, layer.o_bias, layer.post_attn_norm);
}

void feed_forward_block(const Model& model, const Layer& layer, Workspace& w, std::span<const Piece> pieces,
                        size_t index, size_t n) {
  const ModelSpec& s = model.spec;
  const size_t number = index * Adapters::kInputsPerLayer;
  LinearInput x = normed_input(model, w, n, layer.ffn_norm, kCoarseBlocks);
  x.pieces = pieces, x.number = number + Adapters::gate_up;
  const GatedUnit unit = s.has(kGelu) ? w.kernels.geglu : w.kernels.swiglu;
  linear_gated(w, x, layer.gate, layer.up, unit, w.hidden, w.hidden_stride);
  const LinearInput hidden{.x = w.hidden,
                           .stride = w.hidden_stride,
                           .n_rows = n,
                           .cols = s.n_ff,
                           .activations = model.activations,
                           .scale_blocks = kCoarseBlocks,
                           .pieces = pieces,
                           .number = number + Adapters::down};
  add_block(model, w, hidden, layer.down, nullptr, layer.post_ffn_norm);
}

void cap_logits(Workspace& w, size_t n_rows, const ModelSpec& s) {
  constexpr size_t kAtOnce = 4096;
  const size_t chunks = (s.n_vocab + kAtOnce - 1) / kAtOnce;
  w.pool.run(n_rows * chunks, 1, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      const size_t first = i % chunks * kAtOnce;
      w.kernels.soft_cap(w.wanted[i / chunks] + first, std::min(kAtOnce, s.n_vocab - first), s.logit_softcap);
    }
  });
}

// Logits of the rows that asked: those rows are moved together first, so that only they meet the head.
void logits(const Model& model, Workspace& w, std::span<const BatchRow> rows) {
  size_t n = 0, n_pieces = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].logits == nullptr) continue;
    if (i != n) std::memcpy(w.x + n * w.x_stride, w.x + i * w.x_stride, w.x_stride * sizeof(float));
    add_piece(w, n_pieces, n, rows[i].adapters);
    w.wanted[n++] = rows[i].logits;
  }
  if (n == 0) return;
  const ModelSpec& s = model.spec;
  LinearInput x = normed_input(model, w, n, model.final_norm, kFineBlocks);
  x.pieces = {w.pieces, n_pieces}, x.number = Adapters::head_input(model.layers.size());
  linear_scatter(w, x, model.head, w.wanted);
  if (s.logit_softcap != 0.0f) cap_logits(w, n, s);
}

}  // namespace

bool forward(const Model& model, Workspace& w, std::span<const BatchRow> rows, const Poll& poll) {
  const auto segments = find_segments(rows, w.segments);
  const auto pieces = find_pieces(w, rows);
  embed(model, w, rows);
  find_angles(model, w, segments);
  for (size_t i = 0; i < model.layers.size(); ++i) {
    if (poll.cancelled(poll.context)) return false;
    attention_block(model, model.layers[i], w, segments, pieces, i, rows.size());
    feed_forward_block(model, model.layers[i], w, pieces, i, rows.size());
  }
  logits(model, w, rows);
  return true;
}

}  // namespace pyinfer
