// Every kernel of every instruction set, format and size, ready to be run again and again: generated from the lists
// that the tests use. A plain C interface, so that Python can load and time it. Knows kernels, formats and how a cache lies in memory; never
// files, threads or models.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/anonymous_memory.h"
#include "base/buffer.h"
#include "base/error.h"
#include "formats/format.h"
#include "kernels/dispatch.h"
#include "kernels/kernels.h"
#include "nn/kv_cache.h"

namespace {

using pyinfer::AnonymousMemory;
using pyinfer::Buffer;
using pyinfer::Format;
using pyinfer::Kernels;

constexpr size_t kTileRows = 16;
constexpr size_t kMatmulCols = 2048;
constexpr size_t kMemoryBytes = size_t{128} << 20;  // far past any last-level cache share of one core
constexpr size_t kCacheBytes = size_t{256} << 10;   // stays in a second-level cache beside its panel
constexpr size_t kRowValues = 4096;
constexpr int kRowHead = 64;  // heads' dimensions, of which a row has as many as a page has positions

// A kernel with its operands: what one call costs, and the call.
struct Bench {
  double bytes = 0;  // weights, keys and values, or rows that a call reads
  double macs = 0;
  std::function<void()> run;
};

Buffer<float> random_values(size_t n) {
  Buffer<float> values(n);
  std::minstd_rand source(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (size_t i = 0; i < n; ++i) values[i] = uniform(source);
  return values;
}

// A packed matrix: one strip of tiles, repeated; random but where floats cannot be packed. There every byte is 0x11, which makes each field of
// such a format a small number.
AnonymousMemory random_tiles(Format format, size_t n_tiles) {
  const size_t tile = pyinfer::tile_bytes(format, kMatmulCols);
  const Buffer<float> values = random_values(kTileRows * kMatmulCols);
  Buffer<uint8_t> packed(tile);
  try {
    pyinfer::pack(format, values.data(), kTileRows, kMatmulCols, packed.data());
  } catch (const pyinfer::Error&) {
    std::memset(packed.data(), 0x11, tile);
  }
  AnonymousMemory tiles(n_tiles * tile);
  for (size_t i = 0; i < n_tiles; ++i) std::memcpy(tiles.data() + i * tile, packed.data(), tile);
  return tiles;
}

struct MatmulState {
  AnonymousMemory tiles;
  Buffer<uint8_t> panel;
  Buffer<float> out;
  pyinfer::MatmulArgs args;
};

constexpr int kScaleBlocks = 2;  // as most products of a layer have it

// `bytes` of weights times panels of n_rows rows.
Bench matmul(const Kernels& kernels, Format format, bool int8, int n_rows, size_t bytes, int scale_blocks) {
  auto state = std::make_shared<MatmulState>();
  const size_t tile = pyinfer::tile_bytes(format, kMatmulCols);
  const size_t n_tiles = std::max<size_t>(1, bytes / tile);
  state->tiles = random_tiles(format, n_tiles);
  state->panel = Buffer<uint8_t>(kMatmulCols * static_cast<size_t>(n_rows) * sizeof(float));
  state->out = Buffer<float>(n_tiles * kTileRows * static_cast<size_t>(n_rows));
  const Buffer<float> x = random_values(kMatmulCols * static_cast<size_t>(n_rows));
  if (int8) {
    constexpr size_t kRowBytes = kMatmulCols / 32 * pyinfer::kPanelBlockBytes;
    for (int r = 0; r < n_rows; r += kernels.panel_rows)
      kernels.pack_int8(&x[static_cast<size_t>(r) * kMatmulCols], kMatmulCols, std::min(kernels.panel_rows, n_rows - r),
                        kMatmulCols, scale_blocks, state->panel.data() + static_cast<size_t>(r) * kRowBytes);
  } else {
    std::memcpy(state->panel.data(), x.data(), x.size() * sizeof(float));
  }
  state->args = {state->tiles.data(), n_tiles,     tile,        kMatmulCols / pyinfer::group_cols(format),
                 state->panel.data(), kMatmulCols, n_rows,      state->out.data(),
                 n_tiles * kTileRows, false,       scale_blocks};
  const pyinfer::Matmul call = (int8 ? kernels.matmul_int8 : kernels.matmul_f32)[static_cast<size_t>(format)];
  const double weights = static_cast<double>(n_tiles * kTileRows * kMatmulCols);
  return {static_cast<double>(n_tiles * tile), weights * n_rows, [state, call] { call(state->args); }};
}

struct AttendState {
  pyinfer::KvCache cache;
  Buffer<float> q, out;
  pyinfer::AttendArgs args;
};

constexpr const char* kKvNames[] = {"f16", "q8", "i16"};

// One KV head of several, four query heads of 64, n_rows queries behind `depth` positions; other heads' keys and values lie between its pages.
Bench attend(const Kernels& kernels, pyinfer::KvFormat format, int n_rows, int depth) {
  constexpr int kHeads = 4, kDim = 64, kKvHeads = 8;
  const pyinfer::KvShape shape{1, kKvHeads, kDim, format};
  const size_t stride = kHeads * kDim;
  const auto rows = static_cast<size_t>(n_rows), positions = static_cast<size_t>(depth) + rows;
  auto state = std::make_shared<AttendState>(
      AttendState{pyinfer::KvCache(shape, positions), random_values(rows * stride), Buffer<float>(rows * stride), {}});
  const Buffer<float> values = random_values(positions + 2 * kDim);
  for (size_t i = 0; i < positions; ++i) {
    uint8_t* page = state->cache.pages()[i / pyinfer::kPagePositions];
    kernels.store_kv[format](&values[i], &values[i + kDim], kDim, kDim, static_cast<int>(i % pyinfer::kPagePositions),
                             page + state->cache.k_offset(0, 0), page + state->cache.v_offset(0, 0));
  }
  pyinfer::AttendArgs& args = state->args;
  args.q = state->q.data();
  args.out = state->out.data();
  args.q_stride = args.out_stride = stride;
  args.n_rows = n_rows;
  args.n_heads = kHeads;
  args.head_dim = args.v_stride = kDim;
  args.first_position = depth;
  args.pages = state->cache.pages();
  args.v_offset = state->cache.v_offset(0, 0);
  const double seen = static_cast<double>(n_rows) * depth + n_rows * (n_rows + 1) / 2.0;
  const double bytes =
      static_cast<double>(positions * (shape.k_bytes() + shape.v_bytes())) / double{pyinfer::kPagePositions};
  return {bytes, seen * 2 * kDim * kHeads, [state, call = kernels.attend[format]] { call(state->args); }};
}

struct RowState {
  Buffer<float> x = random_values(kRowValues), y = random_values(kRowValues), out{kRowValues};
  Buffer<uint8_t> panel{2 * kRowValues * sizeof(float)};
};

// A kernel over one row of values that stays in the first-level cache.
Bench row(const std::function<void(RowState&)>& call, double bytes_a_value) {
  auto state = std::make_shared<RowState>();
  return {bytes_a_value * kRowValues, 0, [state, call] { call(*state); }};
}

using Maker = std::function<Bench()>;
struct Entry {
  std::string name;
  Maker make;
};

void add_matmuls(std::vector<Entry>& list, const Kernels& kernels) {
  for (uint32_t number = 1; number < pyinfer::kFormats; ++number) {
    const Format format = static_cast<Format>(number);
    for (const bool int8 : {true, false}) {
      if ((int8 ? kernels.matmul_int8 : kernels.matmul_f32)[number] == nullptr) continue;
      const int most = kernels.panel_rows;
      const std::string name =
          std::string(kernels.isa) + "/matmul/" + pyinfer::format_name(format) + (int8 ? "/int8" : "/f32");
      const auto add = [&](const std::string& what, int n_rows, size_t bytes, int scale_blocks = kScaleBlocks) {
        list.push_back(
            {name + "/" + what, [=, &kernels] { return matmul(kernels, format, int8, n_rows, bytes, scale_blocks); }});
      };
      add("memory-1-row", 1, kMemoryBytes);
      if (most >= 4) add("memory-4-rows", 4, kMemoryBytes);
      if (most > 8) add("memory-8-rows", 8, kMemoryBytes);
      if (most > 4) add("memory-" + std::to_string(most) + "-rows", most, kMemoryBytes);
      add("memory-2-rows", 2, kMemoryBytes);
      add("cache-1-row", 1, kCacheBytes);
      add("cache-" + std::to_string(most) + "-rows", most, kCacheBytes);
      if (int8) add("cache-" + std::to_string(most) + "-rows-a-scale-a-block", most, kCacheBytes, 1);
      const int all = most * kernels.panels;
      if (all > most && int8) {
        add("cache-" + std::to_string(all) + "-rows", all, kCacheBytes);
        add("memory-" + std::to_string(all) + "-rows", all, kMemoryBytes);
      }
    }
  }
}

void add_attends(std::vector<Entry>& list, const Kernels& kernels) {
  for (int number = 0; number < pyinfer::kKvFormats; ++number) {
    const auto format = static_cast<pyinfer::KvFormat>(number);
    const std::string name = std::string(kernels.isa) + "/attend/" + kKvNames[number];
    list.push_back({name + "/1-row-behind-4096", [=, &kernels] { return attend(kernels, format, 1, 4096); }});
    list.push_back({name + "/64-rows-behind-448", [=, &kernels] { return attend(kernels, format, 64, 448); }});
  }
}

void add_rows(std::vector<Entry>& list, const Kernels& kernels) {
  const std::string name = kernels.isa;
  const auto add = [&](const std::string& what, double bytes_a_value, std::function<void(RowState&)> call) {
    list.push_back({name + "/" + what, [=] { return row(call, bytes_a_value); }});
  };
  add("pack_int8", 4,
      [&](RowState& s) { kernels.pack_int8(s.x.data(), kRowValues, 1, kRowValues, kScaleBlocks, s.panel.data()); });
  add("rms_norm", 8, [&](RowState& s) { kernels.rms_norm(s.x.data(), s.y.data(), 1e-5f, kRowValues, s.out.data()); });
  add("swiglu", 8, [&](RowState& s) { kernels.swiglu(s.x.data(), s.y.data(), kRowValues, s.out.data()); });
  add("geglu", 8, [&](RowState& s) { kernels.geglu(s.x.data(), s.y.data(), kRowValues, s.out.data()); });
  add("int8_remainder", 4, [&](RowState& s) { kernels.int8_remainder(s.x.data(), kRowValues, s.out.data()); });
  add("rope", 8, [&](RowState& s) {
    for (size_t i = 0; i < kRowValues; i += kRowHead)
      kernels.rope(s.out.data() + i, s.x.data(), s.y.data(), kRowHead / 2, kRowHead, 1.0f);
  });
  for (int format = 0; format < pyinfer::kKvFormats; ++format) {
    add(std::string("store_kv/") + kKvNames[format], 8, [&kernels, format](RowState& s) {
      for (int slot = 0; slot < pyinfer::kPagePositions; ++slot) {
        const size_t i = static_cast<size_t>(slot) * kRowHead;
        kernels.store_kv[format](&s.x[i], &s.y[i], kRowHead, kRowHead, slot, s.panel.data(),
                                 s.panel.data() + kRowValues * sizeof(float));
      }
    });
  }
  add("soft_cap", 4, [&](RowState& s) { kernels.soft_cap(s.out.data(), kRowValues, 30.0f); });
}

std::vector<Entry> make_list() {
  std::vector<Entry> list;
  for (const pyinfer::Isa& isa : pyinfer::isas()) {
    if (!isa.runs_here()) continue;
    const Kernels& kernels = *isa.table();
    add_matmuls(list, kernels);
    add_attends(list, kernels);
    add_rows(list, kernels);
  }
  return list;
}

const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = make_list();
  return list;
}

}  // namespace

#define PYINFER_BENCH_API extern "C" __attribute__((visibility("default")))

PYINFER_BENCH_API int pyinfer_bench_count() { return static_cast<int>(entries().size()); }

PYINFER_BENCH_API const char* pyinfer_bench_name(int index) {
  return entries()[static_cast<size_t>(index)].name.c_str();
}

// Makes the operands of a kernel; null if memory does not suffice.
PYINFER_BENCH_API void* pyinfer_bench_open(int index) {
  try {
    return new Bench(entries()[static_cast<size_t>(index)].make());
  } catch (const std::exception&) {
    return nullptr;
  }
}

PYINFER_BENCH_API double pyinfer_bench_bytes(const void* bench) { return static_cast<const Bench*>(bench)->bytes; }

PYINFER_BENCH_API double pyinfer_bench_macs(const void* bench) { return static_cast<const Bench*>(bench)->macs; }

PYINFER_BENCH_API void pyinfer_bench_run(void* bench) { static_cast<Bench*>(bench)->run(); }

PYINFER_BENCH_API void pyinfer_bench_close(void* bench) { delete static_cast<Bench*>(bench); }
