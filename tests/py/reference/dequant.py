"""Values of GGUF's block types, from the definition of each block. Knows bytes of blocks, not files or models.

Products of a half scale with small integers are exact in float64 and in float32, and each type adds at most one
offset, so one rounding from float64 to float32 gives the same bits as any float32 implementation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]

BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
}
"""Type name -> (values a block, bytes a block)."""


def _half(block: Bytes, at: int) -> Doubles:
    """The f16 at byte `at` of each block as a column, shape (n, 1)."""
    return np.ascontiguousarray(block[:, at : at + 2]).view("<f2").astype(np.float64)


def _nibbles(qs: Bytes) -> Doubles:
    """16 bytes -> 32 integers: low nibbles are values 0..15, high nibbles values 16..31."""
    return np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.float64)


def _fifth_bits(qh: Bytes) -> Doubles:
    """4 bytes -> 32 fifth bits, already worth 16."""
    return np.unpackbits(qh, axis=1, bitorder="little").astype(np.float64) * 16.0


def _q4_0(b: Bytes) -> Doubles:
    return _half(b, 0) * (_nibbles(b[:, 2:]) - 8.0)


def _q4_1(b: Bytes) -> Doubles:
    return _half(b, 0) * _nibbles(b[:, 4:]) + _half(b, 2)


def _q5_0(b: Bytes) -> Doubles:
    return _half(b, 0) * (_nibbles(b[:, 6:]) + _fifth_bits(b[:, 2:6]) - 16.0)


def _q5_1(b: Bytes) -> Doubles:
    return _half(b, 0) * (_nibbles(b[:, 8:]) + _fifth_bits(b[:, 4:8])) + _half(b, 2)


def _q8_0(b: Bytes) -> Doubles:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float64)


def _six_bit_pairs(s: Bytes) -> tuple[Doubles, Doubles]:
    """12 bytes -> eight 6-bit scales and eight 6-bit minima, one of each for 32 values."""
    low_scale, low_min, rest = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scale = np.concatenate([low_scale & 63, (rest & 15) | (low_scale >> 6 << 4)], axis=1)
    minimum = np.concatenate([low_min & 63, (rest >> 4) | (low_min >> 6 << 4)], axis=1)
    return scale.astype(np.float64), minimum.astype(np.float64)


def _k_nibbles(qs: Bytes) -> NDArray[np.uint8]:
    """128 bytes -> (n, 8, 32): each run of 32 bytes holds one group in its low and the next in its high nibbles."""
    runs = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)


def _k_values(b: Bytes, integers: NDArray[np.uint8]) -> Doubles:
    scale, minimum = _six_bit_pairs(b[:, 4:16])
    d, m = _half(b, 0) * scale, _half(b, 2) * minimum
    return (d[:, :, None] * integers - m[:, :, None]).reshape(-1, 256)


def _q4_k(b: Bytes) -> Doubles:
    return _k_values(b, _k_nibbles(b[:, 16:]))


def _q5_k(b: Bytes) -> Doubles:
    group = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (b[:, None, 16:48] >> group) & 1
    return _k_values(b, _k_nibbles(b[:, 48:]) | fifth << 4)


def _q6_k(b: Bytes) -> Doubles:
    """Two halves of 128 values; within one, four runs of 32: low nibbles of 64 bytes, then their high nibbles."""
    low = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shift) & 3
    q = (low | high << 4).astype(np.float64).reshape(-1, 16, 16) - 32.0
    scale = b[:, 192:208].view(np.int8).astype(np.float64)
    return ((_half(b, 208) * scale)[:, :, None] * q).reshape(-1, 256)


def _k_pairs(qs: Bytes) -> NDArray[np.uint8]:
    """64 bytes -> (n, 8, 32): each run of 32 bytes holds four groups, the first in the lowest two bits."""
    shift = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    return ((qs.reshape(-1, 2, 1, 32) >> shift) & 3).reshape(-1, 8, 32)


def _q2_k(b: Bytes) -> Doubles:
    q = _k_pairs(b[:, 16:80]).reshape(-1, 16, 16).astype(np.float64)
    scale, minimum = (b[:, :16] & 15).astype(np.float64), (b[:, :16] >> 4).astype(np.float64)
    d, m = _half(b, 80) * scale, _half(b, 82) * minimum
    return (d[:, :, None] * q - m[:, :, None]).reshape(-1, 256)


def _q3_k(b: Bytes) -> Doubles:
    """A third bit that is clear takes 4 away. Scales: 16 nibbles, then 16 pairs of which byte i holds i, i + 4, ..."""
    group = np.arange(8, dtype=np.uint8)[None, :, None]
    third = (b[:, None, :32] >> group) & 1
    q = _k_pairs(b[:, 32:96]).astype(np.float64) - 4.0 * (1 - third.astype(np.float64))
    low = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], axis=1)
    high = np.concatenate([b[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = (low | high << 4).astype(np.float64) - 32.0
    return ((_half(b, 108) * scale)[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)


def _iq4_nl(b: Bytes) -> Doubles:
    return _half(b, 0) * _LEVELS[_nibbles(b[:, 2:]).astype(np.int64)]


def _iq4_xs(b: Bytes) -> Doubles:
    """A half, eight pairs of bits in 16, eight nibbles, then eight runs of 16 bytes."""
    pairs = np.ascontiguousarray(b[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    nibbles = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scale = (nibbles | pairs << 4).astype(np.float64) - 32.0
    levels = _LEVELS[_nibbles(b[:, 8:].reshape(-1, 16)).astype(np.int64)].reshape(-1, 8, 32)
    return ((_half(b, 0) * scale)[:, :, None] * levels).reshape(-1, 256)


_DECODERS = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def dequantize(kind: str, data: Bytes) -> NDArray[np.float32]:
    """Values of whole blocks as float32, flat and in order."""
    data = np.ascontiguousarray(data)
    if kind == "F32":
        return data.view("<f4").astype(np.float32)
    if kind == "F16":
        return data.view("<f2").astype(np.float32)
    if kind == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = data.reshape(-1, BLOCKS[kind][1])
    return _DECODERS[kind](blocks).astype(np.float32).reshape(-1)
