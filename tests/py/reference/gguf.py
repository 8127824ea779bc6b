"""A small reader of good GGUF files for the reference. It does not defend itself: hostile files are not its job."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dequant import BLOCKS, dequantize

_TYPE_NAMES = {
    0: "F32", 1: "F16", 30: "BF16",
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    10: "Q2_K", 11: "Q3_K", 20: "IQ4_NL", 23: "IQ4_XS",
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


@dataclass(frozen=True)
class Tensor:
    """One tensor as it lies in the file: GGUF type name, numpy shape (outermost first) and raw bytes."""

    kind: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def values(self) -> NDArray[np.float32]:
        """The dequantised values, shape `self.shape`."""
        return dequantize(self.kind, self.data).reshape(self.shape)


@dataclass(frozen=True)
class Gguf:
    """Key/values and tensors of one file."""

    kv: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: str | Path) -> Gguf:
    """Reads a GGUF file of version 2 or 3; tensor data stay mapped."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data)
    assert cursor.scalar("I") == 0x46554747 and cursor.scalar("I") in (2, 3)
    n_tensors, n_kv = cursor.scalar("Q"), cursor.scalar("Q")
    kv: dict[str, Any] = {}
    for _ in range(n_kv):
        key = cursor.string()
        kv[key] = cursor.value(cursor.scalar("I"))
    infos = []
    for _ in range(n_tensors):
        name = cursor.string()
        dims = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
        infos.append((name, tuple(reversed(dims)), _TYPE_NAMES[cursor.scalar("I")], cursor.scalar("Q")))
    alignment = kv.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    raw = np.frombuffer(data, np.uint8)
    tensors = {}
    for name, shape, kind, offset in infos:
        values, size = BLOCKS[kind]
        n_bytes = int(np.prod(shape)) // values * size
        tensors[name] = Tensor(kind, shape, raw[start + offset : start + offset + n_bytes])
    return Gguf(kv, tensors)
