// Every entry of the kernel table, on every instruction set that runs here, against reference.h: integer parts exactly, float
// parts within k * u * (sum of the magnitudes of the terms), where u = 2^-24 and k counts the roundings on the way to a result.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "base/buffer.h"
#include "base/error.h"
#include "check.h"
#include "kernels/dispatch.h"
#include "packed.h"
#include "random.h"
#include "reference.h"

using namespace pyinfer;

namespace {

constexpr double u = 0x1p-24;
constexpr float untouched = -12345.0f;

const std::vector<Format> all_formats = {
#define PYINFER_FORMAT(name, type) Format::name,
#include "formats/formats.inc"
#undef PYINFER_FORMAT
};

std::vector<Format> quantised_formats() {
  std::vector<Format> quantised;
  for (const Format format : all_formats)
    if (reference::is_quantised(format)) quantised.push_back(format);
  return quantised;
}

template <class Each>
void on_every_isa(Each each) {
  for (const Isa& isa : isas())
    if (isa.runs_here()) each(*isa.table());
}

// A product with all that surrounds it: aligned copies, a panel, an output with room around.
struct Product {
  Format format;
  std::size_t rows, cols;
  const std::vector<std::uint8_t>& packed;
  bool int8;

  // (n_rows, stride): what the kernel makes of n_rows activations (n_rows, cols), on top of `before`.
  std::vector<float> run(const Kernels& kernels, const std::vector<float>& x, int n_rows,
                         const std::vector<float>* before) const {
    const std::size_t panel_cols = reference::padded(cols, kPanelCols), out_stride = stride();
    const std::size_t row_bytes = int8 ? panel_cols / 32 * kPanelBlockBytes : panel_cols * 4;
    Buffer<std::uint8_t> panel(row_bytes * static_cast<std::size_t>(n_rows)), tiles(packed.size());
    std::copy(packed.begin(), packed.end(), tiles.data());
    (int8 ? kernels.pack_int8 : kernels.pack_f32)(x.data(), cols, n_rows, cols, panel.data());
    std::vector<float> out(static_cast<std::size_t>(n_rows) * out_stride, untouched);
    if (before != nullptr) out = *before;
    const std::size_t n_tiles = reference::padded(rows, 16) / 16, tile_bytes = packed.size() / n_tiles;
    const std::size_t n_groups = reference::padded_cols(format, cols) / reference::columns_of_group(format);
    const MatmulArgs args{tiles.data(), n_tiles,    tile_bytes, n_groups,         panel.data(),
                          n_rows,       out.data(), out_stride, before != nullptr};
    (int8 ? kernels.matmul_int8 : kernels.matmul_f32)[static_cast<std::size_t>(format)](args);
    return out;
  }

  // One tile wider than it must be: the kernel may not write there.
  std::size_t stride() const { return reference::padded(rows, 16) + 16; }

  reference::Sum expected(std::size_t row, const float* x) const {
    return int8 ? reference::dot_int8(format, packed, cols, row, x) : reference::dot_f32(format, packed, cols, row, x);
  }

  // Roundings on the way to one output. int8: a term a run, and one a block for the minimum; each has a product of two scales, the
  // product with the integer, and a sum. f32: two sums of half the columns each, of weights that round once.
  double roundings() const {
    const auto n = static_cast<double>(reference::padded(cols, 64));
    return int8 ? n / static_cast<double>(reference::run(format)) + (reference::has_minimum(format) ? n / 32 : 0) + 4
                : n / 2 + 5;
  }
};

// Odd sizes; the K formats have columns in multiples of 256.
std::vector<std::pair<std::size_t, std::size_t>> shapes(Format format) {
  if (reference::is_k(format)) return {{1, 256}, {16, 512}, {33, 768}, {5, 1024}};
  return {{1, 1}, {16, 32}, {17, 33}, {33, 64}, {16, 100}, {48, 172}, {5, 576}};
}

void check_product(const Kernels& kernels, const Product& product, Random& random) {
  const int most = kernels.panel_rows;
  const std::vector<float> x = random.normals(static_cast<std::size_t>(most) * product.cols);
  std::vector<float> before = random.normals(static_cast<std::size_t>(most) * product.stride());
  for (int n_rows = 1; n_rows <= most; ++n_rows) {
    const std::vector<float> out = product.run(kernels, x, n_rows, nullptr);
    before.resize(out.size());
    const std::vector<float> added = product.run(kernels, x, n_rows, &before);
    for (std::size_t r = 0; r < static_cast<std::size_t>(n_rows); ++r) {
      for (std::size_t row = 0; row < product.rows; ++row) {
        const std::size_t at = r * product.stride() + row;
        const reference::Sum expected = product.expected(row, &x[r * product.cols]);
        CHECK_NEAR(out[at], expected.value, product.roundings() * u * expected.magnitude);
        CHECK_EQUAL(added[at], before[at] + out[at]);
      }
      for (std::size_t past = product.stride() - 16; past < product.stride(); ++past)
        CHECK_EQUAL(out[r * product.stride() + past], untouched);
    }
    before.resize(static_cast<std::size_t>(most) * product.stride());
  }
}

// The bits of a row do not depend on how many others share its panel, nor on which.
void check_rows_alone(const Kernels& kernels, const Product& product, Random& random) {
  const int most = kernels.panel_rows;
  const std::vector<float> x = random.normals(static_cast<std::size_t>(most) * product.cols);
  const std::vector<float> together = product.run(kernels, x, most, nullptr);
  for (int r = 0; r < most; ++r) {
    const auto first = x.begin() + r * static_cast<std::ptrdiff_t>(product.cols);
    const std::vector<float> alone =
        product.run(kernels, {first, first + static_cast<std::ptrdiff_t>(product.cols)}, 1, nullptr);
    for (std::size_t row = 0; row < product.rows; ++row)
      CHECK_EQUAL(together[static_cast<std::size_t>(r) * product.stride() + row], alone[row]);
  }
}

// Sets the scales of one weight to 1 and its minimum to 0 or ±1; in the first rows also the integer to an end of its range.
void simplify(Format format, std::vector<std::uint8_t>& packed, const reference::Place& place, std::size_t row) {
  const std::uint16_t one = 0x3c00, minimum = row % 2 ? one : 0;
  std::memcpy(&packed[place.d], &one, 2);
  if (place.m != 0) std::memcpy(&packed[place.m], &minimum, 2);
  if (place.scale != 0) packed[place.scale] = 1;
  if (place.least != 0) packed[place.least] = 1;
  if (row >= 4) return;
  const bool eight = reference::bits(format) == 8;
  packed[place.q] = row < 2 ? (eight ? 0x80 : 0xff) : (eight ? 0x7f : 0x00);
  if (place.high_mask != 0) packed[place.high] = row < 2 ? 0xff : 0x00;
}

// Rows of activations that are their own int8: every block has a 127. The first row is all -127, the second all 127.
std::vector<float> whole_numbers(Random& random, std::size_t n_rows, std::size_t cols) {
  std::vector<float> x(n_rows * cols);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(static_cast<int>(random.below(255)) - 127);
    if (i % cols % 32 == 0 || i < 2 * cols) x[i] = i < cols ? -127.0f : 127.0f;
  }
  return x;
}

template <class T>
T read_at(const std::uint8_t* bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes + offset, sizeof value);
  return value;
}

// An int8 panel as its description in kernels.h has it.
void check_panel(const Kernels& kernels, const std::vector<float>& x, std::size_t n_rows, std::size_t cols,
                 std::size_t stride) {
  const std::size_t n_blocks = reference::padded(cols, kPanelCols) / 32, block_bytes = kPanelBlockBytes * n_rows;
  std::vector<std::uint8_t> panel(n_blocks * block_bytes, 0xaa);
  kernels.pack_int8(x.data(), stride, static_cast<int>(n_rows), cols, panel.data());
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::uint8_t* block = panel.data() + b * block_bytes;
    for (std::size_t r = 0; r < n_rows; ++r) {
      const std::size_t n = b * 32 < cols ? std::min<std::size_t>(32, cols - b * 32) : 0;
      const reference::QuantizedBlock expected = reference::quantize(&x[r * stride] + b * 32, n);
      for (std::size_t i = 0; i < 32; ++i)
        CHECK_EQUAL(static_cast<std::int8_t>(block[4 * (i / 4 * n_rows + r) + i % 4]), expected.q[i]);
      const std::uint8_t* tail = block + 32 * n_rows;
      CHECK_EQUAL(read_at<float>(tail, 4 * r), expected.scale);
      CHECK_EQUAL(read_at<float>(tail, 4 * (n_rows + r)), expected.scale * static_cast<float>(expected.sum));
      CHECK_EQUAL(read_at<std::int32_t>(tail, 4 * (2 * n_rows + r)), -8 * expected.sum);
      CHECK_EQUAL(read_at<std::int32_t>(tail, 4 * (3 * n_rows + r)), -8 * expected.last_sum);
    }
  }
}

// Keys and values of one KV head in pages that hold other things too, as attention meets them.
struct Cache {
  std::size_t head_dim, v_stride, k_offset, v_offset;
  std::vector<Buffer<std::uint16_t>> pages;
  std::vector<const std::uint16_t*> starts;
  std::vector<std::vector<double>> keys, values;  // (position, head_dim), as the halves hold them

  Cache(const Kernels& kernels, Random& random, std::size_t dim, std::size_t n_positions)
      : head_dim(dim), v_stride(reference::padded(dim, 16)), k_offset(192), v_offset(192 + dim * kPagePositions + 64) {
    for (std::size_t page = 0; page * kPagePositions < n_positions; ++page) {
      pages.emplace_back(v_offset + v_stride * kPagePositions + 64);
      starts.push_back(pages.back().data());
    }
    for (std::size_t position = 0; position < n_positions; ++position) add(kernels, random, position);
  }

  void add(const Kernels& kernels, Random& random, std::size_t position) {
    const std::vector<float> k = random.normals(head_dim), v = random.normals(head_dim);
    std::uint16_t* page = pages[position / kPagePositions].data();
    const std::size_t slot = position % kPagePositions;
    kernels.store_kv(k.data(), v.data(), static_cast<int>(head_dim), page + k_offset + slot,
                     page + v_offset + slot * v_stride);
    keys.emplace_back(), values.emplace_back();
    for (const float value : k) keys.back().push_back(reference::half_value(reference::nearest_half(value)));
    for (const float value : v) values.back().push_back(reference::half_value(reference::nearest_half(value)));
  }

  // (n_rows, n_heads * head_dim + gap)
  std::vector<float> attend(const Kernels& kernels, const std::vector<float>& q, std::size_t n_rows,
                            std::size_t n_heads, std::size_t first, std::size_t row_stride) const {
    std::vector<float> out(q.size(), untouched);
    AttendArgs args{};
    args.q = q.data();
    args.out = out.data();
    args.q_stride = args.out_stride = row_stride;
    args.n_rows = static_cast<int>(n_rows);
    args.n_heads = static_cast<int>(n_heads);
    args.head_dim = static_cast<int>(head_dim);
    args.first_position = static_cast<int>(first);
    args.pages = starts.data();
    args.k_offset = k_offset;
    args.v_offset = v_offset;
    args.v_stride = static_cast<int>(v_stride);
    kernels.attend(args);
    return out;
  }

  // One query over the first `n_seen` positions. A score is a sum of head_dim products; an error e in it moves its weight by the
  // factor 1 + e, and the whole distribution by at most twice that. Weights and outputs are sums over n_seen positions, scaled
  // once a page; e^x is within 2 ulp.
  void check(const float* q, const float* out, std::size_t n_seen) const {
    std::vector<double> scores;
    double score_error = 0;
    for (std::size_t position = 0; position < n_seen; ++position) {
      reference::Sum score;
      for (std::size_t d = 0; d < head_dim; ++d) score.add(q[d] * keys[position][d]);
      scores.push_back(score.value);
      score_error = std::max(score_error, static_cast<double>(head_dim + 2) * u * score.magnitude);
    }
    const std::vector<double> p = reference::softmax(scores);
    const auto n = static_cast<double>(n_seen);
    for (std::size_t d = 0; d < head_dim; ++d) {
      reference::Sum sum;
      for (std::size_t position = 0; position < n_seen; ++position) sum.add(p[position] * values[position][d]);
      CHECK_NEAR(out[d], sum.value,
                 (2 * score_error + (2 * n + 8 * std::ceil(n / int{kPagePositions}) + 8) * u) * sum.magnitude);
    }
  }
};

}  // namespace

// Checks what PYINFER_ISA asks for in the environment that the tests run in; the test below runs it in all of them.
TEST(isa, active_is_what_the_environment_asks_for) {
  const char* asked = std::getenv("PYINFER_ISA");
  std::string expected;
  for (const Isa& isa : isas())
    if (isa.runs_here() && (asked == nullptr || std::string(asked).empty() || std::string(asked) == isa.name))
      expected = isa.name;
  if (expected.empty()) {
    CHECK_ERROR(active_kernels(), request, std::string("found ") + asked);
    CHECK_ERROR(active_kernels(), request, "PYINFER_ISA: expected one of scalar");
  } else {
    CHECK_EQUAL(std::string(active_kernels().isa), expected);
  }
}

TEST(isa, each_can_be_forced_and_no_other) {
  std::vector<std::string> names = {"", "nonsense", "scala", "scalar2", "AVX2"};
  for (const Isa& isa : isas()) names.push_back(isa.name);
  for (const std::string& name : names) {
    const std::string command = "PYINFER_ISA='" + name + "' '" + check::program + "' isa.active_is > /dev/null";
    CHECK_EQUAL(std::system(command.c_str()), 0);
  }
}

TEST(isa, tables_bear_their_names_and_are_full) {
  CHECK_EQUAL(std::string(isas().front().name), "scalar");
  CHECK(isas().front().runs_here());
  on_every_isa([](const Kernels& kernels) {
    CHECK(kernels.panel_rows >= 1 && kernels.panel_rows <= kMaxPanelRows);
    for (const Format format : all_formats) {
      CHECK(kernels.matmul_f32[static_cast<std::size_t>(format)] != nullptr);
      CHECK_EQUAL(kernels.matmul_int8[static_cast<std::size_t>(format)] != nullptr, reference::is_quantised(format));
    }
    CHECK(kernels.matmul_int8[0] == nullptr && kernels.matmul_f32[0] == nullptr);
  });
  for (const Isa& isa : isas())
    if (isa.runs_here()) CHECK_EQUAL(std::string(isa.table()->isa), isa.name);
}

TEST(kernels, int8_panels) {
  on_every_isa([](const Kernels& kernels) {
    Random random(1);
    for (std::size_t n_rows = 1; n_rows <= static_cast<std::size_t>(kernels.panel_rows); ++n_rows)
      for (const std::size_t cols : {1, 31, 32, 33, 64, 65, 96, 172})
        check_panel(kernels, random.normals(n_rows * (cols + 3)), n_rows, cols, cols + 3);
  });
}

TEST(kernels, int8_panels_of_zeros_ties_and_small_and_large_values) {
  on_every_isa([](const Kernels& kernels) {
    Random random(2);
    std::vector<float> x(6 * 32, 0.0f);
    for (std::size_t i = 0; i < 32; ++i) {
      x[32 + i] = static_cast<float>(i) - 15.5f;  // halves between integers once the greatest is 127
      x[64 + i] = static_cast<float>(random.normal()) * 1e-30f;
      x[96 + i] = static_cast<float>(random.normal()) * 1e35f;
      x[128 + i] = i % 2 ? 127.0f : -127.0f;
    }
    x[32] = 127.0f;
    x[160 + 5] = -3.0f;  // one value alone
    check_panel(kernels, x, 1, x.size(), x.size());
    check_panel(kernels, x, 3, 64, 64);
  });
}

// 127 / max|x| is infinite for these; the block must come out as good as zero, not as arbitrary integers.
TEST(kernels, int8_panels_of_subnormal_values) {
  on_every_isa([](const Kernels& kernels) {
    for (const float value : {1e-40f, -1e-45f, 3e-37f}) {
      std::vector<float> x(64, 0.0f);
      x[3] = value;
      std::vector<std::uint8_t> panel(2 * kPanelBlockBytes, 0xaa);
      kernels.pack_int8(x.data(), 64, 1, 64, panel.data());
      const double scale = read_at<float>(panel.data(), 32);
      for (std::size_t i = 0; i < 32; ++i)
        CHECK_NEAR(static_cast<std::int8_t>(panel[i]) * scale, x[i], std::abs(value));
      CHECK(std::abs(read_at<float>(panel.data(), 36)) <= 2 * std::abs(value));
      CHECK(std::abs(read_at<std::int32_t>(panel.data(), 40)) <= 8 * 127);
    }
  });
}

// A NaN or an infinity must reach the logits, where it is an error, and not become some integer.
TEST(kernels, int8_panels_pass_on_what_is_not_finite) {
  on_every_isa([](const Kernels& kernels) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (const std::size_t place : {0, 5, 15, 16, 31}) {
        std::vector<float> x(64, 1.0f);
        x[place] = bad;
        std::vector<std::uint8_t> panel(2 * kPanelBlockBytes, 0xaa);
        kernels.pack_int8(x.data(), 64, 1, 64, panel.data());
        CHECK(!std::isfinite(read_at<float>(panel.data(), 32)));
        CHECK(std::isfinite(read_at<float>(panel.data(), kPanelBlockBytes + 32)));
      }
    }
  });
}

TEST(kernels, f32_panels) {
  on_every_isa([](const Kernels& kernels) {
    Random random(3);
    for (int n_rows = 1; n_rows <= kernels.panel_rows; ++n_rows) {
      for (const std::size_t cols : {1, 63, 64, 65, 172}) {
        const std::size_t padded = reference::padded(cols, kPanelCols), n = static_cast<std::size_t>(n_rows);
        const std::vector<float> x = random.normals(n * (cols + 1));
        std::vector<float> panel(padded * n, untouched);
        kernels.pack_f32(x.data(), cols + 1, n_rows, cols, reinterpret_cast<std::uint8_t*>(panel.data()));
        for (std::size_t c = 0; c < padded; ++c)
          for (std::size_t r = 0; r < n; ++r) CHECK_EQUAL(panel[c * n + r], c < cols ? x[r * (cols + 1) + c] : 0.0f);
      }
    }
  });
}

// All scales are 1 and all sums stay below 2^24, so the result has no rounding to hide behind. The first rows have their integers
// at the ends of the range, and the first activations theirs.
TEST(kernels, integer_products_are_exact) {
  on_every_isa([](const Kernels& kernels) {
    Random random(4);
    for (const Format format : quantised_formats()) {
      for (const std::size_t cols : {32, 64, 100, 256, 512}) {
        if (cols % 256 != 0 && reference::is_k(format)) continue;
        const std::size_t rows = 35;
        std::vector<std::uint8_t> packed = RandomMatrix(random, format, rows, cols, 1.0).bytes;
        for (std::size_t row = 0; row < rows; ++row)
          for (std::size_t col = 0; col < cols; ++col)
            simplify(format, packed, reference::place_of(format, cols, row, col), row);
        const std::vector<float> x = whole_numbers(random, static_cast<std::size_t>(kernels.panel_rows), cols);
        const Product product{format, rows, cols, packed, true};
        const std::vector<float> out = product.run(kernels, x, kernels.panel_rows, nullptr);
        for (std::size_t r = 0; r < static_cast<std::size_t>(kernels.panel_rows); ++r)
          for (std::size_t row = 0; row < rows; ++row)
            CHECK_EQUAL(static_cast<double>(out[r * product.stride() + row]),
                        product.expected(row, &x[r * cols]).value);
      }
    }
  });
}

TEST(kernels, int8_products) {
  on_every_isa([](const Kernels& kernels) {
    Random random(5);
    for (const Format format : quantised_formats())
      for (const auto& [rows, cols] : shapes(format))
        check_product(kernels, {format, rows, cols, RandomMatrix(random, format, rows, cols, 0.05).bytes, true},
                      random);
  });
}

TEST(kernels, f32_products) {
  on_every_isa([](const Kernels& kernels) {
    Random random(6);
    for (const Format format : all_formats)
      for (const auto& [rows, cols] : shapes(format))
        check_product(kernels, {format, rows, cols, RandomMatrix(random, format, rows, cols, 0.05).bytes, false},
                      random);
  });
}

TEST(kernels, products_of_a_row_do_not_depend_on_its_neighbours) {
  on_every_isa([](const Kernels& kernels) {
    Random random(7);
    for (const Format format : all_formats) {
      const std::size_t cols = reference::is_k(format) ? 512 : 172;
      const std::vector<std::uint8_t> packed = RandomMatrix(random, format, 33, cols, 0.05).bytes;
      check_rows_alone(kernels, {format, 33, cols, packed, false}, random);
      if (reference::is_quantised(format)) check_rows_alone(kernels, {format, 33, cols, packed, true}, random);
    }
  });
}

// n squares, all positive, err by n u relative to their sum, half of it after the root; then a quotient, a root, two products.
TEST(kernels, rms_norm) {
  on_every_isa([](const Kernels& kernels) {
    Random random(8);
    for (const std::size_t n : {1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 288, 576, 1000}) {
      const std::vector<float> x = random.normals(n, std::pow(10.0, random.uniform(-4, 4))), weight = random.normals(n);
      for (const float eps : {0.0f, 1e-5f}) {
        std::vector<float> out(n + 1, untouched);
        kernels.rms_norm(x.data(), weight.data(), eps, n, out.data());
        const std::vector<double> expected =
            reference::rms_norm({x.begin(), x.end()}, {weight.begin(), weight.end()}, eps);
        for (std::size_t i = 0; i < n; ++i)
          CHECK_NEAR(out[i], expected[i], (static_cast<double>(n) / 2 + 6) * u * std::abs(expected[i]));
        CHECK_EQUAL(out[n], untouched);
      }
    }
  });
}

// e^x within 2 ulp (4 u), then a sum, a quotient and a product. Below -88 the exponential stays at e^88.
TEST(kernels, swiglu) {
  on_every_isa([](const Kernels& kernels) {
    Random random(9);
    for (const std::size_t n : {16, 48, 160, 1536}) {
      std::vector<float> gate = random.normals(n, std::pow(10.0, random.uniform(-3, 2)));
      const std::vector<float> up = random.normals(n);
      gate[0] = 0.0f, gate[1] = -0.0f, gate[2] = 88.5f, gate[3] = -88.5f, gate[4] = 1e30f, gate[5] = -1e30f,
      gate[6] = -87.3f;
      std::vector<float> out(n + 1, untouched);
      kernels.swiglu(gate.data(), up.data(), n, out.data());
      for (std::size_t i = 0; i < n; ++i) {
        const double expected = reference::silu(gate[i]) * up[i];
        CHECK_NEAR(out[i], expected,
                   8 * u * std::abs(expected) + std::abs(static_cast<double>(gate[i]) * up[i]) * std::exp(-87.99));
      }
      CHECK_EQUAL(out[n], untouched);
      std::vector<float> in_place = gate;
      kernels.swiglu(in_place.data(), up.data(), n, in_place.data());
      for (std::size_t i = 0; i < n; ++i) CHECK_EQUAL(in_place[i], out[i]);
    }
  });
}

TEST(kernels, swiglu_passes_on_nan) {
  on_every_isa([](const Kernels& kernels) {
    for (std::size_t place = 0; place < 16; ++place) {
      std::vector<float> gate(16, 1.0f), up(16, 1.0f), out(16);
      gate[place] = NAN;
      kernels.swiglu(gate.data(), up.data(), 16, out.data());
      for (std::size_t i = 0; i < 16; ++i) CHECK_EQUAL(std::isnan(out[i]), i == place);
    }
  });
}

// Two products, a sum and the scale.
TEST(kernels, rope) {
  on_every_isa([](const Kernels& kernels) {
    Random random(10);
    for (const auto& [half, n] : std::vector<std::pair<std::size_t, std::size_t>>{
             {1, 2}, {4, 8}, {3, 10}, {32, 64}, {16, 80}, {0, 6}, {64, 128}}) {
      std::vector<double> angles(half);
      std::vector<float> cosines(half), sines(half), head = random.normals(n + 1);
      for (std::size_t i = 0; i < half; ++i) {
        angles[i] = random.uniform(0, 10000);
        cosines[i] = static_cast<float>(std::cos(angles[i]));
        sines[i] = static_cast<float>(std::sin(angles[i]));
      }
      std::vector<double> expected(head.begin(), head.end());
      reference::rotate(expected.data(), angles, 1);
      const std::vector<float> before = head;
      const float scale = static_cast<float>(random.uniform(0.1, 2));
      kernels.rope(head.data(), cosines.data(), sines.data(), half, n, scale);
      for (std::size_t i = 0; i < n; ++i) {
        const std::size_t pair = half ? i % half : 0;
        const double terms =
            i < 2 * half ? std::abs(before[pair]) + std::abs(before[pair + half]) : std::abs(before[i]);
        CHECK_NEAR(head[i], expected[i] * scale, 4 * u * scale * terms);
      }
      CHECK_EQUAL(head[n], before[n]);
    }
  });
}

TEST(kernels, keys_and_values_are_stored_as_the_nearest_halves) {
  on_every_isa([](const Kernels& kernels) {
    Random random(11);
    for (const std::size_t head_dim : {2, 6, 8, 14, 16, 48, 64, 80, 128, 1024}) {
      std::vector<float> k = random.normals(head_dim), v = random.normals(head_dim, 1e4);
      k[0] = 1e6f, v[0] = 65520.0f, k[1] = -INFINITY, v[1] = -1e-7f;
      std::vector<std::uint16_t> keys(head_dim * kPagePositions, 0xabcd), values(head_dim + 1, 0xabcd);
      kernels.store_kv(k.data(), v.data(), static_cast<int>(head_dim), keys.data() + 5, values.data());
      const auto stored = [](float x) { return reference::nearest_half(std::clamp(x, -65504.0f, 65504.0f)); };
      for (std::size_t i = 0; i < keys.size(); ++i)
        CHECK_EQUAL(keys[i], i % kPagePositions == 5 ? stored(k[i / kPagePositions]) : 0xabcd);
      for (std::size_t i = 0; i < head_dim; ++i) CHECK_EQUAL(values[i], stored(v[i]));
      CHECK_EQUAL(values[head_dim], 0xabcd);
    }
  });
}

TEST(kernels, attention) {
  on_every_isa([](const Kernels& kernels) {
    Random random(12);
    for (const std::size_t head_dim : {2, 8, 48, 64, 80, 128}) {
      for (const std::size_t first : {0, 1, 62, 63, 64, 65, 127, 200}) {
        const std::size_t n_rows = 1 + random.below(5), n_heads = 1 + random.below(7),
                          row_stride = n_heads * head_dim + 3;
        const Cache cache(kernels, random, head_dim, first + n_rows);
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

// One row at a time gives the same bits as many: prefill in chunks of any size equals decode.
TEST(kernels, attention_of_a_row_does_not_depend_on_its_neighbours) {
  on_every_isa([](const Kernels& kernels) {
    Random random(13);
    const std::size_t head_dim = 64, n_heads = 3, n_rows = 150, row_stride = n_heads * head_dim;
    const Cache cache(kernels, random, head_dim, n_rows);
    const std::vector<float> q = random.normals(n_rows * row_stride, 0.4);
    const std::vector<float> together = cache.attend(kernels, q, n_rows, n_heads, 0, row_stride);
    for (std::size_t row = 0; row < n_rows; ++row) {
      const std::vector<float> mine(q.begin() + static_cast<std::ptrdiff_t>(row * row_stride),
                                    q.begin() + static_cast<std::ptrdiff_t>((row + 1) * row_stride));
      const std::vector<float> alone = cache.attend(kernels, mine, 1, n_heads, row, row_stride);
      CHECK(std::equal(alone.begin(), alone.end(), together.begin() + static_cast<std::ptrdiff_t>(row * row_stride)));
    }
  });
}

// Scores of ±1000: weights of exactly 0 and 1, and no overflow on the way.
TEST(kernels, attention_with_extreme_scores) {
  on_every_isa([](const Kernels& kernels) {
    Random random(14);
    const std::size_t head_dim = 16, n_seen = 130;
    const Cache cache(kernels, random, head_dim, n_seen);
    const std::vector<float> q = random.normals(head_dim, 200.0);
    const std::vector<float> out = cache.attend(kernels, q, 1, 1, n_seen - 1, head_dim);
    cache.check(q.data(), out.data(), n_seen);
  });
}
