// Everything a step computes with: kernels, threads, and room for the activations of up to max_rows rows. Allocated once, and anew where
// adapters need more room; nothing in a step allocates; memory that a step does not touch is not resident.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/anonymous_memory.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace pyinfer {

class KvCache;
struct Piece;

// Consecutive rows of a step that are consecutive positions of one sequence.
struct Segment {
  KvCache* cache;
  size_t first_row;
  size_t n_rows;
  size_t first_position;
};

// How activations meet weights: as int8 with a scale for 32 or 64 columns, or in float (always with float weights, else the reference path).
enum class Activations { int8, f32 };

// The widths that decide how much room is needed, all in floats a row.
struct WorkspaceShape {
  size_t max_rows;
  size_t dim;
  size_t q_width;
  size_t kv_width;
  size_t n_ff;
  size_t rope_pairs;
  bool needs_int8;            // some matrix meets int8 activations
  bool needs_f32;             // some matrix meets float activations
  size_t rope_sets = 1;       // sets of angles that the layers rotate by
  bool needs_branch = false;  // blocks are normed before they join the residual stream
  size_t low_rank = 0;        // ranks of adapters that share an input, together, at most; a multiple of 16
};

// Columns after which A x is summed anew, so that threads can share out one row: fixed, since bits depend on it.
inline constexpr size_t kLowRankChunk = 512;
inline constexpr size_t kFloatGroupCols = 4;  // column group of the float formats

struct Workspace {
  Workspace(const Kernels& kernels, ThreadPool& pool, const WorkspaceShape& shape);
  // Makes room for what this shape needs and the present one does not. Not during a step.
  void grow(const WorkspaceShape& shape);

  const Kernels& kernels;
  ThreadPool& pool;
  size_t max_rows;
  size_t max_cols;    // the widest input of any matrix
  size_t own_stride;  // room for it, and for a row of the head with its remainder

  size_t x_stride;    // of x, in floats
  size_t q_width;     // padded to whole tiles
  size_t kv_width;    // padded to whole tiles
  size_t qkv_stride;  // q_width + 2 · kv_width
  size_t hidden_stride;
  size_t rope_pairs;
  size_t rope_sets;

  float* x;         // (max_rows, x_stride) residual stream
  float* qkv;       // (max_rows, qkv_stride)
  float* attended;  // (max_rows, q_width)
  float* hidden;    // (max_rows, hidden_stride)
  float* branch;    // (max_rows, x_stride) what a block gives, on its way to a norm; room only where the shape needs it
  float* cosines;   // (rope_sets, max_rows, rope_pairs)
  float* sines;     // (rope_sets, max_rows, rope_pairs)

  // Packed inputs: of a whole step, and of one panel for each thread. Index 0 for int8, 1 for f32.
  uint8_t* panels[2];
  uint8_t* own_panels[2];
  size_t row_bytes[2];  // the most of an int8 panel row; of any row of a float panel
  float* own_rows;  // (threads, kMaxPanelRows, own_stride) rows, normed, and remainders on their way into an int8 panel
  float* own_tiles;  // (threads, 2, rows_at_once, tile columns) results on their way to an epilogue

  Segment* segments;  // (max_rows)
  float** wanted;     // (max_rows) where logits go

  // Adapters: see nn/low_rank.h. Room only where the shape's low_rank is not 0, but for the pieces.
  size_t low_rank;
  Piece* pieces;                         // (max_rows)
  float* low_rank_partial;               // (max_rows, chunks, low_rank)
  float* low_rank_t;                     // (max_rows, low_rank)
  std::atomic<uint32_t>* low_rank_done;  // (max_rows) parts done of each piece's t

  size_t bytes() const { return memory_.size(); }
  // Rows that a product may have.
  size_t rows_at_once() const { return static_cast<size_t>(kernels.panel_rows) * static_cast<size_t>(kernels.panels); }
  // Floats from one row of a float panel to the next.
  size_t float_stride() const { return row_bytes[1] / sizeof(float); }
  static constexpr size_t kOwnTileCols = 128;

 private:
  void allocate(const WorkspaceShape& shape);
  void place(const WorkspaceShape& shape);

  WorkspaceShape shape_{};
  AnonymousMemory memory_;
};

}  // namespace pyinfer
