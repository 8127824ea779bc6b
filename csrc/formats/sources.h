// Weight blocks as checkpoints store them, and how each is read. Layouts: the GGUF specification and ggml's block structures.
//
// A source type has `kValues` a block of `kBytes`, and
//   decode(block, i, out)   the i-th run of 32 values as floats, bit-equal to gguf's own dequantisation;
//   integers(block, i, out) the same run as integers with a scale (and a minimum) in halves, for types of 32 values a block;
//   quants(block, i, out)   the integers alone, for types of 256 values, whose scales are packed in a form of their own.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/half.h"
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
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>(nibbles[i] & 15);
    q[i + 16] = static_cast<int8_t>(nibbles[i] >> 4);
  }
}

// Adds bit i of `bits` as the fifth bit of value i.
inline void add_fifth_bits(const uint8_t* bits, int8_t* q) {
  for (int i = 0; i < kBlock; ++i) q[i] = static_cast<int8_t>(q[i] | (((bits[i / 8] >> (i % 8)) & 1) << 4));
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

// Q4_K and Q5_K share a head: half d, half dmin, 12 bytes of scales; value = d·scale·q − dmin·min.
struct KRun {
  float scale;  // d · scale
  float least;  // dmin · min
};

inline KRun read_k_run(const uint8_t* p, int i) {
  int scale = 0, least = 0;
  read_scale_min(p + 4, i, scale, least);
  return {read_half(p) * static_cast<float>(scale), read_half(p + 2) * static_cast<float>(least)};
}

// Run i of the 4-bit part of a K block: runs 2j and 2j+1 share 32 bytes, as low and high nibbles.
inline void read_k_nibbles(const uint8_t* nibbles, int i, int8_t* q) {
  const uint8_t* run = nibbles + 32 * (i / 2);
  for (int l = 0; l < kBlock; ++l) q[l] = static_cast<int8_t>(i % 2 ? run[l] >> 4 : run[l] & 15);
}

template <class K>
struct KSource {
  static constexpr int kValues = 256;
  static void decode(const uint8_t* p, int i, float* out) {
    const KRun run = read_k_run(p, i);
    int8_t q[kBlock];
    K::quants(p, i, q);
    for (int l = 0; l < kBlock; ++l) out[l] = run.scale * static_cast<float>(q[l]) - run.least;
  }
};

struct SourceQ4_K : KSource<SourceQ4_K> {  // head, 128 bytes of nibbles
  static constexpr int kBytes = 144;
  static void quants(const uint8_t* p, int i, int8_t* q) { read_k_nibbles(p + 16, i, q); }
};

struct SourceQ5_K : KSource<SourceQ5_K> {  // head, 32 bytes of fifth bits (bit i is run i's), 128 bytes of nibbles
  static constexpr int kBytes = 176;
  static void quants(const uint8_t* p, int i, int8_t* q) {
    read_k_nibbles(p + 48, i, q);
    for (int l = 0; l < kBlock; ++l) q[l] = static_cast<int8_t>(q[l] | (((p[16 + l] >> i) & 1) << 4));
  }
};

struct
    SourceQ6_K {  // 128 bytes low nibbles, 64 bytes high pairs, 16 signed scales, half d: d · scale · (q − 32), scales per 16
  static constexpr int kValues = 256, kBytes = 210;
  // Run i of 32 values, 0…63. A half of 128 values is four runs at the low and high nibbles of two 32-byte rows.
  static void quants(const uint8_t* p, int i, int8_t* q) {
    const int half = i / 4, run = i % 4;
    const uint8_t* low = p + 64 * half + 32 * (run % 2);
    const uint8_t* high = p + 128 + 32 * half;
    for (int l = 0; l < kBlock; ++l) {
      const int nibble = run < 2 ? low[l] & 15 : low[l] >> 4;
      q[l] = static_cast<int8_t>(nibble | (((high[l] >> (2 * run)) & 3) << 4));
    }
  }
  static void decode(const uint8_t* p, int i, float* out) {
    int8_t q[kBlock];
    quants(p, i, q);
    const float d = read_half(p + 208);
    for (int l = 0; l < kBlock; ++l) {
      const auto scale = static_cast<int8_t>(p[192 + 2 * i + l / 16]);
      out[l] = d * static_cast<float>(scale) * static_cast<float>(q[l] - 32);
    }
  }
};

}  // namespace pyinfer
