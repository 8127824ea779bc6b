// The function table that every instruction set fills: all arithmetic of a forward pass.
// Kernels know blocks and pointers; never files, threads, tensors' names or sessions. They do not allocate and cannot fail.
// Includes C headers only, as does all that the kernel units include (see ARCHITECTURE.md).
#pragma once

#include <stddef.h>
#include <stdint.h>

// Before a loop whose arrays must become registers: unrolled early, up to 32 times. Without it GCC 12 keeps sums in memory.
#define PYINFER_UNROLL _Pragma("GCC unroll 32")

namespace pyinfer {

// Positions a KV page holds, and the chunk in which attention walks the past. Fixed: bits depend on it.
enum { kPagePositions = 64 };
enum { kCacheLine = 64 };  // bytes, on most processors; only speed depends on it
// Columns that activation panels are padded to with zeros: the widest group of any format.
enum { kPanelCols = 64 };
// Rows of activations that a panel may hold at most, in any instruction set.
enum { kMaxPanelRows = 16 };
enum { kMaxHeadDim = 1024 };
enum { kMaxFormats = 24 };  // numbers of weight formats are below this

// A panel holds 1 … panel_rows rows of activations.
//
// int8 panel of R rows, interleaved so that a kernel reads it as one stream: for each block of 32 columns
//   int8_t q[32/D][R][D];  D = panel_depth columns of a row together: 4, one 32-bit lane of a dot product, or 8, or 32
//   float scale[R];        value = scale · q; scale = max|x| / 127 over the blocks that share it
//   float sum[R];          Σq, for formats with a minimum
//   int32_t bias[3][R];    −8 · Σq, and −32 · Σq over the first and the last 16 columns: start values that take the offset of unsigned weights
//                          back
// Blocks share a scale one by one or two by two, as whoever packs and multiplies says.
// f32 panel of R rows: float x[R][panel_stride], columns padded with zeros to whole groups of the weights' format.
enum { kPanelBlockBytes = 52 };  // bytes a row and block of the int8 panel

// Most rows of an int8 product to which others may be added as it is made.
enum { kAddedRows = 2 };

struct AddedProduct;
struct MatmulArgs {
  const uint8_t* tiles;  // n_tiles packed tiles of 16 weight rows
  size_t n_tiles;
  size_t tile_bytes;
  size_t n_groups;  // column groups a tile
  const uint8_t* panel;
  size_t panel_stride;  // floats from one row of an f32 panel to the next
  int n_rows;  // rows in the panel; of more than panel_rows those beyond it stand in further panels, which follow
  float* out;  // out[row · out_stride + 16 · tile + i], whole tiles are written
  size_t out_stride;
  bool accumulate;                      // out += product, instead of out = product
  int scale_blocks = 1;                 // blocks that share a scale in an int8 panel: 1 or 2
  const AddedProduct* added = nullptr;  // float products that are added to an int8 one of up to kAddedRows rows
  size_t n_added = 0;
};
typedef void (*Matmul)(const MatmulArgs&);

// One tile of a float product of 1 … kAddedRows rows, with the bits of matmul_f32.
typedef void (*MatmulTile)(const MatmulArgs&, size_t tile);
// A float product of as many tiles as another, to some of whose rows it is added: each tile as soon as the other's is there.
struct AddedProduct {
  MatmulTile matmul_tile;
  MatmulArgs args;
};

// How keys and values are kept: halves, or signed integers of 8, or 13 and 14, bits with a float scale a position and head.
enum KvFormat { kKvF16, kKvQ8, kKvI16, kKvFormats };

// Attention of n_rows consecutive positions of one sequence, for the query heads that share one KV head.
struct AttendArgs {
  const float* q;  // (n_rows, q_stride), of each row n_heads · head_dim; rotated and scaled
  size_t q_stride;
  float* out;  // (n_rows, out_stride), of each row n_heads · head_dim
  size_t out_stride;
  int n_rows;
  int n_heads;                  // query heads of the group
  int head_dim;                 // even
  int first_position;           // row r sees positions 0 … first_position + r
  int window;                   // of them the last `window`; 0: all
  float softcap;                // scores become softcap · tanh(score / softcap); 0: they do not
  const uint8_t* const* pages;  // where each page begins
  // In bytes: K (head_dim, kPagePositions), V (kPagePositions, v_stride); of i16 K (head_dim / 2, kPagePositions, 2) and V
  // (kPagePositions / 2, v_stride, 2). Of q8 and i16 then kPagePositions scales each.
  size_t k_offset, v_offset;
  int v_stride;
};

// out = act(gate) · up, over n values (a multiple of 16). `out` may be `gate`.
typedef void (*GatedUnit)(const float* gate, const float* up, size_t n, float* out);

struct Kernels {
  const char* isa;
  int panel_rows;   // most rows of a panel, of either kind
  int panels;       // most panels of a call
  int panel_depth;  // columns of a row that stand together in an int8 panel
  KvFormat kv;      // which format of 16 bits attention is faster with
  // By format number; entry 0 (vector) and int8 entries of float formats are null.
  Matmul matmul_int8[kMaxFormats];
  Matmul matmul_f32[kMaxFormats];
  MatmulTile matmul_tile[kMaxFormats];  // of float formats

  // n_rows rows of `cols` floats into a panel where scale_blocks blocks share a scale, columns padded with zeros to a multiple of kPanelCols.
  void (*pack_int8)(const float* x, size_t stride, int n_rows, size_t cols, int scale_blocks, uint8_t* panel);
  // What a row in an int8 panel, with a scale a block, lacks of its `cols` floats: x − scale · q. `remainder` is not `x`.
  void (*int8_remainder)(const float* x, size_t cols, float* remainder);
  // out = x / sqrt(mean(x²) + eps) · weight, over n values.
  void (*rms_norm)(const float* x, const float* weight, float eps, size_t n, float* out);
  GatedUnit swiglu;  // silu(g) = g / (1 + e^−g)
  GatedUnit geglu;   // gelu(g) = g / (1 + e^−2z), z = √(2/π) · (g + 0.044715 g³): the tanh form
  // x = cap · tanh(x / cap), over n values.
  void (*soft_cap)(float* x, size_t n, float cap);
  // Rotates pairs (i, i + half) of a head by angles with the given cosines and sines (half each), then scales `n` values.
  void (*rope)(float* head, const float* cosines, const float* sines, size_t half, size_t n, float scale);
  // One position's K (as column `slot`) and V (as row `slot`) of one head into its places in a page; halves saturate.
  void (*store_kv[kKvFormats])(const float* k, const float* v, int head_dim, int v_stride, int slot, uint8_t* k_place,
                               uint8_t* v_place);
  void (*attend[kKvFormats])(const AttendArgs&);
};

}  // namespace pyinfer
