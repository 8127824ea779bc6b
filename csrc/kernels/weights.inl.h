// How the kernels see each weight format: integers four columns at a time, scales and minima as floats, single columns as floats.
#pragma once

#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/q4.h"
#include "formats/q4k.h"
#include "formats/q4m.h"
#include "formats/q5k.h"
#include "formats/q6k.h"
#include "formats/q8.h"
#include "formats/q8m.h"

namespace pyinfer {
namespace {

// The scales of run `run` of a group, for one strip. A run is the columns that share a scale.
template <class Format>
inline F run_scale(const typename Format::Group& group, int run, int strip) {
  const int lane = kLanes * strip;
  if constexpr (!is_super_format<Format>) {
    return f_load_half(group.d[run] + lane);
  } else if constexpr (Format::kBias != 0) {
    return f_mul(f_load_half(group.d + lane), f_from_i(i_load_signed_bytes(group.scale[run] + lane)));
  } else {
    return f_mul(f_load_half(group.d + lane), f_from_i(i_load_bytes(group.scale[run] + lane)));
  }
}

// What is added to every value of block `b`, for formats with a minimum.
template <class Format>
inline F block_minimum(const typename Format::Group& group, int b, int strip) {
  const int lane = kLanes * strip;
  if constexpr (!is_super_format<Format>) {
    return f_load_half(group.m[b] + lane);
  } else {
    return f_sub(f_zero(), f_mul(f_load_half(group.dmin + lane), f_from_i(i_load_bytes(group.least[b] + lane))));
  }
}

// Columns 4·J … 4·J+3 of block `b`: unsigned integers of up to 6 bits, or signed bytes.
template <class Format, int J>
inline B four_columns(const typename Format::Group& group, int b, int strip) {
  const int at = 4 * kLanes * strip;
  if constexpr (Format::kBits == 8) {
    return b_load(group.q[b] + 64 * J + at);
  } else {
    const B packed = b_load(group.q[b] + 64 * (J % 4) + at);
    const B nibbles = J < 4 ? b_low_nibbles(packed) : b_high_nibbles(packed);
    if constexpr (Format::kBits == 5) return b_insert<4 - J>(nibbles, b_load(group.high[b] + at), 0x10);
    if constexpr (Format::kBits == 6)
      return b_insert<4 - 2 * (J % 4)>(nibbles, b_load(group.high[b] + 64 * (J / 4) + at), 0x30);
    return nibbles;
  }
}

// Column `c` of a group as kLanes float values.
template <class Format>
inline F column_values(const typename Format::Group& group, int strip, int c) {
  const int lane = kLanes * strip;
  if constexpr (is_float_format<Format>) {
    if constexpr (sizeof group.v[0][0] == sizeof(float)) {
      return f_load((const float*)group.v[c] + lane);
    } else if constexpr (Format::kIsHalf) {
      return f_load_half((const uint16_t*)group.v[c] + lane);
    } else {
      return f_load_bf16((const uint16_t*)group.v[c] + lane);
    }
  } else {
    const int b = c / kBlock, k = c % kBlock;
    I q;
    if constexpr (Format::kBits == 8) {
      q = i_load(group.q[b] + 64 * (k / 4) + 4 * lane);
      q = i_sra(i_shl(q, 24 - 8 * (k % 4)), 24);
    } else {
      q = i_load(group.q[b] + 64 * (k / 4 % 4) + 4 * lane);
      q = i_and(i_shr(q, 8 * (k % 4) + (k >= kBlock / 2 ? 4 : 0)), i_set(15));
    }
    if constexpr (Format::kBits == 5) {
      const I fifth = i_shr(i_load(group.high[b] + 4 * lane), 8 * (k % 4) + k / 4);
      q = i_add(q, i_shl(i_and(fifth, i_set(1)), 4));
    }
    if constexpr (Format::kBits == 6) {
      const I pair = i_shr(i_load(group.high[b] + 64 * (k / 16) + 4 * lane), 8 * (k % 4) + 2 * (k / 4 % 4));
      q = i_add(q, i_shl(i_and(pair, i_set(3)), 4));
    }
    const F value = f_mul(run_scale<Format>(group, c / Format::kRun, strip), f_from_i(i_add(q, i_set(-Format::kBias))));
    if constexpr (Format::kHasMinimum) return f_add(value, block_minimum<Format>(group, b, strip));
    return value;
  }
}

}  // namespace
}  // namespace pyinfer
