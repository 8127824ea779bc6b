// Attention over pages of keys and values.
#include <algorithm>
#include <cmath>

#include "base/buffer.h"
#include "check.h"
#include "every_isa.h"
#include "random.h"

using namespace pyinfer;

namespace {

// Keys and values of one KV head in pages that hold other things too, as attention meets them.
struct Cache {
  KvFormat format;
  std::size_t head_dim, v_stride, k_offset, v_offset;
  std::vector<Buffer<std::uint8_t>> pages;
  std::vector<const std::uint8_t*> starts;
  std::vector<std::vector<double>> keys, values;  // (position, head_dim), as the cache holds them
  std::vector<double> scales;                     // of values as integers of 16 bits

  Cache(const Kernels& kernels, Random& random, KvFormat kind, std::size_t dim, std::size_t n_positions)
      : format(kind),
        head_dim(dim),
        v_stride(reference::padded(dim, 16)),
        k_offset(192),
        v_offset(192 + (2 * dim + 4) * kPagePositions + 64) {
    for (std::size_t position = 0; position < n_positions; ++position) {
      const std::vector<float> k = random.normals(head_dim), v = random.normals(head_dim);
      put(kernels, position, k, v);
    }
  }

  // Stores a position behind those that are there, or again.
  void put(const Kernels& kernels, std::size_t position, const std::vector<float>& k, const std::vector<float>& v) {
    if (position / kPagePositions == pages.size()) {
      pages.emplace_back(v_offset + (2 * v_stride + 4) * kPagePositions + 64);
      starts.push_back(pages.back().data());
    }
    std::uint8_t* page = pages[position / kPagePositions].data();
    kernels.store_kv[format](k.data(), v.data(), static_cast<int>(head_dim), static_cast<int>(v_stride),
                             static_cast<int>(position % kPagePositions), page + k_offset, page + v_offset);
    const std::size_t n = std::max(keys.size(), position + 1);
    keys.resize(n), values.resize(n), scales.resize(n);
    keys[position] = as_stored(k, 8191), values[position] = as_stored(v, 4095),
    scales[position] = reference::greatest(v) / 4095;
  }

  std::vector<double> as_stored(const std::vector<float>& x, float most) const {
    if (format != kKvF16) return reference::as_integers(x, format == kKvQ8 ? 127 : most);
    std::vector<double> stored;
    for (const float value : x) stored.push_back(reference::half_value(reference::nearest_half(value)));
    return stored;
  }

  // (n_rows, n_heads * head_dim + gap)
  std::vector<float> attend(const Kernels& kernels, const std::vector<float>& q, std::size_t n_rows,
                            std::size_t n_heads, std::size_t first, std::size_t row_stride, std::size_t window = 0,
                            float softcap = 0) const {
    std::vector<float> out(q.size(), untouched);
    AttendArgs args{};
    args.q = q.data();
    args.out = out.data();
    args.q_stride = args.out_stride = row_stride;
    args.n_rows = static_cast<int>(n_rows);
    args.n_heads = static_cast<int>(n_heads);
    args.head_dim = static_cast<int>(head_dim);
    args.first_position = static_cast<int>(first);
    args.window = static_cast<int>(window);
    args.softcap = softcap;
    args.pages = starts.data();
    args.k_offset = k_offset;
    args.v_offset = v_offset;
    args.v_stride = static_cast<int>(v_stride);
    kernels.attend[format](args);
    return out;
  }

  // One query over the first `n_seen` positions. A score is a sum of head_dim products; an error e in it moves its weight by the
  // factor 1 + e, and the whole distribution by at most twice that. Weights and outputs are sums over n_seen positions, scaled
  // once a page; e^x is within 2 ulp. A soft cap has a slope of at most 1 and adds six roundings of cap. With keys and values as integers of
  // 16 bits a query is integers, too, exactly these, and a page's weights are off by up to half of 1/8191 of the greatest, each times its scale.
  void check(const float* given, const float* out, std::size_t n_seen, std::size_t window = 0,
             float softcap = 0) const {
    const std::size_t begin = window > 0 && n_seen > window ? n_seen - window : 0;
    const std::vector<float> row(given, given + head_dim);
    const std::vector<double> q =
        format == kKvI16 ? reference::as_integers(row, 4095) : std::vector<double>(row.begin(), row.end());
    std::vector<double> scores;
    double score_error = 0;
    for (std::size_t position = begin; position < n_seen; ++position) {
      reference::Sum score;
      for (std::size_t d = 0; d < head_dim; ++d) score.add(q[d] * keys[position][d]);
      scores.push_back(reference::soft_cap(score.value, softcap));
      score_error = std::max(score_error, static_cast<double>(head_dim + 3) * u * score.magnitude + 6 * u * softcap);
    }
    const std::vector<double> p = reference::softmax(scores);
    const auto n = static_cast<double>(n_seen - begin + kPagePositions);
    for (std::size_t d = 0; d < head_dim; ++d) {
      reference::Sum sum;
      for (std::size_t i = 0; i < p.size(); ++i) sum.add(p[i] * values[begin + i][d]);
      CHECK_NEAR(out[d], sum.value,
                 (2 * score_error + (2 * n + 8 * std::ceil(n / int{kPagePositions}) + 9) * u) * sum.magnitude +
                     (format == kKvI16 ? rounded_weights(p, begin, d) : 0));
    }
  }

  // How far rounding weights `p` of positions from `begin` on to integers may move output `d`.
  double rounded_weights(const std::vector<double>& p, std::size_t begin, std::size_t d) const {
    double total = 0;
    for (std::size_t i = 0, end = 0; i < p.size(); i = end) {
      end = std::min(p.size(), (begin + i) / kPagePositions * kPagePositions + kPagePositions - begin);
      double greatest = 0, integers = 0;
      for (std::size_t j = i; j < end; ++j) {
        const double scale = scales[begin + j];
        greatest = std::max(greatest, p[j] * scale);
        integers += std::abs(values[begin + j][d]) / scale;
      }
      total += 0.501 * greatest / 8191 * integers;
    }
    return total;
  }
};

}  // namespace

TEST(attend, matches_softmax) {
  on_every_isa([](const Kernels& kernels) {
    Random random(12);
    for (const std::size_t head_dim : {2, 8, 48, 64, 80, 128, 300, 1024}) {
      for (const std::size_t first : {0, 1, 62, 63, 64, 65, 127, 200}) {
        const std::size_t n_rows = 1 + random.below(5), n_heads = 1 + random.below(7),
                          row_stride = n_heads * head_dim + 3;
        const auto format = static_cast<KvFormat>(random.below(kKvFormats));
        const Cache cache(kernels, random, format, head_dim, first + n_rows);
        const std::vector<float> q = random.normals(n_rows * row_stride, 3 / std::sqrt(static_cast<double>(head_dim)));
        const std::vector<float> out = cache.attend(kernels, q, n_rows, n_heads, first, row_stride);
        for (std::size_t row = 0; row < n_rows; ++row) {
          for (std::size_t head = 0; head < n_heads; ++head) {
            const std::size_t at = row * row_stride + head * head_dim;
            cache.check(&q[at], &out[at], first + row + 1);
          }
          for (std::size_t gap = n_heads * head_dim; gap < row_stride; ++gap)
            CHECK_EQUAL(out[row * row_stride + gap], untouched);
        }
      }
    }
  });
}

TEST(attend, sees_only_its_window_and_caps_its_scores) {
  on_every_isa([](const Kernels& kernels) {
    Random random(15);
    for (const std::size_t window : {1, 5, 63, 64, 65, 130, 1000}) {
      for (const float softcap : {0.0f, 0.7f, 50.0f}) {
        for (const std::size_t first : {0, 60, 63, 64, 127, 200, 300}) {
          const std::size_t head_dim = 24, n_rows = 1 + random.below(80), n_heads = 1 + random.below(5);
          const std::size_t stride = n_heads * head_dim;
          const auto format = static_cast<KvFormat>(random.below(kKvFormats));
          const Cache cache(kernels, random, format, head_dim, first + n_rows);
          const std::vector<float> q = random.normals(n_rows * stride, 0.6);
          const std::vector<float> out = cache.attend(kernels, q, n_rows, n_heads, first, stride, window, softcap);
          for (std::size_t row = 0; row < n_rows; ++row) {
            for (std::size_t head = 0; head < n_heads; ++head) {
              const std::size_t at = row * stride + head * head_dim;
              cache.check(&q[at], &out[at], first + row + 1, window, softcap);
            }
          }
        }
      }
    }
  });
}

// One row at a time gives the same bits as many: prefill in chunks of any size equals decode.
void check_neighbours(KvFormat format, std::size_t window, float softcap) {
  on_every_isa([&](const Kernels& kernels) {
    Random random(13);
    const std::size_t head_dim = 64, n_heads = 3, n_rows = 150, row_stride = n_heads * head_dim;
    const Cache cache(kernels, random, format, head_dim, n_rows);
    const std::vector<float> q = random.normals(n_rows * row_stride, 0.4);
    const std::vector<float> together = cache.attend(kernels, q, n_rows, n_heads, 0, row_stride, window, softcap);
    for (std::size_t row = 0; row < n_rows; ++row) {
      const std::vector<float> mine(q.begin() + static_cast<std::ptrdiff_t>(row * row_stride),
                                    q.begin() + static_cast<std::ptrdiff_t>((row + 1) * row_stride));
      const std::vector<float> alone = cache.attend(kernels, mine, 1, n_heads, row, row_stride, window, softcap);
      CHECK(std::equal(alone.begin(), alone.end(), together.begin() + static_cast<std::ptrdiff_t>(row * row_stride)));
    }
  });
}

TEST(attend, a_row_does_not_depend_on_its_neighbours) {
  for (const KvFormat format : {kKvF16, kKvQ8, kKvI16}) {
    check_neighbours(format, 0, 0);
    for (const std::size_t window : {2, 64, 90}) check_neighbours(format, window, 3);
  }
}

// Scores of ±1000: weights of exactly 0 and 1, and no overflow on the way.
TEST(attend, with_extreme_scores) {
  on_every_isa([](const Kernels& kernels) {
    for (const KvFormat format : {kKvF16, kKvQ8, kKvI16}) {
      Random random(14);
      const std::size_t head_dim = 16, n_seen = 130;
      const Cache cache(kernels, random, format, head_dim, n_seen);
      const std::vector<float> q = random.normals(head_dim, 200.0);
      const std::vector<float> out = cache.attend(kernels, q, 1, 1, n_seen - 1, head_dim);
      cache.check(q.data(), out.data(), n_seen);
    }
  });
}

// All integers at their most: sums of a page are 4095 * 8191 * 64, within a few millionths of 2^31.
TEST(attend, with_the_largest_integers) {
  on_every_isa([](const Kernels& kernels) {
    for (const std::size_t head_dim : {64, 128}) {
      for (const float sign : {1.0f, -1.0f}) {
        Random random(17);
        Cache cache(kernels, random, kKvI16, head_dim, 0);
        const std::vector<float> k(head_dim, sign * 2.0f), v(head_dim, sign), q(head_dim, 0.01f);
        for (std::size_t position = 0; position < 130; ++position) cache.put(kernels, position, k, v);
        const std::vector<float> out = cache.attend(kernels, q, 1, 1, 129, head_dim);
        cache.check(q.data(), out.data(), 130);
      }
    }
  });
}

// What is not a number shows where it is seen, and nowhere else: not in rows before it, in its page or in its pair of positions either.
TEST(attend, nan_is_seen_by_those_behind_it_alone) {
  on_every_isa([](const Kernels& kernels) {
    const std::size_t head_dim = 32, n = 70;
    for (const KvFormat format : {kKvF16, kKvQ8, kKvI16}) {
      for (const bool in_key : {false, true}) {
        for (const std::size_t bad : {0, 1, 40, 41, 64, 69}) {
          Random random(18);
          Cache cache(kernels, random, format, head_dim, n);
          const std::vector<float> q = random.normals(n * head_dim, 0.5);
          const std::vector<float> clean = cache.attend(kernels, q, n, 1, 0, head_dim);
          std::vector<float> k = random.normals(head_dim), v = random.normals(head_dim);
          (in_key ? k : v)[5] = NAN;
          cache.put(kernels, bad, k, v);
          const std::vector<float> out = cache.attend(kernels, q, n, 1, 0, head_dim);
          for (std::size_t row = 0; row < n; ++row) {
            for (std::size_t at = row * head_dim; at < (row + 1) * head_dim; ++at)
              CHECK(row < bad ? out[at] == clean[at] : std::isnan(out[at]));
          }
        }
      }
    }
  });
}
