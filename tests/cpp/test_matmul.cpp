// Panels of activations, and their products with packed weights.
#include <algorithm>
#include <numeric>

#include "base/buffer.h"
#include "check.h"
#include "every_isa.h"
#include "packed.h"
#include "random.h"

using namespace pyinfer;

namespace {

// A product with all that surrounds it: aligned copies, a panel, an output with room around.
struct Product {
  Format format;
  std::size_t rows, cols;
  const std::vector<std::uint8_t>& packed;
  bool int8;
  int scale_blocks = 1;

  // (n_rows, stride): what the kernel makes of n_rows activations (n_rows, cols), on top of `before`.
  std::vector<float> run(const Kernels& kernels, const std::vector<float>& x, int n_rows,
                         const std::vector<float>* before) const {
    std::vector<float> out(static_cast<std::size_t>(n_rows) * stride(), untouched);
    if (before != nullptr) out = *before;
    run(kernels, Operands(*this, kernels, x, n_rows), out.data(), before != nullptr, {});
    return out;
  }

  // Aligned copies of n_rows activations (n_rows, cols), as panels, and of the weights.
  struct Operands {
    Operands(const Product& product, const Kernels& kernels, const std::vector<float>& x, int count)
        : n_rows(count),
          panel_stride(reference::padded(product.cols, kPanelCols) + gap),
          panel(static_cast<std::size_t>(count) *
                (product.int8 ? (panel_stride - gap) / 32 * kPanelBlockBytes : panel_stride * sizeof(float))),
          tiles(product.packed.size()) {
      std::copy(product.packed.begin(), product.packed.end(), tiles.data());
      if (product.int8) {
        for (int r = 0; r < n_rows; r += kernels.panel_rows)
          kernels.pack_int8(&x[static_cast<std::size_t>(r) * product.cols], product.cols,
                            std::min(kernels.panel_rows, n_rows - r), product.cols, product.scale_blocks,
                            panel.data() + static_cast<std::size_t>(r) * (panel_stride - gap) / 32 * kPanelBlockBytes);
      } else {
        product.put_floats(x, static_cast<std::size_t>(n_rows), panel_stride, reinterpret_cast<float*>(panel.data()));
      }
    }
    static constexpr std::size_t gap = 3;  // floats between the rows of a float panel
    int n_rows;
    std::size_t panel_stride;
    Buffer<std::uint8_t> panel, tiles;
  };

  // The kernel's arguments for an output (n_rows, out_stride).
  MatmulArgs args(const Operands& operands, float* out, std::size_t out_stride, bool accumulate) const {
    const std::size_t n_tiles = reference::padded(rows, 16) / 16;
    const std::size_t n_groups = reference::padded_cols(format, cols) / reference::columns_of_group(format);
    return {operands.tiles.data(),
            n_tiles,
            packed.size() / n_tiles,
            n_groups,
            operands.panel.data(),
            operands.panel_stride,
            operands.n_rows,
            out,
            out_stride,
            accumulate,
            scale_blocks};
  }

  void run(const Kernels& kernels, const Operands& operands, float* out, bool accumulate,
           const std::vector<AddedProduct>& added) const {
    MatmulArgs all = args(operands, out, stride(), accumulate);
    all.added = added.data(), all.n_added = added.size();
    (int8 ? kernels.matmul_int8 : kernels.matmul_f32)[static_cast<std::size_t>(format)](all);
  }

  // A float panel, with NaN between its rows, where no kernel may read.
  void put_floats(const std::vector<float>& x, std::size_t n_rows, std::size_t panel_stride, float* panel) const {
    for (std::size_t r = 0; r < n_rows; ++r) {
      float* row = panel + r * panel_stride;
      std::fill(row, row + panel_stride, NAN);
      std::fill(row + cols, row + reference::padded(cols, kPanelCols), 0.0f);
      std::copy_n(&x[r * cols], cols, row);
    }
  }

  // One tile wider than it must be: the kernel may not write there.
  std::size_t stride() const { return reference::padded(rows, 16) + 16; }

  // Of one row of activations, (rows) outputs.
  std::vector<reference::Sum> expected(const reference::Weights& weights, const float* x) const {
    const auto blocks = reference::quantize_all({x, cols}, static_cast<std::size_t>(scale_blocks));
    std::vector<reference::Sum> sums;
    for (std::size_t row = 0; row < rows; ++row)
      sums.push_back(int8 ? reference::dot_int8(weights, row, blocks) : reference::dot_f32(weights, row, x));
    return sums;
  }

  // Roundings on the way to one output. int8: a term a run, and one for its minimum, each with a sum; a scale of two factors, and at most as
  // many sums with a scale of activations. f32: two sums of half the columns each, or one of a short product, of weights that round once.
  double roundings() const {
    const auto n = static_cast<double>(reference::padded(cols, 64));
    const double terms = reference::has_minimum(format) ? 2 : 1;
    return int8 ? terms * n / static_cast<double>(reference::run(format)) + 4 : is_short() ? n + 1 : n / 2 + 5;
  }

  // Whether it is a single sum of floats.
  bool is_short() const { return !int8 && cols <= std::max<std::size_t>(64, reference::columns_of_group(format)); }
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
  const reference::Weights weights(product.format, product.packed, product.rows, product.cols);
  std::vector<std::vector<reference::Sum>> every;
  for (int r = 0; r < most; ++r)
    every.push_back(product.expected(weights, &x[static_cast<std::size_t>(r) * product.cols]));
  for (int n_rows = 1; n_rows <= most; ++n_rows) {
    const std::vector<float> out = product.run(kernels, x, n_rows, nullptr);
    before.resize(out.size());
    const std::vector<float> added = product.run(kernels, x, n_rows, &before);
    for (std::size_t r = 0; r < static_cast<std::size_t>(n_rows); ++r) {
      for (std::size_t row = 0; row < product.rows; ++row) {
        const std::size_t at = r * product.stride() + row;
        const reference::Sum& expected = every[r][row];
        CHECK_NEAR(out[at], expected.value, product.roundings() * u * expected.magnitude);
        CHECK_EQUAL(added[at], before[at] + out[at]);
      }
      for (std::size_t past = product.stride() - 16; past < product.stride(); ++past)
        CHECK_EQUAL(out[r * product.stride() + past], untouched);
    }
    before.resize(static_cast<std::size_t>(most) * product.stride());
  }
}

// The rows of one call have the bits of each of them alone, also where they are added to what is there; nothing is written past them.
void check_rows_alone(const Kernels& kernels, const Product& product, int n_rows, Random& random) {
  const std::vector<float> x = random.normals(static_cast<std::size_t>(n_rows) * product.cols);
  const std::vector<float> together = product.run(kernels, x, n_rows, nullptr);
  const std::vector<float> before = random.normals(together.size());
  const std::vector<float> added = product.run(kernels, x, n_rows, &before);
  for (int r = 0; r < n_rows; ++r) {
    const auto first = x.begin() + r * static_cast<std::ptrdiff_t>(product.cols);
    const std::vector<float> alone =
        product.run(kernels, {first, first + static_cast<std::ptrdiff_t>(product.cols)}, 1, nullptr);
    const std::size_t at = static_cast<std::size_t>(r) * product.stride();
    for (std::size_t row = 0; row < product.stride(); ++row) {
      CHECK_EQUAL(together[at + row], alone[row]);
      if (row + 16 < product.stride()) CHECK_EQUAL(added[at + row], before[at + row] + together[at + row]);
    }
  }
}

// The bits of a row do not depend on how many others share its panel or its call, nor on which.
void check_rows_alone(const Kernels& kernels, const Product& product, Random& random) {
  const int rows = kernels.panel_rows;
  check_rows_alone(kernels, product, rows, random);
  if (kernels.panels == 1) return;
  // From two panels to as many as a call has; the last of them whole, or not.
  for (const int n_rows :
       {2 * rows, 5 * rows + 1, 6 * rows, 7 * rows + 11, kernels.panels * rows - 1, kernels.panels * rows})
    check_rows_alone(kernels, product, n_rows, random);
}

// An int8 product with float products added as it goes has the bits of one after the other. `shares` are their numbers of rows.
void check_added(const Kernels& kernels, const Product& base, const Product& delta, const std::vector<int>& shares,
                 Random& random) {
  const int n_rows = std::accumulate(shares.begin(), shares.end(), 0);
  const Product::Operands operands(base, kernels, random.normals(static_cast<std::size_t>(n_rows) * base.cols), n_rows);
  const std::vector<float> before = random.normals(static_cast<std::size_t>(n_rows) * base.stride());
  const auto at = static_cast<std::size_t>(delta.format);
  std::vector<Product::Operands> deltas;
  for (const int share : shares)
    deltas.emplace_back(delta, kernels, random.normals(static_cast<std::size_t>(share) * delta.cols), share);
  for (const bool accumulate : {false, true}) {
    std::vector<float> expected = before, found = before;
    base.run(kernels, operands, expected.data(), accumulate, {});
    std::vector<AddedProduct> added;
    std::size_t first = 0;
    for (const Product::Operands& one : deltas) {
      kernels.matmul_f32[at](delta.args(one, &expected[first], base.stride(), true));
      added.push_back({kernels.matmul_tile[at], delta.args(one, &found[first], base.stride(), true)});
      first += static_cast<std::size_t>(one.n_rows) * base.stride();
    }
    base.run(kernels, operands, found.data(), accumulate, added);
    CHECK(found == expected);
    CHECK(found != before);
  }
}

// Sets the scales of one weight to 1 and its minimum to 0 or ±1; in the first rows also the integer to an end of its range.
void simplify(Format format, std::vector<std::uint8_t>& packed, const reference::Place& place, std::size_t row) {
  const std::uint16_t one = 0x3c00, minimum = row % 2 ? one : 0;
  std::memcpy(&packed[place.d], &one, 2);
  if (format == Format::q4z) {
    packed[place.m] = row % 2;
  } else if (place.m != 0) {
    std::memcpy(&packed[place.m], &minimum, 2);
  }
  if (place.scale != 0) packed[place.scale] = 1;
  if (place.least != 0) packed[place.least] = format == Format::q2k ? 0x11 : 1;
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
                 std::size_t stride, int scale_blocks) {
  const std::size_t n_blocks = reference::padded(cols, kPanelCols) / 32, block_bytes = kPanelBlockBytes * n_rows;
  const auto depth = static_cast<std::size_t>(kernels.panel_depth);
  std::vector<std::uint8_t> panel(n_blocks * block_bytes, 0xaa);
  kernels.pack_int8(x.data(), stride, static_cast<int>(n_rows), cols, scale_blocks, panel.data());
  for (std::size_t r = 0; r < n_rows; ++r) {
    std::vector<float> padded(n_blocks * 32);
    std::copy_n(&x[r * stride], cols, padded.begin());
    const auto blocks = reference::quantize_all(padded, static_cast<std::size_t>(scale_blocks));
    for (std::size_t b = 0; b < n_blocks; ++b) {
      const std::uint8_t* block = panel.data() + b * block_bytes;
      const reference::QuantizedBlock& expected = blocks[b];
      for (std::size_t i = 0; i < 32; ++i)
        CHECK_EQUAL(static_cast<std::int8_t>(block[depth * (i / depth * n_rows + r) + i % depth]), expected.q[i]);
      const std::uint8_t* tail = block + 32 * n_rows;
      CHECK_EQUAL(read_at<float>(tail, 4 * r), expected.scale);
      const int sum = expected.sums[0] + expected.sums[1];
      CHECK_EQUAL(read_at<float>(tail, 4 * (n_rows + r)), static_cast<float>(sum));
      CHECK_EQUAL(read_at<std::int32_t>(tail, 4 * (2 * n_rows + r)), -8 * sum);
      CHECK_EQUAL(read_at<std::int32_t>(tail, 4 * (3 * n_rows + r)), -32 * expected.sums[0]);
      CHECK_EQUAL(read_at<std::int32_t>(tail, 4 * (4 * n_rows + r)), -32 * expected.sums[1]);
    }
  }
}

}  // namespace

TEST(matmul, int8_panels) {
  on_every_isa([](const Kernels& kernels) {
    Random random(1);
    for (std::size_t n_rows = 1; n_rows <= static_cast<std::size_t>(kernels.panel_rows); ++n_rows)
      for (const std::size_t cols : {1, 31, 32, 33, 64, 65, 96, 172})
        for (const int scale_blocks : {1, 2})
          check_panel(kernels, random.normals(n_rows * (cols + 3)), n_rows, cols, cols + 3, scale_blocks);
  });
}

TEST(matmul, int8_panels_of_zeros_ties_and_small_and_large_values) {
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
    for (const int scale_blocks : {1, 2}) {
      check_panel(kernels, x, 1, x.size(), x.size(), scale_blocks);
      check_panel(kernels, x, 3, 64, 64, scale_blocks);
    }
  });
}

// 127 / max|x| is infinite for these; the block must come out as good as zero, not as arbitrary integers.
TEST(matmul, int8_panels_of_subnormal_values) {
  on_every_isa([](const Kernels& kernels) {
    for (const float value : {1e-40f, -1e-45f, 3e-37f}) {
      std::vector<float> x(64, 0.0f);
      x[3] = value;
      std::vector<std::uint8_t> panel(2 * kPanelBlockBytes, 0xaa);
      kernels.pack_int8(x.data(), 64, 1, 64, 1, panel.data());
      const double scale = read_at<float>(panel.data(), 32);
      for (std::size_t i = 0; i < 32; ++i)
        CHECK_NEAR(static_cast<std::int8_t>(panel[i]) * scale, x[i], std::abs(value));
      CHECK(std::abs(read_at<float>(panel.data(), 36)) <= 127);
      CHECK(std::abs(read_at<std::int32_t>(panel.data(), 40)) <= 8 * 127);
    }
  });
}

// A NaN or an infinity must reach the logits, where it is an error, and not become some integer.
TEST(matmul, int8_panels_pass_on_what_is_not_finite) {
  on_every_isa([](const Kernels& kernels) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (const std::size_t place : {0, 5, 15, 16, 31}) {
        std::vector<float> x(64, 1.0f);
        x[place] = bad;
        std::vector<std::uint8_t> panel(2 * kPanelBlockBytes, 0xaa);
        kernels.pack_int8(x.data(), 64, 1, 64, 1, panel.data());
        CHECK(!std::isfinite(read_at<float>(panel.data(), 32)));
        CHECK(std::isfinite(read_at<float>(panel.data(), kPanelBlockBytes + 32)));
        kernels.pack_int8(x.data(), 64, 1, 64, 2, panel.data());
        for (const std::size_t at : {std::size_t{32}, kPanelBlockBytes + std::size_t{32}})
          CHECK(!std::isfinite(read_at<float>(panel.data(), at)));
      }
    }
  });
}

// All scales are 1 and all sums stay below 2^24, so the result has no rounding to hide behind. The first rows have their integers
// at the ends of the range, and the first activations theirs.
TEST(matmul, integer_products_are_exact) {
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
        const int n_rows = kernels.panel_rows * kernels.panels;
        const std::vector<float> x = whole_numbers(random, static_cast<std::size_t>(n_rows), cols);
        const reference::Weights weights(format, packed, rows, cols);
        for (const int scale_blocks : {1, 2}) {
          const Product product{format, rows, cols, packed, true, scale_blocks};
          const std::vector<float> out = product.run(kernels, x, n_rows, nullptr);
          for (std::size_t r = 0; r < static_cast<std::size_t>(n_rows); ++r) {
            const std::vector<reference::Sum> expected = product.expected(weights, &x[r * cols]);
            for (std::size_t row = 0; row < rows; ++row)
              CHECK_EQUAL(static_cast<double>(out[r * product.stride() + row]), expected[row].value);
          }
        }
      }
    }
  });
}

TEST(matmul, int8_products) {
  on_every_isa([](const Kernels& kernels) {
    Random random(5);
    for (const Format format : quantised_formats())
      for (const auto& [rows, cols] : shapes(format))
        for (const int scale_blocks : {1, 2})
          check_product(kernels,
                        {format, rows, cols, RandomMatrix(random, format, rows, cols, 0.05).bytes, true, scale_blocks},
                        random);
  });
}

TEST(matmul, f32_products) {
  on_every_isa([](const Kernels& kernels) {
    Random random(6);
    for (const Format format : all_formats)
      for (const auto& [rows, cols] : shapes(format))
        check_product(kernels, {format, rows, cols, RandomMatrix(random, format, rows, cols, 0.05).bytes, false},
                      random);
  });
}

TEST(matmul, products_of_a_row_do_not_depend_on_its_neighbours) {
  on_every_isa([](const Kernels& kernels) {
    Random random(7);
    for (const Format format : all_formats) {
      const std::size_t some = reference::is_k(format) ? 256 : 64, more = reference::is_k(format) ? 768 : 620;
      for (const std::size_t cols : {some, more}) {
        const std::vector<std::uint8_t> packed = RandomMatrix(random, format, 33, cols, 0.05).bytes;
        check_rows_alone(kernels, {format, 33, cols, packed, false}, random);
        for (const int scale_blocks : {1, 2})
          if (reference::is_quantised(format))
            check_rows_alone(kernels, {format, 33, cols, packed, true, scale_blocks}, random);
      }
    }
  });
}

// Panels so long that a call of many takes them in several passes.
TEST(matmul, long_products_of_a_row_do_not_depend_on_its_neighbours) {
  on_every_isa([](const Kernels& kernels) {
    Random random(10);
    for (const Format format : {Format::q4, Format::q5k, Format::q6k}) {
      const std::vector<std::uint8_t> packed = RandomMatrix(random, format, 16, 5632, 0.05).bytes;
      for (const int scale_blocks : {1, 2})
        check_rows_alone(kernels, {format, 16, 5632, packed, true, scale_blocks}, random);
    }
  });
}

TEST(matmul, products_are_added_tile_by_tile) {
  on_every_isa([](const Kernels& kernels) {
    Random random(9);
    const auto packed = [&](Format format, std::size_t rows, std::size_t cols) {
      return RandomMatrix(random, format, rows, cols, 0.05).bytes;
    };
    for (const Format format : all_formats) {
      if (!reference::is_quantised(format)) {
        CHECK(kernels.matmul_tile[static_cast<std::size_t>(format)] != nullptr);
        continue;
      }
      const std::size_t cols = reference::is_k(format) ? 512 : 172;
      const std::vector<std::uint8_t> weights = packed(format, 33, cols);
      for (const Format added : {Format::f32, Format::f16, Format::bf16}) {
        for (const std::size_t rank : {1, 4, 16, 64, 68, 172}) {
          const std::vector<std::uint8_t> b = packed(added, 33, rank);
          for (const std::vector<int>& shares : {std::vector{1}, {2}, {1, 1}})
            for (const int scale_blocks : {1, 2})
              check_added(kernels, {format, 33, cols, weights, true, scale_blocks}, {added, 33, rank, b, false}, shares,
                          random);
        }
      }
    }
  });
}

TEST(matmul, products_do_not_depend_on_the_instruction_set) {
  Random random(8);
  for (const Format format : all_formats) {
    for (const auto& [rows, cols] : shapes(format)) {
      const std::vector<std::uint8_t> packed = RandomMatrix(random, format, rows, cols, 0.05).bytes;
      for (const int scale_blocks : {0, 1, 2}) {  // 0: float activations
        const bool int8 = scale_blocks > 0;
        if (int8 && !reference::is_quantised(format)) continue;
        const Product product{format, rows, cols, packed, int8, scale_blocks};
        const std::vector<float> x = random.normals(cols);
        std::vector<float> expected;
        on_every_isa([&](const Kernels& kernels) {
          const std::vector<float> found = product.run(kernels, x, 1, nullptr);
          if (expected.empty()) expected = found;
          CHECK(found == expected);
        });
      }
    }
  }
}

// addend + (1 + 2^-23)(1 - 2^-23) · scale²: a little below the middle between the addend and the next float, by less than a double shows. Who
// rounds the sum to a double and then to a float meets the middle, and goes to the even neighbour.
TEST(matmul, products_are_added_with_one_rounding) {
  for (const auto& [addend, scale] : {std::pair(1 + 0x1p-23f, 0x1p-12f), {0x1p-140f + 0x1p-149f, 0x1p-75f}}) {
    for (const float sign : {1.0f, -1.0f}) {
      std::vector<float> weights(64 * 16);
      weights[0] = 1, weights[2 * 16] = sign * scale * (1 + 0x1p-23f);
      std::vector<std::uint8_t> packed(weights.size() * sizeof(float));
      std::memcpy(packed.data(), weights.data(), packed.size());
      const Product product{Format::f32, 1, 3, packed, false};
      on_every_isa([&, addend = addend, scale = scale](const Kernels& kernels) {
        const std::vector<float> x = {sign * addend, 0, scale * (1 - 0x1p-23f)};
        CHECK_EQUAL(product.run(kernels, x, 1, nullptr)[0], sign * addend);
      });
    }
  }
}
