// How the kernels see each weight format: integers four columns at a time, scales and minima as floats, single columns as floats.
#pragma once

#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/iq4.h"
#include "formats/iq4k.h"
#include "formats/q2k.h"
#include "formats/q3k.h"
#include "formats/q4.h"
#include "formats/q4k.h"
#include "formats/q4m.h"
#include "formats/q4z.h"
#include "formats/q5k.h"
#include "formats/q6k.h"
#include "formats/q8.h"
#include "formats/q8m.h"

namespace pyinfer {
namespace {

inline I load_scales(const uint8_t* p) { return i_load_bytes(p); }
inline I load_scales(const int8_t* p) { return i_load_signed_bytes(p); }

// The scales of run `run` of a group, for one strip. A run is the columns that share a scale.
template <class Format>
inline F run_scale(const typename Format::Group& group, int run, int strip) {
  const int lane = kLanes * strip;
  if constexpr (!is_super_format<Format>) {
    return f_load_half(group.d[run] + lane);
  } else if constexpr (Format::kBits == 2) {
    const I scales = i_and(i_load_bytes(group.scale_least[run] + lane), i_set(15));
    return f_mul(f_load_half(group.d + lane), f_from_i(scales));
  } else {
    return f_mul(f_load_half(group.d + lane), f_from_i(load_scales(group.scale[run] + lane)));
  }
}

// What is added to every value of run `run`, for formats with a minimum.
template <class Format>
inline F run_minimum(const typename Format::Group& group, int run, int strip) {
  const int lane = kLanes * strip;
  if constexpr (is_zero_point_format<Format>) {
    const F z = f_from_i(i_load_bytes(group.z[run] + lane));
    return f_sub(f_zero(), f_mul(f_load_half(group.d[run] + lane), z));
  } else if constexpr (!is_super_format<Format>) {
    return f_load_half(group.m[run] + lane);
  } else if constexpr (Format::kBits == 2) {
    const I least = i_shr(i_load_bytes(group.scale_least[run] + lane), 4);
    return f_sub(f_zero(), f_mul(f_load_half(group.dmin + lane), f_from_i(least)));
  } else {
    return f_sub(f_zero(), f_mul(f_load_half(group.dmin + lane), f_from_i(i_load_bytes(group.least[run] + lane))));
  }
}

// Columns 4·J … 4·J+3 of block `b`: unsigned integers of up to 6 bits, or signed bytes (8 bits, levels of a codebook).
template <class Format, int J>
PYINFER_INLINE B four_columns(const typename Format::Group& group, int b, int strip) {
  const int at = 4 * kLanes * strip;
  if constexpr (Format::kBits == 8) {
    return b_load(group.q[b] + 64 * J + at);
  } else if constexpr (Format::kBits <= 3) {
    const B pairs = b_pair<J % 4>(b_load(group.q[b] + 64 * (J / 4) + at));
    if constexpr (Format::kBits == 3) return b_insert<2 - J>(pairs, b_load(group.high[b] + at), 4);
    return pairs;
  } else {
    const B packed = b_load(group.q[b] + 64 * (J % 4) + at);
    const B nibbles = J < 4 ? b_low_nibbles(packed) : b_high_nibbles(packed);
    if constexpr (Format::kBits == 5) return b_insert<4 - J>(nibbles, b_load(group.high[b] + at), 0x10);
    if constexpr (Format::kBits == 6)
      return b_insert<4 - 2 * (J % 4)>(nibbles, b_load(group.high[b] + 64 * (J / 4) + at), 0x30);
    if constexpr (is_codebook_format<Format>) return b_lookup(kLevels, nibbles);
    return nibbles;
  }
}

// Column `column` of a tile as kLanes float values.
template <class Format>
PYINFER_INLINE F column_values(const typename Format::Group* groups, int strip, size_t column) {
  const int lane = kLanes * strip;
  if constexpr (is_float_format<Format>) {  // columns stand one after the other, in all groups
    const auto* values = groups->v[0] + column * kTileRows + lane;
    if constexpr (sizeof *values == sizeof(float)) {
      return f_load((const float*)values);
    } else if constexpr (Format::kIsHalf) {
      return f_load_half((const uint16_t*)values);
    } else {
      return f_load_bf16((const uint16_t*)values);
    }
  } else {
    const typename Format::Group& group = groups[column / Format::kGroupCols];
    const int c = (int)(column % Format::kGroupCols);
    const int b = c / kBlock, k = c % kBlock;
    I q;
    if constexpr (Format::kBits == 8) {
      q = i_load(group.q[b] + 64 * (k / 4) + 4 * lane);
      q = i_sra(i_shl(q, 24 - 8 * (k % 4)), 24);
    } else if constexpr (is_codebook_format<Format>) {
      const B packed = b_load(group.q[b] + 64 * (k / 4 % 4) + 4 * lane);
      q = i_from_b(b_lookup(kLevels, k < kBlock / 2 ? b_low_nibbles(packed) : b_high_nibbles(packed)));
      q = i_sra(i_shl(q, 24 - 8 * (k % 4)), 24);
    } else if constexpr (Format::kBits <= 3) {
      q = i_shr(i_load(group.q[b] + 64 * (k / 16) + 4 * lane), 8 * (k % 4) + 2 * (k / 4 % 4));
      q = i_and(q, i_set(3));
    } else {
      q = i_load(group.q[b] + 64 * (k / 4 % 4) + 4 * lane);
      q = i_and(i_shr(q, 8 * (k % 4) + (k >= kBlock / 2 ? 4 : 0)), i_set(15));
    }
    if constexpr (Format::kBits == 3 || Format::kBits == 5) {
      const I top = i_shr(i_load(group.high[b] + 4 * lane), 8 * (k % 4) + k / 4);
      q = i_add(q, i_shl(i_and(top, i_set(1)), Format::kBits - 1));
    }
    if constexpr (Format::kBits == 6) {
      const I pair = i_shr(i_load(group.high[b] + 64 * (k / 16) + 4 * lane), 8 * (k % 4) + 2 * (k / 4 % 4));
      q = i_add(q, i_shl(i_and(pair, i_set(3)), 4));
    }
    const F value = f_mul(run_scale<Format>(group, c / Format::kRun, strip), f_from_i(i_add(q, i_set(-Format::kBias))));
    if constexpr (Format::kHasMinimum) return f_add(value, run_minimum<Format>(group, c / Format::kRun, strip));
    return value;
  }
}

}  // namespace
}  // namespace pyinfer
