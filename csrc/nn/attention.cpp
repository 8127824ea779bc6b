#include "nn/attention.h"

#include <algorithm>

#include "base/angle.h"

namespace pyinfer {
namespace {

// Rows of one sequence that a thread takes at a time: enough queries to use a page of K well, few enough to share out.
constexpr size_t kRowsAtOnce = 16;

// A group is one KV head with the query heads that share it.
class Group {
 public:
  Group(Workspace& w, const AttentionShape& shape, size_t layer, size_t kv_head)
      : w_(w), shape_(shape), layer_(layer), kv_head_(kv_head), n_shared_(shape.n_heads / shape.n_kv_heads) {}

  // Norms and rotates the group's heads in one row and puts k and v into the cache.
  void rotate_and_store(const Segment& segment, size_t offset) const {
    const size_t row = segment.first_row + offset, position = segment.first_position + offset;
    const size_t n = shape_.head_dim, pairs = shape_.rope_pairs;
    const size_t angles = (shape_.rope_set * w_.max_rows + row) * w_.rope_pairs;
    const float* cosines = w_.cosines + angles;
    const float* sines = w_.sines + angles;
    float* q = q_of(row);
    for (size_t h = 0; h < n_shared_; ++h) norm(q + h * n, shape_.q_norm);
    for (size_t h = 0; h < n_shared_; ++h) w_.kernels.rope(q + h * n, cosines, sines, pairs, n, shape_.scale);
    float* k = w_.qkv + row * w_.qkv_stride + w_.q_width + kv_head_ * n;
    norm(k, shape_.k_norm);
    w_.kernels.rope(k, cosines, sines, pairs, n, 1.0f);
    KvCache& cache = *segment.cache;
    uint8_t* page = cache.pages()[position / kPagePositions];
    w_.kernels.store_kv[cache.shape().format](
        k, k + w_.kv_width, static_cast<int>(n), static_cast<int>(cache.shape().v_stride()),
        static_cast<int>(position % kPagePositions), page + cache.k_offset(layer_, kv_head_),
        page + cache.v_offset(layer_, kv_head_));
  }

  void attend(const Segment& segment, size_t offset, size_t n_rows) const {
    const size_t row = segment.first_row + offset;
    const KvCache& cache = *segment.cache;
    AttendArgs args{};
    args.q = q_of(row);
    args.q_stride = w_.qkv_stride;
    args.out = w_.attended + row * w_.q_width + kv_head_ * n_shared_ * shape_.head_dim;
    args.out_stride = w_.q_width;
    args.n_rows = static_cast<int>(n_rows);
    args.n_heads = static_cast<int>(n_shared_);
    args.head_dim = static_cast<int>(shape_.head_dim);
    args.first_position = static_cast<int>(segment.first_position + offset);
    args.window = static_cast<int>(shape_.window);
    args.softcap = shape_.softcap;
    args.pages = cache.pages();
    args.k_offset = cache.k_offset(layer_, kv_head_);
    args.v_offset = cache.v_offset(layer_, kv_head_);
    args.v_stride = static_cast<int>(cache.shape().v_stride());
    w_.kernels.attend[cache.shape().format](args);
  }

 private:
  void norm(float* head, const float* weight) const {
    if (weight != nullptr) w_.kernels.rms_norm(head, weight, shape_.norm_eps, shape_.head_dim, head);
  }
  float* q_of(size_t row) const { return w_.qkv + row * w_.qkv_stride + kv_head_ * n_shared_ * shape_.head_dim; }

  Workspace& w_;
  const AttentionShape& shape_;
  size_t layer_;
  size_t kv_head_;
  size_t n_shared_;
};

// Runs body(segment, first row within it, rows) for item `i` of all runs of at most `at_once` rows.
template <class Body>
void visit_run(std::span<const Segment> segments, size_t at_once, size_t i, const Body& body) {
  for (const Segment& segment : segments) {
    const size_t runs = (segment.n_rows + at_once - 1) / at_once;
    if (i < runs) {
      body(segment, i * at_once, std::min(at_once, segment.n_rows - i * at_once));
      return;
    }
    i -= runs;
  }
}

size_t count_runs(std::span<const Segment> segments, size_t at_once) {
  size_t n = 0;
  for (const Segment& segment : segments) n += (segment.n_rows + at_once - 1) / at_once;
  return n;
}

}  // namespace

void rope_angles(Workspace& w, std::span<const Segment> segments, const RopeFrequencies& rope, size_t set) {
  w.pool.run(count_runs(segments, 1), 16, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      visit_run(segments, 1, i, [&](const Segment& segment, size_t offset, size_t) {
        const size_t at = (set * w.max_rows + segment.first_row + offset) * w.rope_pairs;
        const bool is_long = rope.long_context > 0 && segment.cache->context() > rope.long_context;
        const float* frequencies = is_long ? rope.stretched : rope.usual;
        const auto position = static_cast<double>(segment.first_position + offset);
        for (size_t p = 0; p < w.rope_pairs; ++p) {
          const auto [cosine, sine] = cosine_and_sine(position * static_cast<double>(frequencies[p]));
          w.cosines[at + p] = static_cast<float>(cosine * static_cast<double>(rope.magnitude));
          w.sines[at + p] = static_cast<float>(sine * static_cast<double>(rope.magnitude));
        }
      });
    }
  });
}

void attention(Workspace& w, const AttentionShape& shape, std::span<const Segment> segments, size_t layer) {
  // Where no row sees another row of this step, a thread stores what it then reads itself, and one barrier is spared.
  const bool alone = std::all_of(segments.begin(), segments.end(), [](const Segment& s) { return s.n_rows == 1; });
  if (!alone) {
    const size_t n_rows = count_runs(segments, 1);
    w.pool.run(n_rows, 8, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) {
        visit_run(segments, 1, i, [&](const Segment& segment, size_t offset, size_t) {
          for (size_t h = 0; h < shape.n_kv_heads; ++h) Group(w, shape, layer, h).rotate_and_store(segment, offset);
        });
      }
    });
  }
  const size_t n_items = count_runs(segments, kRowsAtOnce) * shape.n_kv_heads;
  w.pool.run(n_items, 1, [&](size_t begin, size_t end, int) {
    for (size_t i = begin; i < end; ++i) {
      const Group group(w, shape, layer, i % shape.n_kv_heads);
      visit_run(segments, kRowsAtOnce, i / shape.n_kv_heads, [&](const Segment& segment, size_t offset, size_t n_rows) {
        if (alone) group.rotate_and_store(segment, offset);
        group.attend(segment, offset, n_rows);
      });
    }
  });
}

}  // namespace pyinfer
