// Work on single rows: packing activations, rms-norm, SwiGLU, GeGLU, soft caps, rotary embedding, storing K and V.
#pragma once

#include <math.h>
#include <string.h>

#include "formats/tile.h"
#include "kernels/kernels.h"

namespace pyinfer {
namespace {

// e^x for x ≤ 88, within 2 ulp; 0 below −87; NaN stays NaN. x = n·ln 2 + r, |r| ≤ ln 2 / 2; e^r by its Taylor polynomial of degree 7 (the rest
// is below 2^-27), whose constant term is exactly 1, so that e^0 = 1.
inline F f_exp(F x) {
  const F clamped = f_max(f_set(-87.0f), x);
  const I n = f_round(f_mul(clamped, f_set(1.44269504f)));
  const F nf = f_from_i(n);
  // ln 2 in two parts, the first with few enough bits that n · part is exact.
  F r = f_fma(nf, f_set(-0.693359375f), clamped);
  r = f_fma(nf, f_set(2.12194440e-4f), r);
  F p = f_set(1.0f / 5040.0f);
  p = f_fma(p, r, f_set(1.0f / 720.0f));
  p = f_fma(p, r, f_set(1.0f / 120.0f));
  p = f_fma(p, r, f_set(1.0f / 24.0f));
  p = f_fma(p, r, f_set(1.0f / 6.0f));
  p = f_fma(p, r, f_set(0.5f));
  p = f_fma(p, r, f_set(1.0f));
  p = f_fma(p, r, f_set(1.0f));
  const F power = f_from_bits(i_shl(i_add(n, i_set(127)), 23));  // 2^n
  return f_keep_from(f_mul(p, power), x, f_set(-87.0f));
}

// Sums of a row's elements i, i + 16, i + 32 …, added up at the end half onto half: one order of additions, however many lanes there are.
struct SixteenSums {
  static constexpr size_t kCount = 16;
  static constexpr int kParts = (int)kCount / kLanes;
  F parts[kParts];

  SixteenSums() {
    PYINFER_UNROLL
    for (int i = 0; i < kParts; ++i) parts[i] = f_zero();
  }
  void add_squares(const float* x) {
    PYINFER_UNROLL
    for (int i = 0; i < kParts; ++i) parts[i] = f_fma(f_load(x + i * kLanes), f_load(x + i * kLanes), parts[i]);
  }
  float total() {
    PYINFER_UNROLL
    for (int n = kParts / 2; n > 0; n /= 2) {
      PYINFER_UNROLL
      for (int i = 0; i < n; ++i) parts[i] = f_add(parts[i], parts[i + n]);
    }
    return f_sum(parts[0]);
  }
};

// Below this 127 / max|x| would overflow: such a block is as good as zero.
constexpr float kLeastMagnitude = 1e-36f;

// max|x| over n values, in whole vectors; NaN if one is not finite. The bits of absolute values are integers in the same order, with
// infinity and NaN above all others.
inline float largest_magnitude(const float* x, int n) {
  constexpr int32_t kInfinity = 0x7f800000;
  I largest = i_set(0);
  for (int i = 0; i < n; i += kLanes) largest = i_max(largest, i_and(i_load(x + i), i_set(0x7fffffff)));
  const int32_t bits = i_hmax(largest);
  float magnitude;
  memcpy(&magnitude, &bits, sizeof magnitude);
  return bits < kInfinity ? magnitude : NAN;
}

// Quantises one block of 32 values: q = round(x · 127 / magnitude). sums: Σq over the first and the last 16.
inline void quantize_block(const float* x, float magnitude, int8_t* q, int32_t (&sums)[2]) {
  sums[0] = sums[1] = 0;
  if (!(magnitude >= kLeastMagnitude)) {
    memset(q, 0, kBlock);
    return;
  }
  const F inverse = f_set(127.0f / magnitude);
  I halves[2] = {i_set(0), i_set(0)};
  for (int i = 0; i < kBlock; i += kLanes) {
    const I rounded = f_round(f_mul(f_load(x + i), inverse));
    i_store_bytes(q + i, rounded);
    halves[i / 16] = i_add(halves[i / 16], rounded);
  }
  for (int i = 0; i < 2; ++i) sums[i] = i_sum(halves[i]);
}

// Puts a block of row `r`, whose values are at most `magnitude`, into an int8 panel of `n_rows` rows.
inline void put_panel_block(const float* x, float magnitude, int r, int n_rows, uint8_t* block) {
  int8_t q[kBlock];
  int32_t sums[2];
  quantize_block(x, magnitude, q, sums);
  for (int j = 0; j < kBlock / kDepth; ++j) memcpy(block + kDepth * (j * n_rows + r), q + kDepth * j, kDepth);
  uint8_t* tail = block + kBlock * n_rows;
  const float floats[] = {magnitude / 127.0f, (float)(sums[0] + sums[1])};
  const int32_t biases[] = {-8 * (sums[0] + sums[1]), -32 * sums[0], -32 * sums[1]};
  for (int i = 0; i < 2; ++i) memcpy(tail + 4 * (i * n_rows + r), &floats[i], 4);
  for (int i = 0; i < 3; ++i) memcpy(tail + 4 * ((2 + i) * n_rows + r), &biases[i], 4);
}

// Blocks that share a scale, one of whose values is not finite, get the scale NaN, so that it shows in the result.
void pack_int8(const float* x, size_t stride, int n_rows, size_t cols, int scale_blocks, uint8_t* panel) {
  const size_t padded = (cols + kPanelCols - 1) / kPanelCols * kPanelCols;
  const size_t shared = (size_t)(scale_blocks * kBlock), block_bytes = (size_t)(kPanelBlockBytes * n_rows);
  float tail[kPanelCols];
  for (size_t c = 0; c < padded; c += shared) {
    for (int r = 0; r < n_rows; ++r) {
      const float* values = x + (size_t)r * stride + c;
      if (c + shared > cols) {
        memset(tail, 0, sizeof tail);
        if (c < cols) memcpy(tail, values, (cols - c) * sizeof(float));
        values = tail;
      }
      const float magnitude = largest_magnitude(values, (int)shared);
      for (int b = 0; b < scale_blocks; ++b)
        put_panel_block(values + b * kBlock, magnitude, r, n_rows, panel + (size_t)b * block_bytes);
    }
    panel += (size_t)scale_blocks * block_bytes;
  }
}

// One block in place.
inline void subtract_quantized(float* x) {
  const float magnitude = largest_magnitude(x, kBlock);
  int8_t q[kBlock];
  int32_t sums[2];
  quantize_block(x, magnitude, q, sums);
  const F scale = f_set(-(magnitude / 127.0f));
  for (int i = 0; i < kBlock; i += kLanes)
    f_store(x + i, f_fma(scale, f_from_i(i_load_signed_bytes(q + i)), f_load(x + i)));
}

void int8_remainder(const float* x, size_t cols, float* remainder) {
  memcpy(remainder, x, cols * sizeof(float));
  size_t c = 0;
  for (; c + kBlock <= cols; c += kBlock) subtract_quantized(remainder + c);
  if (c == cols) return;
  float tail[kBlock] = {};
  memcpy(tail, remainder + c, (cols - c) * sizeof(float));
  subtract_quantized(tail);
  memcpy(remainder + c, tail, (cols - c) * sizeof(float));
}

void rms_norm(const float* x, const float* weight, float eps, size_t n, float* out) {
  SixteenSums squares;
  size_t i = 0;
  for (; i + SixteenSums::kCount <= n; i += SixteenSums::kCount) squares.add_squares(x + i);
  if (i < n) {
    float tail[SixteenSums::kCount] = {};
    memcpy(tail, x + i, (n - i) * sizeof(float));
    squares.add_squares(tail);
  }
  const float factor = 1.0f / sqrtf(squares.total() / (float)n + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) {
    f_store(out + i, f_mul(f_mul(f_load(x + i), f_set(factor)), f_load(weight + i)));
  }
  for (; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

void swiglu(const float* gate, const float* up, size_t n, float* out) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F g = f_load(gate + i);
    const F e = f_exp(f_min(f_sub(f_zero(), g), f_set(88.0f)));
    f_store(out + i, f_mul(f_div(g, f_add(f_set(1.0f), e)), f_load(up + i)));
  }
}

void geglu(const float* gate, const float* up, size_t n, float* out) {
  for (size_t i = 0; i < n; i += kLanes) {
    const F g = f_load(gate + i);
    const F inner = f_fma(f_mul(f_mul(g, g), g), f_set(0.044715f), g);
    const F e = f_exp(f_min(f_mul(inner, f_set(-1.5957691216f)), f_set(88.0f)));  // −2 √(2/π)
    f_store(out + i, f_mul(f_div(g, f_add(f_set(1.0f), e)), f_load(up + i)));
  }
}

// cap · tanh(x / cap), within a few units in the last place of cap: tanh y = 1 − 2 / (e^2y + 1). NaN stays NaN.
inline F f_soft_cap(F x, F cap) {
  const F e = f_exp(f_min(f_set(88.0f), f_div(f_add(x, x), cap)));
  return f_mul(cap, f_sub(f_set(1.0f), f_div(f_set(2.0f), f_add(e, f_set(1.0f)))));
}

void soft_cap(float* x, size_t n, float cap) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f_store(x + i, f_soft_cap(f_load(x + i), f_set(cap)));
  if (i == n) return;
  float tail[kLanes] = {};
  memcpy(tail, x + i, (n - i) * sizeof(float));
  f_store(tail, f_soft_cap(f_load(tail), f_set(cap)));
  memcpy(x + i, tail, (n - i) * sizeof(float));
}

void rope(float* head, const float* cosines, const float* sines, size_t half, size_t n, float scale) {
  for (size_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = a * sines[i] + b * cosines[i];
  }
  for (size_t i = 0; i < n; ++i) head[i] *= scale;
}

// Largest finite half: what is larger saturates, so that a page never holds infinities. NaN stays NaN.
inline F f_saturate_half(F x) { return f_max(f_set(-65504.0f), f_min(f_set(65504.0f), x)); }

// `n` floats as halves.
inline void to_halves(const float* x, int n, uint16_t* out) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) f_store_half(out + i, f_saturate_half(f_load(x + i)));
  if (i < n) {
    float tail[kLanes] = {};
    uint16_t halves[kLanes];
    memcpy(tail, x + i, (size_t)(n - i) * sizeof(float));
    f_store_half(halves, f_saturate_half(f_load(tail)));
    memcpy(out + i, halves, (size_t)(n - i) * sizeof(uint16_t));
  }
}

constexpr uint16_t kNanHalf = 0x7e00;

inline bool has_nan(const float* x, int n) {
  int found = 0;
  for (int i = 0; i < n; ++i) found |= x[i] != x[i];
  return found != 0;
}

// Values with NaN become 0 and their key NaN: so it shows where it is seen, while queries that must not see it meet it with a weight of 0, whose
// product with NaN would be NaN.
void store_kv_f16(const float* k, const float* v, int head_dim, int v_stride, int slot, uint8_t* k_place,
                  uint8_t* v_place) {
  uint16_t halves[kMaxHeadDim];
  uint16_t* const row = (uint16_t*)v_place + slot * v_stride;
  to_halves(k, head_dim, halves);
  if (has_nan(v, head_dim)) {
    for (int i = 0; i < head_dim; ++i) halves[i] = kNanHalf;
    memset(row, 0, (size_t)head_dim * sizeof *row);
  } else {
    to_halves(v, head_dim, row);
  }
  uint16_t* column = (uint16_t*)k_place + slot;
  for (int i = 0; i < head_dim; ++i) column[i * kPagePositions] = halves[i];
}

inline void i_store(int8_t* p, I a) { i_store_bytes(p, a); }
inline void i_store(int16_t* p, I a) { i_store_words(p, a); }

// Whole vectors x ≈ scale · q as integers q = round(x · Most / max|x|); returns the scale max|x| / Most, NaN if a value is not finite.
// Integers are 0 then, and where Most / max|x| might overflow.
template <int Most, class Int>
inline float to_integers(const float* x, int n, Int* q) {
  const float magnitude = largest_magnitude(x, n);
  if (magnitude >= Most * kLeastMagnitude) {
    const F inverse = f_set(Most / magnitude);
    for (int i = 0; i < n; i += kLanes) i_store(q + i, f_round(f_mul(f_load(x + i), inverse)));
  } else {
    memset(q, 0, (size_t)n * sizeof *q);
  }
  return magnitude / Most;
}

// The same of a row of up to kMaxHeadDim values, with zeros up to a whole vector.
template <int Most, class Int>
struct RowIntegers {
  alignas(kCacheLine) Int q[kMaxHeadDim];
  float scale;

  RowIntegers(const float* x, int n) {
    if (n % kLanes == 0) {
      scale = to_integers<Most>(x, n, q);
    } else {
      const int whole = n + kLanes - n % kLanes;
      float padded[kMaxHeadDim];
      memcpy(padded, x, (size_t)n * sizeof(float));
      memset(padded + n, 0, (size_t)(whole - n) * sizeof(float));
      scale = to_integers<Most>(padded, whole, q);
    }
  }
};

void store_kv_q8(const float* k, const float* v, int head_dim, int v_stride, int slot, uint8_t* k_place,
                 uint8_t* v_place) {
  const RowIntegers<127, int8_t> keys(k, head_dim), values(v, head_dim);
  for (int i = 0; i < head_dim; ++i) k_place[i * kPagePositions + slot] = (uint8_t)keys.q[i];
  memcpy(k_place + head_dim * kPagePositions + 4 * slot, &keys.scale, sizeof keys.scale);
  memcpy(v_place + slot * v_stride, values.q, (size_t)head_dim);
  memcpy(v_place + v_stride * kPagePositions + 4 * slot, &values.scale, sizeof values.scale);
}

// The largest integers of 16-bit caches. Sums of kPagePositions products fit 32 bits; of their bits keys get one more than the queries they
// meet, since they have the larger outliers, and weights one more than values.
constexpr int kMostKey = 8191, kMostQuery = 4095, kMostValue = 4095, kMostWeight = 8191;
static_assert((int64_t)kPagePositions * kMostKey * kMostQuery <= INT32_MAX, "scores fit");
static_assert((int64_t)kPagePositions * kMostValue * kMostWeight <= INT32_MAX, "outputs of a page fit");

void store_kv_i16(const float* k, const float* v, int head_dim, int v_stride, int slot, uint8_t* k_place,
                  uint8_t* v_place) {
  const RowIntegers<kMostKey, int16_t> keys(k, head_dim);
  const RowIntegers<kMostValue, int16_t> values(v, head_dim);
  for (int i = 0; i < head_dim; i += 2) memcpy(k_place + 2 * (i * kPagePositions + 2 * slot), keys.q + i, 4);
  memcpy(k_place + 2 * head_dim * kPagePositions + 4 * slot, &keys.scale, sizeof keys.scale);
  int16_t* to = (int16_t*)v_place + slot / 2 * 2 * v_stride + slot % 2;
  for (int i = 0; i < head_dim; ++i) to[2 * i] = values.q[i];
  memcpy(v_place + 2 * v_stride * kPagePositions + 4 * slot, &values.scale, sizeof values.scale);
}

}  // namespace
}  // namespace pyinfer
