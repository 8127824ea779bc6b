"""Random weights, written directly as GGUF blocks: random integers under plausible scales, never quantised from floats.

Every matrix is cut from the pool of its type; the pool's length is prime, so that rows do not repeat in step.
Knows blocks, not models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

Type = GGMLQuantizationType
Bytes = NDArray[np.uint8]

POOL_BLOCKS = {1: 2097143, 32: 131071, 256: 16381}  # primes; about 2 to 4 MB a pool


def _scales(rng: np.random.Generator, n: int, size: float) -> NDArray[np.float16]:
    """f16 scales of about this size, half of them negative, (n, 1)."""
    sign = rng.integers(0, 2, (n, 1)) * 2 - 1
    return (size * sign * rng.uniform(0.8, 1.2, (n, 1))).astype(np.float16)


def _bytes(rng: np.random.Generator, n: int, width: int) -> Bytes:
    return np.frombuffer(rng.bytes(n * width), np.uint8).reshape(n, width)


def _join(*parts: NDArray[np.generic]) -> Bytes:
    return np.concatenate([part.view(np.uint8) for part in parts], axis=1)


def _f16(rng: np.random.Generator, n: int, std: float) -> Bytes:
    values = rng.standard_normal((n, 1), np.float32) * np.float32(std)
    return _join(values.astype(np.float16))


def _q4_0(rng: np.random.Generator, n: int, std: float) -> Bytes:
    return _join(_scales(rng, n, std / 4.61), _bytes(rng, n, 16))


def _q4_1(rng: np.random.Generator, n: int, std: float) -> Bytes:
    d = _scales(rng, n, std / 4.61)
    return _join(d, (d * np.float32(-7.5)).astype(np.float16), _bytes(rng, n, 16))


def _q5_0(rng: np.random.Generator, n: int, std: float) -> Bytes:
    return _join(_scales(rng, n, std / 9.23), _bytes(rng, n, 20))


def _q8_0(rng: np.random.Generator, n: int, std: float) -> Bytes:
    return _join(_scales(rng, n, std / 73.3), rng.integers(-127, 128, (n, 32), np.int8))


def _q4_k(rng: np.random.Generator, n: int, std: float) -> Bytes:
    """Sub-scale equals sub-minimum and the minimum's scale is 7.5 times the other: centred at zero."""
    d = np.abs(_scales(rng, n, std / (4.61 * 45)))
    sub = rng.integers(27, 64, (n, 8), np.uint8)  # 6 bits, mean 45
    low, high = sub[:, :4], sub[:, 4:]
    packed = [low | (high >> 4) << 6, low | (high >> 4) << 6, (high & 15) | (high & 15) << 4]
    return _join(d, (d * np.float32(7.5)).astype(np.float16), *packed, _bytes(rng, n, 128))


def _q6_k(rng: np.random.Generator, n: int, std: float) -> Bytes:
    sub = rng.integers(60, 128, (n, 16), np.int8)  # mean 93.5
    return _join(_bytes(rng, n, 192), sub, _scales(rng, n, std / (18.5 * 93.5)))


MAKERS: dict[Type, Callable[[np.random.Generator, int, float], Bytes]] = {
    Type.F16: _f16,
    Type.Q4_0: _q4_0,
    Type.Q4_1: _q4_1,
    Type.Q5_0: _q5_0,
    Type.Q8_0: _q8_0,
    Type.Q4_K: _q4_k,
    Type.Q6_K: _q6_k,
}


class Pools:
    """One pool of random blocks for every (type, spread) that was asked for."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[tuple[Type, float], Bytes] = {}

    def matrix(self, kind: Type, rows: int, cols: int, std: float) -> Bytes:
        """A matrix of this type as raw bytes, (rows, bytes a row); its values have about the spread `std`."""
        values, width = GGML_QUANT_SIZES[kind]
        if cols % values:
            raise ValueError(f"rows of {kind.name} are multiples of {values} columns, found {cols}")
        if (kind, std) not in self._pools:
            self._pools[kind, std] = MAKERS[kind](self._rng, POOL_BLOCKS[values], std)
        pool = self._pools[kind, std].reshape(-1)
        start = int(self._rng.integers(0, POOL_BLOCKS[values])) * width
        need = rows * cols // values * width
        copies = (start + need + pool.size - 1) // pool.size
        return np.tile(pool, copies)[start : start + need].reshape(rows, cols // values * width)
