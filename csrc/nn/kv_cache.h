// The keys and values of one sequence in pages of 64 positions. A page holds all layers and heads:
//   [layer][kv head] { K (head_dim, 64), V (64, v_stride) }
// K lies transposed so that 64 scores are computed side by side, V in rows so that an output head is. Values are halves, or signed
// integers with a float scale a position behind each K and each V: bytes, or of 16 bits as K (head_dim / 2, 64, 2), V (32, v_stride, 2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/anonymous_memory.h"
#include "base/buffer.h"
#include "kernels/kernels.h"

namespace pyinfer {

struct KvShape {
  size_t n_layers;
  size_t n_kv_heads;
  size_t head_dim;
  KvFormat format = kKvF16;

  size_t v_stride() const { return round_up(head_dim, 16); }  // values
  size_t k_bytes() const { return kPagePositions * position_bytes(head_dim); }
  size_t v_bytes() const { return kPagePositions * position_bytes(v_stride()); }
  size_t page_bytes() const { return n_layers * n_kv_heads * (k_bytes() + v_bytes()); }
  static size_t n_pages(size_t context) { return (context + kPagePositions - 1) / kPagePositions; }

 private:
  size_t position_bytes(size_t n) const {
    return n * (format == kKvQ8 ? sizeof(int8_t) : sizeof(int16_t)) + (format == kKvF16 ? 0 : sizeof(float));
  }
};

class KvCache {
 public:
  // Room for `context` positions; memory becomes resident page by page as it is written.
  KvCache(const KvShape& shape, size_t context)
      : shape_(shape),
        context_(context),
        memory_(KvShape::n_pages(context) * shape.page_bytes()),
        pages_(KvShape::n_pages(context)) {
    for (size_t i = 0; i < pages_.size(); ++i) pages_[i] = memory_.data() + i * shape.page_bytes();
  }

  const KvShape& shape() const { return shape_; }
  size_t context() const { return context_; }
  uint8_t* const* pages() const { return pages_.data(); }
  // Where K and V of a head lie in a page, in bytes.
  size_t k_offset(size_t layer, size_t kv_head) const {
    return (layer * shape_.n_kv_heads + kv_head) * (shape_.k_bytes() + shape_.v_bytes());
  }
  size_t v_offset(size_t layer, size_t kv_head) const { return k_offset(layer, kv_head) + shape_.k_bytes(); }

 private:
  KvShape shape_;
  size_t context_;
  AnonymousMemory memory_;
  std::vector<uint8_t*> pages_;
};

}  // namespace pyinfer
