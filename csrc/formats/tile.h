// What all packed matrices share: tiles of 16 rows, groups of columns, blocks of 32 integers. See docs/model-file.md.
// Includes C headers only and defines everything with internal linkage, so that kernels may use it.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace pyinfer {
namespace {

constexpr int kTileRows = 16;
constexpr int kBlock = 32;        // columns that share a scale
constexpr int kQuantGroup = 64;   // columns a group of the quantised formats
constexpr int kSuperGroup = 256;  // columns a group of the K formats: blocks with integer scales under one half
constexpr int kFloatGroup = 4;    // columns a group of the float formats

// The two kinds of format that differ from "integers in groups of 64 columns": floats, and blocks of K sources as they are.
template <class Format>
constexpr bool is_float_format = Format::kGroupCols == kFloatGroup;
template <class Format>
constexpr bool is_super_format = Format::kGroupCols == kSuperGroup;

// Formats whose integers are indices of a codebook; specialised where one is defined.
template <class Format>
constexpr bool is_codebook_format = false;
// Formats whose minimum is −d · z with an integer z; specialised likewise.
template <class Format>
constexpr bool is_zero_point_format = false;

// One block of one row, before it is put into a tile: value = d · q + m (q4: d · (q − 8)).
struct Block {
  int8_t q[kBlock];
  uint16_t d;  // half
  uint16_t m;  // half; 0 in formats without a minimum; q4z: the zero point as an integer
};

// The scales of 256 columns of one row, before they are put into a tile: value = d · scale · q − dmin · least, run by run.
struct SuperScales {
  uint16_t d, dmin;  // halves
  int8_t scale[16];
  uint8_t least[16];
};

// Puts a row's scales into a group that has no minima.
template <class Group>
inline void put_scales_alone(Group& group, int row, const SuperScales& scales) {
  group.d[row] = scales.d;
  for (size_t run = 0; run < sizeof group.scale / kTileRows; ++run) group.scale[run][row] = scales.scale[run];
}

// Puts a row's scales and minima, a byte each, into a group.
template <class Group>
inline void put_scales_and_minima(Group& group, int row, const SuperScales& scales) {
  group.d[row] = scales.d;
  group.dmin[row] = scales.dmin;
  for (size_t run = 0; run < sizeof group.scale / kTileRows; ++run) {
    group.scale[run][row] = (uint8_t)scales.scale[run];
    group.least[run][row] = scales.least[run];
  }
}

// Where an 8-bit integer lies among the 512 bytes of a block of 16 rows.
inline int byte_index(int row, int column) { return 64 * (column / 4) + 4 * row + column % 4; }
// Where a 4-bit integer lies among the 256 bytes: columns 0…15 in low nibbles, 16…31 in high ones.
inline int nibble_index(int row, int column) { return byte_index(row, column % 16); }

// Bytes of a word, so that one operation does for all of them.
inline uint32_t load_four(const void* p) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return word;
}
inline uint64_t load_eight(const void* p) {
  uint64_t word;
  memcpy(&word, p, sizeof word);
  return word;
}
inline void store_four(void* p, uint32_t word) { memcpy(p, &word, sizeof word); }
inline void store_eight(void* p, uint64_t word) { memcpy(p, &word, sizeof word); }
// Bits of `mask` from bit `from` on of each byte.
inline uint32_t bits_of_four(const void* p, int from, uint32_t mask) {
  return (load_four(p) >> from) & (mask * 0x01010101u);
}
inline uint64_t bits_of_eight(const void* p, int from, uint64_t mask) {
  return (load_eight(p) >> from) & (mask * 0x0101010101010101u);
}

// Four columns of a row stand together in all of these.
inline void put_bytes(int8_t* tile, int row, const int8_t* q) {
  for (int column = 0; column < kBlock; column += 4) store_four(tile + byte_index(row, column), load_four(q + column));
}

// The low four bits of each integer.
inline void put_nibbles(uint8_t* tile, int row, const int8_t* q) {
  for (int column = 0; column < kBlock / 2; column += 4) {
    const uint32_t high = bits_of_four(q + column + kBlock / 2, 0, 15);
    store_four(tile + nibble_index(row, column), bits_of_four(q + column, 0, 15) | high << 4);
  }
}

// Where two bits lie among the 128 bytes of a block: four columns of a row share a byte.
inline int pair_index(int row, int column) { return 64 * (column / 16) + 4 * row + column % 4; }
inline int pair_shift(int column) { return 2 * (column / 4 % 4); }
// Where one bit lies among the 64 bytes of a block: bit column / 4 of this byte.
inline int bit_index(int row, int column) { return 4 * row + column % 4; }

// Puts bits `from` and `from` + 1 of each integer.
inline void put_pairs(uint8_t* tile, int row, const int8_t* q, int from) {
  for (int first = 0; first < kBlock; first += 16) {
    uint32_t bytes = 0;
    for (int column = first; column < first + 16; column += 4)
      bytes |= bits_of_four(q + column, from, 3) << pair_shift(column);
    store_four(tile + pair_index(row, first), bytes);
  }
}

// Puts bit `from` of each integer.
inline void put_bits(uint8_t* tile, int row, const int8_t* q, int from) {
  uint32_t bytes = 0;
  for (int column = 0; column < kBlock; column += 4) bytes |= bits_of_four(q + column, from, 1) << (column / 4);
  store_four(tile + bit_index(row, 0), bytes);
}

inline int get_pair(const uint8_t* tile, int row, int column) {
  return (tile[pair_index(row, column)] >> pair_shift(column)) & 3;
}

inline int get_bit(const uint8_t* tile, int row, int column) {
  return (tile[bit_index(row, column)] >> (column / 4)) & 1;
}

inline int get_nibble(const uint8_t* tile, int row, int column) {
  const int byte = tile[nibble_index(row, column)];
  return column < kBlock / 2 ? byte & 15 : byte >> 4;
}

}  // namespace
}  // namespace pyinfer
