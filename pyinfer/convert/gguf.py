"""Reads GGUF v2 and v3 strictly: header, typed keys, tensor table. Every count is checked against the
bytes that are left before anything is made of it, so a hostile file costs neither time nor memory.

Must not know what a key or a tensor means: that is for `gguf_tokenizer.py` and the families. The format is
the one that the GGUF specification of the ggml project describes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.convert.checkpoint import (
    RawTensor,
    ReadRows,
    file_rows,
    open_regular,
    read_exactly,
    row_bytes,
)
from pyinfer.errors import ModelFileError, UnsupportedError

MAGIC = b"GGUF"
MAX_HEADER = 64 << 20
MAX_STRINGS = 1 << 22  # entries of one array of strings
MAX_NAME = 64  # bytes of a tensor's name
MAX_KEY = 65535

_SCALARS = {
    0: ("u8", "<u1"), 1: ("i8", "<i1"), 2: ("u16", "<u2"), 3: ("i16", "<i2"), 4: ("u32", "<u4"), 5: ("i32", "<i4"),
    6: ("f32", "<f4"), 7: ("bool", "<u1"), 10: ("u64", "<u8"), 11: ("i64", "<i8"), 12: ("f64", "<f8"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")

TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2 (removed)", 5: "Q4_3 (removed)", 6: "Q5_0", 7: "Q5_1",
    8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    31: "Q4_0_4_4 (removed)", 32: "Q4_0_4_8 (removed)", 33: "Q4_0_8_8 (removed)", 34: "TQ1_0", 35: "TQ2_0",
    36: "IQ4_NL_4_4 (removed)", 37: "IQ4_NL_4_8 (removed)", 38: "IQ4_NL_8_8 (removed)", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Every tensor type that GGUF has numbered."""
READABLE = tuple(name for name in TYPE_NAMES.values() if name in _core.SOURCES)
"""Those that can be read."""


@dataclass(frozen=True)
class Value:
    """A key's value: `kind` is a scalar's name, `string`, or either with `[]` for an array."""

    kind: str
    data: Any


class KeyValues:
    """Typed access to the keys: a wrong type or an odd value is a ModelFileError that names the key."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def names(self) -> list[str]:
        """All keys in the file's order."""
        return list(self._values)

    def _get(self, key: str, kinds: tuple[str, ...], wanted: str) -> Any:
        if key not in self._values:
            return None
        value = self._values[key]
        if value.kind not in kinds:
            raise ModelFileError(f"{key}: expected {wanted}, found {value.kind}")
        return value.data

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer within limits; without a default the key must be there."""
        value = self._get(key, _INTEGERS, "an integer")
        if value is None:
            if default is None:
                raise ModelFileError(f"{key}: expected an integer, found no such key")
            return default
        if not low <= value <= high:
            raise ModelFileError(f"{key}: expected {low} to {high}, found {value}")
        return int(value)

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        """An integer within limits, or None where the key is missing."""
        return self.integer(key, low, high) if key in self else None

    def number(self, key: str, default: float | None = None) -> float:
        """A float, or an integer where a float is meant."""
        value = self._get(key, ("f32", "f64", *_INTEGERS), "a number")
        if value is None:
            if default is None:
                raise ModelFileError(f"{key}: expected a number, found no such key")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key, ("bool",), "true or false")
        return default if value is None else bool(value)

    def text(self, key: str) -> str | None:
        """A string, or None where the key is missing."""
        value: str | None = self._get(key, ("string",), "a string")
        return value

    def texts(self, key: str) -> list[str] | None:
        """An array of strings, or None."""
        value: list[str] | None = self._get(key, ("string[]",), "an array of strings")
        return value

    def integers(self, key: str) -> NDArray[Any] | None:
        """An array of 32-bit integers, or None."""
        value: NDArray[Any] | None = self._get(key, ("i32[]", "u32[]"), "an array of 32-bit integers")
        return value

    def floats(self, key: str) -> NDArray[Any] | None:
        """An array of 32-bit floats, or None."""
        value: NDArray[Any] | None = self._get(key, ("f32[]",), "an array of 32-bit floats")
        return value

    def agrees(self, key: str, other: KeyValues) -> bool:
        """Whether the other file has the same value here; `split.no` is each file's own."""
        if key == "split.no":
            return True
        ours, theirs = self._values[key], other._values.get(key)
        if theirs is None or ours.kind != theirs.kind:
            return False
        if isinstance(ours.data, list):  # of texts, which numpy would make as wide as the longest
            return bool(ours.data == theirs.data)
        return bool(np.array_equal(ours.data, theirs.data))

    def scalar(self, key: str) -> Any:
        """The plain value of a key that is there, of any type but an array."""
        value = self._values[key]
        if value.kind.endswith("[]"):
            raise ModelFileError(f"{key}: expected a single value, found {value.kind}")
        return value.data


class _Header:
    """The front of the file, read as it is needed; `at` is where parsing stands."""

    def __init__(self, descriptor: int) -> None:
        self.size = os.fstat(descriptor).st_size
        self.data = b""
        self.at = 0
        self._descriptor = descriptor

    def need(self, n: int, what: str) -> int:
        """Makes `n` more bytes available and returns where they end."""
        end = self.at + n
        if n > self.size - self.at:
            raise ModelFileError(
                f"{what}: expected {n} bytes at offset {self.at}, found {self.size - self.at} left"
            )
        if end > MAX_HEADER:
            raise ModelFileError(
                f"{what}: expected a header of at most {MAX_HEADER} bytes, found one of {end} or more"
            )
        if end > len(self.data):
            have = len(self.data)
            upto = min(self.size, max(end, 2 * have, 1 << 16))
            self.data += read_exactly(self._descriptor, have, upto - have).tobytes()
        return end

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        """Fixed-size fields."""
        start = self.at
        self.at = self.need(struct.calcsize(layout), what)
        return struct.unpack_from(layout, self.data, start)

    def string(self, what: str, limit: int = MAX_HEADER) -> str:
        """A length and that many bytes of UTF-8."""
        (length,) = self.unpack("<Q", what)
        if length > limit:
            raise ModelFileError(f"{what}: expected a string of at most {limit} bytes, found {length}")
        start = self.at
        self.at = self.need(length, what)
        return _utf8(self.data[start : self.at], what)

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings; written out because vocabularies have hundreds of thousands."""
        if count > MAX_STRINGS:
            raise ModelFileError(f"{what}: expected at most {MAX_STRINGS} strings, found {count}")
        items, unpack, data = [], struct.Struct("<Q").unpack_from, self.data
        for _ in range(count):
            start = self.at + 8
            if start > len(data):
                self.need(8, what)
                data = self.data
            end = start + unpack(data, self.at)[0]
            if end > len(data):
                self.at = start
                self.need(end - start, what)
                data = self.data
            items.append(_utf8(data[start:end], what))
            self.at = end
        return items


def _utf8(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{what}: expected UTF-8, found {raw[error.start : error.start + 1]!r}"
        ) from None


def _read_value(header: _Header, key: str) -> Value:
    (type_id,) = header.unpack("<I", key)
    if type_id == _STRING:
        return Value("string", header.string(key))
    if type_id == _ARRAY:
        return _read_array(header, key)
    if type_id not in _SCALARS:
        raise ModelFileError(f"{key}: expected a value type of 0 to 12, found {type_id}")
    kind, layout = _SCALARS[type_id]
    numbers = _read_numbers(header, key, kind, layout, 1)
    return Value(kind, numbers[0].item())


def _read_array(header: _Header, key: str) -> Value:
    type_id, count = header.unpack("<IQ", key)
    if type_id == _ARRAY:
        raise UnsupportedError(f"{key}: expected an array of scalars or strings, found an array of arrays")
    if type_id != _STRING and type_id not in _SCALARS:
        raise ModelFileError(f"{key}: expected an element type of 0 to 12, found {type_id}")
    smallest = 8 if type_id == _STRING else np.dtype(_SCALARS[type_id][1]).itemsize
    if count > (header.size - header.at) // smallest:
        raise ModelFileError(
            f"{key}: expected {count} elements, found {header.size - header.at} bytes left in the file"
        )
    if type_id == _STRING:
        return Value("string[]", header.strings(count, key))
    kind, layout = _SCALARS[type_id]
    return Value(f"{kind}[]", _read_numbers(header, key, kind, layout, count))


def _read_numbers(header: _Header, key: str, kind: str, layout: str, count: int) -> NDArray[Any]:
    start = header.at
    header.at = header.need(count * np.dtype(layout).itemsize, key)
    numbers = np.frombuffer(header.data[start : header.at], layout)
    if kind == "bool" and numbers.size and numbers.max() > 1:
        raise ModelFileError(f"{key}: expected booleans of 0 or 1, found {numbers.max()}")
    return numbers


def _read_key_values(header: _Header, count: int) -> KeyValues:
    values: dict[str, Value] = {}
    for i in range(count):
        key = header.string(f"key {i}", MAX_KEY)
        if not key or key in values:
            raise ModelFileError(
                f"key {i}: expected a new key, found {key!r} {'again' if key else ''}".rstrip()
            )
        values[key] = _read_value(header, key)
    return KeyValues(values)


@dataclass(frozen=True)
class TensorInfo:
    """One record of the tensor table; `shape` has the rows first, `offset` counts from the start of the
    tensor data.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """All dimensions but the fastest, multiplied."""
        count = 1
        for n in self.shape[:-1]:
            count *= n
        return count

    @property
    def bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.rows * row_bytes(self.source, self.shape[-1])


def _read_tensor_info(header: _Header, index: int) -> TensorInfo:
    name = header.string(f"tensor {index}", MAX_NAME)
    if not name:
        raise ModelFileError(f"tensor {index}: expected a name, found an empty one")
    (n_dims,) = header.unpack("<I", name)
    if not 1 <= n_dims <= 4:
        raise ModelFileError(f"{name}: expected 1 to 4 dimensions, found {n_dims}")
    dims = header.unpack(f"<{n_dims}Q", name)
    type_id, offset = header.unpack("<IQ", name)
    if type_id not in TYPE_NAMES:
        raise ModelFileError(f"{name}: expected a tensor type of 0 to {max(TYPE_NAMES)}, found {type_id}")
    source = TYPE_NAMES[type_id]
    if source not in READABLE:
        raise UnsupportedError(
            f"{name}: tensor type {source} is not supported; supported are {', '.join(READABLE)}"
        )
    _check_dims(name, source, dims, header.size)
    return TensorInfo(name, source, tuple(reversed(dims)), offset)


def _check_dims(name: str, source: str, dims: tuple[int, ...], file_size: int) -> None:
    block = _core.SOURCES[source][0]
    if min(dims) == 0:
        raise ModelFileError(f"{name}: expected dimensions of 1 or more, found {list(dims)}")
    if dims[0] % block:
        raise ModelFileError(
            f"{name}: expected rows of a multiple of {block} values for {source}, found {dims[0]}"
        )
    total = 1
    for n in dims:
        total *= n
    if total > 8 * file_size:
        raise ModelFileError(
            f"{name}: expected data within a file of {file_size} bytes, found {list(dims)} values"
        )


def _check_layout(infos: list[TensorInfo], start: int, alignment: int, file_size: int) -> None:
    """Offsets follow each other without gaps beyond the alignment, and end within the file."""
    expected = 0
    for info in infos:
        if info.offset != expected:
            raise ModelFileError(f"{info.name}: expected data at offset {expected}, found {info.offset}")
        end = start + info.offset + info.bytes
        if end > file_size:
            raise ModelFileError(
                f"{info.name}: expected data up to byte {end}, found a file of {file_size} bytes"
            )
        expected = -(-(info.offset + info.bytes) // alignment) * alignment


@dataclass(frozen=True)
class GgufFile:
    """The checked contents of one file; `data_start` is where tensor data begins."""

    path: Path
    keys: KeyValues
    infos: tuple[TensorInfo, ...]
    data_start: int

    def tensors(self) -> dict[str, RawTensor]:
        """The tensors by name."""
        return {
            info.name: RawTensor(info.name, info.source, info.shape, self._rows(info)) for info in self.infos
        }

    def _rows(self, info: TensorInfo) -> ReadRows:
        return file_rows(self.path, self.data_start + info.offset, row_bytes(info.source, info.shape[-1]))


def _read_counts(header: _Header) -> tuple[int, int]:
    if header.unpack("<4s", "magic")[0] != MAGIC:
        raise ModelFileError(f"expected the bytes {MAGIC!r} at the start, found {header.data[:4]!r}")
    (version,) = header.unpack("<I", "version")
    if version not in (2, 3):
        swapped = " (a big-endian file)" if version in (2 << 24, 3 << 24) else ""
        raise UnsupportedError(f"expected GGUF version 2 or 3, found {version}{swapped}")
    n_tensors, n_keys = header.unpack("<QQ", "counts")
    left = header.size - header.at
    for what, count, smallest in (("tensors", n_tensors, 33), ("keys", n_keys, 13)):
        if count > left // smallest:
            raise ModelFileError(f"expected {count} {what}, found {left} bytes left in the file")
    return n_tensors, n_keys


def _alignment(keys: KeyValues) -> int:
    if "general.alignment" not in keys:
        return 32
    alignment = keys.integer("general.alignment", 8, 1 << 20)
    if alignment & (alignment - 1):
        raise ModelFileError(f"general.alignment: expected a power of two, found {alignment}")
    return alignment


def read_gguf(path: Path) -> GgufFile:
    """Reads and checks the front of a file and the layout of its tensors; no tensor data is read."""
    descriptor = open_regular(path)
    try:
        header = _Header(descriptor)
        n_tensors, n_keys = _read_counts(header)
        keys = _read_key_values(header, n_keys)
        alignment = _alignment(keys)
        infos = [_read_tensor_info(header, i) for i in range(n_tensors)]
    finally:
        os.close(descriptor)
    seen: set[str] = set()
    for info in infos:
        if info.name in seen:
            raise ModelFileError(f"{info.name}: expected each tensor once, found it again")
        seen.add(info.name)
    start = -(-header.at // alignment) * alignment
    _check_layout(infos, start, alignment, header.size)
    return GgufFile(path, keys, tuple(infos), start)
