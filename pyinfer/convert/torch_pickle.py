"""Reads the tensors of a PyTorch checkpoint (`.bin`, `.pt`) without PyTorch and without running anything in it.

The pickle inside may name six things, all of which are stand-ins here; any other name is refused before it is looked
up. Must not know what a tensor means.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import RawTensor, ReadRows, open_regular
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
    source: str
    data: NDArray[Any]


@dataclass(frozen=True)
class _Tensor:
    source: str
    values: NDArray[Any]


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
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    count = int(np.prod([int(n) for n in shape], dtype=object))
    if last >= len(storage.data) or count > len(storage.data):
        raise ModelFileError(
            f"expected a tensor within its storage of {len(storage.data)} values, found {list(shape)}"
        )
    size = storage.data.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage.data[offset:], shape, [stride * size for stride in strides], writeable=False
    )
    return _Tensor(storage.source, view)


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


def read_torch(path: Path) -> dict[str, RawTensor]:
    """The tensors of a checkpoint, by name; raises ModelFileError."""
    with open(open_regular(path), "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise UnsupportedError("expected a zip archive as PyTorch writes since 1.6, found something else")
        try:
            with zipfile.ZipFile(file) as archive:
                return _tensors(_Archive(archive))
        except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
            raise ModelFileError(f"expected a whole zip archive, found a broken one: {error}") from None


class _Archive:
    """The entries of one archive, none of them compressed."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
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

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of an entry, its checksum verified."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelFileError(f"expected an entry {name[:100]!r}, found none")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UnsupportedError(
                f"{name[:100]!r}: expected a plain entry, found a compressed or encrypted one"
            )
        if entry.file_size != entry.compress_size or entry.file_size > limit:
            raise ModelFileError(f"{name[:100]!r}: expected at most {limit} bytes, found {entry.file_size}")
        return self._archive.read(entry)

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
        size = _ITEM[source]
        data = self.read(f"{self.folder}data/{key}", 1 << 40)
        if count < 0 or len(data) != count * size:
            raise ModelFileError(f"storage {key[:100]!r}: expected {count * size} bytes, found {len(data)}")
        return _Storage(source, np.frombuffer(data, "<u4" if size == 4 else "<u2"))


def _tensors(archive: _Archive) -> dict[str, RawTensor]:
    raw = io.BytesIO(archive.read(f"{archive.folder}data.pkl", MAX_PICKLE))
    try:
        found = _Unpickler(raw, archive.storage).load()
    except ModelFileError:
        raise
    except Exception as error:  # a pickle can fail in any way there is
        raise ModelFileError(f"expected a pickle of tensors, found a broken one: {error!r}"[:200]) from None
    if not isinstance(found, dict):
        raise ModelFileError(f"expected a dictionary of tensors, found {type(found).__name__}")
    return {_name(name): _raw(name, tensor) for name, tensor in found.items()}


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise ModelFileError(f"expected names of tensors, found {name!r}"[:200])
    return name


def _raw(name: str, tensor: object) -> RawTensor:
    if not isinstance(tensor, _Tensor):
        raise ModelFileError(f"{name}: expected a tensor, found {type(tensor).__name__}"[:200])
    return RawTensor(name, tensor.source, tensor.values.shape, _rows(tensor.values))


def _rows(values: NDArray[Any]) -> ReadRows:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        rows = np.ascontiguousarray(values).reshape(-1, values.shape[-1])
        return rows[start:stop].reshape(-1).view(np.uint8)

    return read
