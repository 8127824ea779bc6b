"""Reads the tensors of a PyTorch checkpoint (`.bin`, `.pt`, `.pth`) without PyTorch and without running anything in it.

The pickle inside may name a few things, all of which are stand-ins here; any other name is refused before it is looked
up. Values are read on demand, row by row, from where they lie in the archive. Must not know what a tensor means.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import RawTensor, ReadRows, file_rows, open_regular
from pyinfer.errors import ModelFileError, UnsupportedError

MAX_PICKLE = 16 << 20
MAX_ENTRIES = 1 << 16

_STORAGES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
_ITEM = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class _StorageType:
    source: str


@dataclass(frozen=True)
class _Storage:
    """`count` values of a type from byte `offset` of the file on."""

    source: str
    offset: int
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict[Any, Any]):
    """Stands for collections.OrderedDict."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """A tensor as a view of its storage, whose bounds are checked first."""
    if not isinstance(storage, _Storage):
        raise ModelFileError("expected a tensor with a storage, found another object")
    numbers = (offset, *shape, *strides)
    whole = all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers
    )
    if not whole or len(shape) != len(strides) or not 1 <= len(shape) <= 4:
        raise ModelFileError(
            f"expected the layout of a tensor, found {offset!r}, {shape!r}, {strides!r}"[:200]
        )
    if 0 in shape:
        raise ModelFileError(f"expected dimensions of 1 or more, found {list(shape)}")
    if _last(offset, shape, strides) >= storage.count or math.prod(shape) > storage.count:
        raise ModelFileError(
            f"expected a tensor within its storage of {storage.count} values, found {list(shape)}"
        )
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _last(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Where the last value of a view lies in its storage."""
    return offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(source) for name, source in _STORAGES.items()},
}


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python, whose memo is a dictionary: an index of billions costs nothing."""

    def __init__(self, file: io.BytesIO, storage: Callable[[Any], _Storage]) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise UnsupportedError(
                f"expected only tensors, found a pickle that asks for {module}.{name}"[:200]
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        return self._storage(pid)


def read_torch(path: Path, *, verify: bool = False) -> dict[str, RawTensor]:
    """The tensors of a checkpoint, by name; with `verify`, the archive's checksums of their values are checked,
    which reads all of it. Raises ModelFileError.
    """
    with open(open_regular(path), "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise UnsupportedError("expected a zip archive as PyTorch writes since 1.6, found something else")
        try:
            with zipfile.ZipFile(file) as archive:
                return _tensors(_Archive(archive, file, verify), path)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, struct.error) as error:
            raise ModelFileError(f"expected a whole zip archive, found a broken one: {error}") from None


class _Archive:
    """The entries of one archive, none of them compressed."""

    def __init__(self, archive: zipfile.ZipFile, file: BinaryIO, verify: bool) -> None:
        self._archive = archive
        self._file = file
        self._verify = verify
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._storages: dict[str, _Storage] = {}
        if len(self._entries) > MAX_ENTRIES:
            raise ModelFileError(f"expected at most {MAX_ENTRIES} entries, found {len(self._entries)}")
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelFileError(f"expected one entry data.pkl, found {len(pickles)}")
        self.folder = pickles[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in self._entries and self.read(order, 16) != b"little":
            raise UnsupportedError("byteorder: expected little, found another")

    def _entry(self, name: str, limit: int) -> zipfile.ZipInfo:
        """An entry that is stored as it is, of at most `limit` bytes."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelFileError(f"expected an entry {name[:100]!r}, found none")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UnsupportedError(
                f"{name[:100]!r}: expected a plain entry, found a compressed or encrypted one"
            )
        if entry.file_size != entry.compress_size or entry.file_size > limit:
            raise ModelFileError(f"{name[:100]!r}: expected at most {limit} bytes, found {entry.file_size}")
        return entry

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of an entry, its checksum verified."""
        return self._archive.read(self._entry(name, limit))

    def _place(self, name: str) -> tuple[int, int]:
        """Where the data of an entry begins in the file, and its size."""
        entry = self._entry(name, 1 << 44)
        if self._verify:
            with self._archive.open(entry) as data:
                while data.read(1 << 20):
                    pass
        self._file.seek(entry.header_offset)
        magic, name_bytes, extra_bytes = struct.unpack("<4s22xHH", self._file.read(30))
        start = entry.header_offset + 30 + name_bytes + extra_bytes
        if magic != b"PK\x03\x04" or start + entry.file_size > os.fstat(self._file.fileno()).st_size:
            raise ModelFileError(
                f"{name[:100]!r}: expected {entry.file_size} bytes within the file, found fewer"
            )
        return start, int(entry.file_size)

    def storage(self, pid: Any) -> _Storage:
        """The storage that a persistent id names: ("storage", type, key, place, count)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise ModelFileError("expected the id of a storage, found another")
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or not isinstance(count, int):
            raise ModelFileError("expected the id of a storage of F32, F16 or BF16 values, found another")
        if key not in self._storages:
            self._storages[key] = self._load(kind.source, key, count)
        return self._storages[key]

    def _load(self, source: str, key: str, count: int) -> _Storage:
        start, size = self._place(f"{self.folder}data/{key}")
        if count < 0 or size != count * _ITEM[source]:
            raise ModelFileError(
                f"storage {key[:100]!r}: expected {count * _ITEM[source]} bytes, found {size}"
            )
        return _Storage(source, start, count)


def _tensors(archive: _Archive, path: Path) -> dict[str, RawTensor]:
    raw = io.BytesIO(archive.read(f"{archive.folder}data.pkl", MAX_PICKLE))
    try:
        found = _Unpickler(raw, archive.storage).load()
    except ModelFileError:
        raise
    except Exception as error:  # a pickle can fail in any way there is
        raise ModelFileError(f"expected a pickle of tensors, found a broken one: {error!r}"[:200]) from None
    if not isinstance(found, dict):
        raise ModelFileError(f"expected a dictionary of tensors, found {type(found).__name__}")
    return {_name(name): _raw(name, tensor, path) for name, tensor in found.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ModelFileError(f"expected names of tensors, found {name!r}"[:200])
    return name


def _raw(name: str, tensor: object, path: Path) -> RawTensor:
    if not isinstance(tensor, _Tensor):
        raise ModelFileError(f"{name}: expected a tensor, found {type(tensor).__name__}"[:200])
    return RawTensor(name, tensor.storage.source, tensor.shape, _rows(tensor, path))


def _rows(tensor: _Tensor, path: Path) -> ReadRows:
    item, cols = _ITEM[tensor.storage.source], tensor.shape[-1]
    start = tensor.storage.offset + item * tensor.offset
    if _is_contiguous(tensor):
        return file_rows(path, start, item * cols)
    whole = file_rows(path, start, item * (_last(0, tensor.shape, tensor.strides) + 1))

    def read(first: int, last: int) -> NDArray[np.uint8]:
        """A transposed tensor lies across its rows: all of it is read."""
        values = whole(0, 1).view("<u4" if item == 4 else "<u2")
        view = np.lib.stride_tricks.as_strided(values, tensor.shape, [item * n for n in tensor.strides])
        return np.ascontiguousarray(view).reshape(-1, cols)[first:last].reshape(-1).view(np.uint8)

    return read


def _is_contiguous(tensor: _Tensor) -> bool:
    wanted = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n != 1 and stride != wanted:
            return False
        wanted *= n
    return True
