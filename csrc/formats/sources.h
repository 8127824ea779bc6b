// Weight blocks as checkpoints store them, and how each is read. Layouts: the GGUF specification and ggml's block structures.
//
// A source type has `kValues` a block of `kBytes`, and
//   decode(block, i, out)   the i-th run of 32 values as floats, bit-equal to gguf's own dequantisation;
//   integers(block, i, out) the same run as integers with a scale (and a minimum) in halves, for types of 32 values a block;
//   scales and quants       for types of 256 values, see KSource.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "formats/iq4.h"
#include "formats/tile.h"

namespace pyinfer {

inline uint16_t read_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | (p[1] << 8)); }
inline float read_half(const uint8_t* p) { return half_to_float(read_u16(p)); }

inline void decode_block(const Block& block, int bias, bool has_minimum, float* out) {
  const float d = half_to_float(block.d);
  const float m = has_minimum ? half_to_float(block.m) : -0.0f;  // adding +0 would turn −0 into +0
  for (int i = 0; i < kBlock; ++i) out[i] = d * static_cast<float>(block.q[i] - bias) + m;
}

struct SourceF32 {
  static constexpr int kValues = 1, kBytes = 4;
  static float decode_one(const uint8_t* p) {
    float value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
};

struct SourceF16 {
  static constexpr int kValues = 1, kBytes = 2;
  static float decode_one(const uint8_t* p) { return read_half(p); }
};

struct SourceBF16 {
  static constexpr int kValues = 1, kBytes = 2;
  static float decode_one(const uint8_t* p) { return bf16_to_float(read_u16(p)); }
};

// 4-bit values of 32: low nibbles are the first 16, high nibbles the last 16.
inline void split_nibbles(const uint8_t* nibbles, int8_t* q) {
  for (int i = 0; i < 16; i += 8) {
    store_eight(q + i, bits_of_eight(nibbles + i, 0, 15));
    store_eight(q + i + 16, bits_of_eight(nibbles + i, 4, 15));
  }
}

// Adds bit i of `bits` as the fifth bit of value i.
inline void add_fifth_bits(const uint8_t* bits, int8_t* q) {
  constexpr uint64_t kEach = 0x0101010101010101, kOwn = 0x8040201008040201;  // 1 in each byte; bit i in byte i
  for (int i = 0; i < kBlock; i += 8) {
    const uint64_t set = (bits[i / 8] * kEach & kOwn) + 0x7f * kEach;  // the top bit of each byte whose bit is 1
    store_eight(q + i, load_eight(q + i) | (set & 0x80 * kEach) >> 3);
  }
}

struct SourceQ4_0 {  // half d, 16 bytes of nibbles: d · (q − 8)
  static constexpr int kValues = 32, kBytes = 18, kBias = 8;
  static constexpr bool kMinimum = false;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = read_u16(p);
    out.m = 0;
    split_nibbles(p + 2, out.q);
  }
};

struct SourceQ4_1 {  // half d, half m, 16 bytes of nibbles: d · q + m
  static constexpr int kValues = 32, kBytes = 20, kBias = 0;
  static constexpr bool kMinimum = true;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = read_u16(p);
    out.m = read_u16(p + 2);
    split_nibbles(p + 4, out.q);
  }
};

struct SourceQ5_0 {  // half d, 32 fifth bits, 16 bytes of nibbles: d · (q − 16); kept as signed integers
  static constexpr int kValues = 32, kBytes = 22, kBias = 0;
  static constexpr bool kMinimum = false;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = read_u16(p);
    out.m = 0;
    split_nibbles(p + 6, out.q);
    add_fifth_bits(p + 2, out.q);
    for (int8_t& q : out.q) q = static_cast<int8_t>(q - 16);
  }
};

struct SourceQ5_1 {  // half d, half m, 32 fifth bits, 16 bytes of nibbles: d · q + m
  static constexpr int kValues = 32, kBytes = 24, kBias = 0;
  static constexpr bool kMinimum = true;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = read_u16(p);
    out.m = read_u16(p + 2);
    split_nibbles(p + 8, out.q);
    add_fifth_bits(p + 4, out.q);
  }
};

struct SourceQ8_0 {  // half d, 32 signed bytes: d · q
  static constexpr int kValues = 32, kBytes = 34, kBias = 0;
  static constexpr bool kMinimum = false;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = read_u16(p);
    out.m = 0;
    std::memcpy(out.q, p + 2, kBlock);
  }
};

// Six-bit scales and minima of the eight runs of a 256-value block, packed in 12 bytes.
inline void read_scale_min(const uint8_t* packed, int i, int& scale, int& least) {
  if (i < 4) {
    scale = packed[i] & 63;
    least = packed[i + 4] & 63;
  } else {
    scale = (packed[i + 4] & 15) | ((packed[i - 4] >> 6) << 4);
    least = (packed[i + 4] >> 4) | ((packed[i] >> 6) << 4);
  }
}

// Types of 256 values: scales(block, out) gives the scales of their runs, quants(block, i, q) the integers of the i-th 32 values,
// level(q) what an integer stands for.
template <class K>
struct KSource {
  static constexpr int kValues = 256;
  static void decode(const uint8_t* p, int i, float* out) {
    SuperScales scales{};
    K::scales(p, scales);
    int8_t q[kBlock];
    K::quants(p, i, q);
    for (int l = 0; l < kBlock; ++l) {
      const int run = (kBlock * i + l) / K::kRun;
      const float d = half_to_float(scales.d) * static_cast<float>(scales.scale[run]);
      const float least = half_to_float(scales.dmin) * static_cast<float>(scales.least[run]);
      out[l] = d * static_cast<float>(K::level(q[l])) - least;
    }
  }
};

// Q4_K and Q5_K share a head: half d, half dmin, 12 bytes of scales; value = d·scale·q − dmin·min.
template <class K>
struct KMinimumSource : KSource<K> {
  static constexpr int kRun = kBlock;
  static void scales(const uint8_t* p, SuperScales& out) {
    out.d = read_u16(p);
    out.dmin = read_u16(p + 2);
    for (int run = 0; run < 8; ++run) {
      int scale = 0, least = 0;
      read_scale_min(p + 4, run, scale, least);
      out.scale[run] = static_cast<int8_t>(scale);
      out.least[run] = static_cast<uint8_t>(least);
    }
  }
  static int level(int q) { return q; }
};

// Run i of the 4-bit part of a K block: runs 2j and 2j+1 share 32 bytes, as low and high nibbles.
inline void read_k_nibbles(const uint8_t* nibbles, int i, int8_t* q) {
  const uint8_t* run = nibbles + 32 * (i / 2);
  for (int l = 0; l < kBlock; l += 8) store_eight(q + l, bits_of_eight(run + l, i % 2 * 4, 15));
}

// Run i of the 2-bit part of a K block: runs 4j … 4j+3 share 32 bytes, from the low bits on.
inline void read_k_pairs(const uint8_t* pairs, int i, int8_t* q) {
  const uint8_t* run = pairs + 32 * (i / 4);
  for (int l = 0; l < kBlock; l += 8) store_eight(q + l, bits_of_eight(run + l, 2 * (i % 4), 3));
}

// 16 bytes of scale (low nibble) and min (high), 64 bytes of pairs, half d, half dmin: d·scale·q − dmin·min, scales per 16.
struct SourceQ2_K : KSource<SourceQ2_K> {
  static constexpr int kBytes = 84, kRun = 16;
  static void scales(const uint8_t* p, SuperScales& out) {
    out.d = read_u16(p + 80);
    out.dmin = read_u16(p + 82);
    for (int run = 0; run < 16; ++run) {
      out.scale[run] = static_cast<int8_t>(p[run] & 15);
      out.least[run] = static_cast<uint8_t>(p[run] >> 4);
    }
  }
  static void quants(const uint8_t* p, int i, int8_t* q) { read_k_pairs(p + 16, i, q); }
  static int level(int q) { return q; }
};

// 32 bytes of third bits (bit i is run i's), 64 bytes of pairs, 16 scales of 6 bits in 12 bytes, half d: d·(scale − 32)·(q − 4), scales
// per 16.
struct SourceQ3_K : KSource<SourceQ3_K> {
  static constexpr int kBytes = 110, kRun = 16;
  static void scales(const uint8_t* p, SuperScales& out) {
    const uint8_t *low = p + 96, *high = p + 104;
    out.d = read_u16(p + 108);
    for (int run = 0; run < 16; ++run) {
      const int nibble = run < 8 ? low[run] & 15 : low[run - 8] >> 4;
      const int pair = (high[run % 4] >> (2 * (run / 4))) & 3;
      out.scale[run] = static_cast<int8_t>((nibble | (pair << 4)) - 32);
    }
  }
  static void quants(const uint8_t* p, int i, int8_t* q) {
    read_k_pairs(p + 32, i, q);
    for (int l = 0; l < kBlock; l += 8) store_eight(q + l, load_eight(q + l) | bits_of_eight(p + l, i, 1) << 2);
  }
  static int level(int q) { return q - 4; }
};

struct SourceQ4_K : KMinimumSource<SourceQ4_K> {  // head, 128 bytes of nibbles
  static constexpr int kBytes = 144;
  static void quants(const uint8_t* p, int i, int8_t* q) { read_k_nibbles(p + 16, i, q); }
};

struct SourceQ5_K
    : KMinimumSource<SourceQ5_K> {  // head, 32 bytes of fifth bits (bit i is run i's), 128 bytes of nibbles
  static constexpr int kBytes = 176;
  static void quants(const uint8_t* p, int i, int8_t* q) {
    read_k_nibbles(p + 48, i, q);
    for (int l = 0; l < kBlock; l += 8) store_eight(q + l, load_eight(q + l) | bits_of_eight(p + 16 + l, i, 1) << 4);
  }
};

// 128 bytes low nibbles, 64 bytes high pairs, 16 signed scales, half d: d · scale · (q − 32), scales per 16.
struct SourceQ6_K : KSource<SourceQ6_K> {
  static constexpr int kBytes = 210, kRun = 16;
  static void scales(const uint8_t* p, SuperScales& out) {
    out.d = read_u16(p + 208);
    for (int run = 0; run < 16; ++run) out.scale[run] = static_cast<int8_t>(p[192 + run]);
  }
  // Run i of 32 values, 0…63. A half of 128 values is four runs at the low and high nibbles of two 32-byte rows.
  static void quants(const uint8_t* p, int i, int8_t* q) {
    const int half = i / 4, run = i % 4;
    const uint8_t* low = p + 64 * half + 32 * (run % 2);
    const uint8_t* high = p + 128 + 32 * half;
    for (int l = 0; l < kBlock; l += 8)
      store_eight(q + l, bits_of_eight(low + l, run / 2 * 4, 15) | bits_of_eight(high + l, 2 * run, 3) << 4);
  }
  static int level(int q) { return q - 32; }
};

struct SourceIQ4_NL {  // half d, 16 bytes of nibbles: d · kLevels[q]
  static constexpr int kValues = 32, kBytes = 18;
  static void integers(const uint8_t* p, int, Block& out) { SourceQ4_0::integers(p, 0, out); }
  static void decode(const uint8_t* p, int, float* out) {
    Block block;
    integers(p, 0, block);
    for (int i = 0; i < kBlock; ++i) out[i] = half_to_float(block.d) * static_cast<float>(kLevels[block.q[i]]);
  }
};

// Half d, high pairs of eight scales in 16 bits, their low nibbles in 4 bytes, 128 bytes of nibbles: d · (scale − 32) · kLevels[q].
struct SourceIQ4_XS : KSource<SourceIQ4_XS> {
  static constexpr int kBytes = 136, kRun = kBlock;
  static void scales(const uint8_t* p, SuperScales& out) {
    out.d = read_u16(p);
    for (int run = 0; run < 8; ++run) {
      const int nibble = (p[4 + run / 2] >> (4 * (run % 2))) & 15, pair = (read_u16(p + 2) >> (2 * run)) & 3;
      out.scale[run] = static_cast<int8_t>((nibble | (pair << 4)) - 32);
    }
  }
  static void quants(const uint8_t* p, int i, int8_t* q) { split_nibbles(p + 8 + 16 * i, q); }
  static int level(int q) { return kLevels[q]; }
};

// Not GGUF's: what readers of other checkpoints make of theirs.

struct SourceQ4_Z {  // half d, zero point z as a byte, 16 bytes of nibbles: d · (q − z)
  static constexpr int kValues = 32, kBytes = 19;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = read_u16(p);
    out.m = p[2];
    split_nibbles(p + 3, out.q);
  }
  static void decode(const uint8_t* p, int, float* out) {
    Block block;
    integers(p, 0, block);
    for (int i = 0; i < kBlock; ++i) out[i] = half_to_float(block.d) * static_cast<float>(block.q[i] - block.m);
  }
};

struct SourceQ8_F {  // float d, 32 signed bytes: d · q; as a block of integers, d is rounded to a half
  static constexpr int kValues = 32, kBytes = 36;
  static void integers(const uint8_t* p, int, Block& out) {
    out.d = float_to_half(SourceF32::decode_one(p));
    out.m = 0;
    std::memcpy(out.q, p + 4, kBlock);
  }
  static void decode(const uint8_t* p, int, float* out) {
    const float d = SourceF32::decode_one(p);
    for (int i = 0; i < kBlock; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(p[4 + i]));
  }
};

}  // namespace pyinfer
