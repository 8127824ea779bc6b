"""Reads the tensors of a PyTorch checkpoint (`.bin`, `.pt`, `.pth`) without PyTorch and without running anything in it.

The pickle inside is not given to Python's unpickler: a small machine knows the two dozen operations that a dictionary
of tensors takes, and the few names that PyTorch writes there. Any other operation and any other name is refused. Values
are read on demand, row by row, from where they lie in the archive. Must not know what a tensor means.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import RawTensor, ReadRows, file_rows, open_regular
from pyinfer.errors import ModelFileError, PyinferError, UnsupportedError

MAX_PICKLE = 16 << 20
MAX_ENTRIES = 1 << 16
MAX_DIRECTORY = 16 << 20
"""Bytes of an archive's directory, and of anything else that is read of it at once."""
MAX_OPERATIONS = 1 << 21
"""Of a pickle; a tensor takes some twenty-five."""
MAX_TUPLE = 16
"""Items of a tuple: dimensions, or arguments."""
MAX_SHARED = 4
"""How many times over the tensors may hold all that is stored."""

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


def _ordered_dict(*given: Any) -> dict[str, Any]:
    """Stands for collections.OrderedDict, which gets its items later."""
    if given:
        raise ModelFileError("expected an OrderedDict that is filled later, found one made of something")
    return {}


def _rebuild_tensor(
    storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *_: Any
) -> _Tensor:
    """A tensor as a view of its storage, whose bounds are checked first."""
    if not isinstance(storage, _Storage):
        raise ModelFileError("expected a tensor with a storage, found another object")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ModelFileError("expected a tensor with a shape and strides, found other objects")
    whole = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
    if not whole or len(shape) != len(strides) or not 1 <= len(shape) <= 4:
        raise ModelFileError("expected the layout of a tensor of 1 to 4 dimensions, found another")
    if 0 in shape:
        raise ModelFileError(f"expected dimensions of 1 or more, found {list(shape)}")
    if _last(offset, shape, strides) >= storage.count or math.prod(shape) > storage.count:
        raise ModelFileError(
            f"expected a tensor within its storage of {storage.count} values, found {list(shape)}"
        )
    return _Tensor(storage, offset, shape, strides)


def _last(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Where the last value of a view lies in its storage."""
    return offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def _rebuild_parameter(tensor: Any = None, *_: Any) -> Any:
    return tensor


_KNOWN: dict[str, Any] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    **{f"torch {name}": _StorageType(source) for name, source in _STORAGES.items()},
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GIVEN = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"})
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})


@dataclass
class _Machine:
    """Runs a pickle of protocol 2 or later. What it makes are numbers below 2^63, text, tuples of at most MAX_TUPLE
    items whose own tuples hold none, dictionaries with names as keys, and the stand-ins above: no tuple can be nested
    deep, and nothing but a dictionary be changed. See pickletools of Python's library for what each operation does.
    """

    storage: Callable[[Any], _Storage]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, data: bytes) -> Any:
        """What the pickle holds."""
        for n, (operation, given, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if n == MAX_OPERATIONS:
                raise ModelFileError(
                    f"expected a pickle of at most {MAX_OPERATIONS} operations, found a longer one"
                )
            self._do(operation.name, given)
        return self._pop()

    def _do(self, name: str, given: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _GIVEN:
            self.stack.append(_small(given))
        elif name in _TUPLES:
            self.stack.append(_tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        elif (work := _OPERATIONS.get(name)) is not None:
            work(self, given)
        else:
            raise UnsupportedError(f"expected only tensors, found a pickle with the operation {name}")

    def _pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ModelFileError("expected a pickle of tensors, found one that takes more than it has")
        return self.stack.pop()

    def _top(self) -> Any:
        self.stack.append(self._pop())
        return self.stack[-1]

    def _from_mark(self) -> list[Any]:
        if not self.marks:
            raise ModelFileError("expected a pickle of tensors, found one without a mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def tuple_from_mark(self, _: Any) -> None:
        self.stack.append(_tuple(self._from_mark()))

    def named(self, given: Any) -> None:
        """`given` is "module name"."""
        if given not in _KNOWN:
            raise UnsupportedError(
                f"expected only tensors, found a pickle that asks for {given.replace(' ', '.')}"[:200]
            )
        self.stack.append(_KNOWN[given])

    def named_on_the_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ModelFileError("expected a pickle of tensors, found one that asks for no name")
        self.named(f"{module} {name}")

    def call(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not callable(function) or not isinstance(arguments, tuple):
            raise ModelFileError("expected a pickle of tensors, found one that calls something else")
        self.stack.append(function(*arguments))

    def set_state(self, _: Any) -> None:
        """PyTorch hangs notes on the dictionary; they say nothing of tensors."""
        state = self._pop()
        if not isinstance(self._top(), dict) or not isinstance(state, dict):
            raise UnsupportedError("expected only tensors, found a pickle that changes something else")

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._put([key, value])

    def set_items(self, _: Any) -> None:
        self._put(self._from_mark())

    def _put(self, items: list[Any]) -> None:
        names, values = items[::2], items[1::2]
        if len(names) != len(values) or not isinstance(target := self._top(), dict):
            raise ModelFileError("expected a pickle of tensors, found one that fills something else")
        if not all(isinstance(name, str) for name in names):
            raise ModelFileError("expected names of tensors, found other keys")
        target.update(zip(names, values, strict=True))

    def keep(self, given: Any) -> None:
        self.memo[len(self.memo) if given is None else given] = self._top()

    def recall(self, given: Any) -> None:
        if given not in self.memo:
            raise ModelFileError("expected a pickle of tensors, found one that recalls what it never kept")
        self.stack.append(self.memo[given])

    def persistent(self, _: Any) -> None:
        self.stack.append(self.storage(self._pop()))


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "EMPTY_DICT": _Machine.empty_dict,
    "TUPLE": _Machine.tuple_from_mark,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_on_the_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.set_state,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _Machine.keep,
    "LONG_BINPUT": _Machine.keep,
    "MEMOIZE": _Machine.keep,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "BINPERSID": _Machine.persistent,
}


def _small(given: Any) -> Any:
    if isinstance(given, int) and abs(given) >= 1 << 63:
        raise ModelFileError("expected numbers of 64 bits in a pickle of tensors, found a larger one")
    return given


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    """A tuple that is as flat as those of tensors."""
    inner = [each for item in items if isinstance(item, tuple) for each in item]
    if len(items) > MAX_TUPLE or any(isinstance(each, tuple) for each in inner):
        raise ModelFileError("expected small flat tuples in a pickle of tensors, found another")
    return tuple(items)


def read_torch(path: Path, *, verify: bool = False) -> dict[str, RawTensor]:
    """The tensors of a checkpoint, by name; with `verify`, the archive's checksums of their values are checked,
    which reads all of it. Raises ModelFileError.
    """
    with open(open_regular(path), "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise UnsupportedError("expected a zip archive as PyTorch writes since 1.6, found something else")
        try:
            with zipfile.ZipFile(_SmallReads(file)) as archive:
                return _tensors(_Archive(archive, file, verify), path)
        except PyinferError:
            raise
        except (
            zipfile.BadZipFile,
            EOFError,
            NotImplementedError,
            OSError,
            ValueError,
            OverflowError,
            struct.error,
        ) as error:
            raise ModelFileError(f"expected a whole zip archive, found a broken one: {error}") from None


class _SmallReads:
    """A file as `zipfile` uses it, which reads the directory of an archive at once, however large it is said to be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if 0 <= size <= MAX_DIRECTORY else MAX_DIRECTORY + 1)
        if len(data) > MAX_DIRECTORY:
            raise ModelFileError(f"expected a directory of at most {MAX_DIRECTORY} bytes, found a larger one")
        return data


class _Archive:
    """The entries of one archive, none of them compressed."""

    def __init__(self, archive: zipfile.ZipFile, file: BinaryIO, verify: bool) -> None:
        self._archive = archive
        self._file = file
        self._verify = verify
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise ModelFileError(f"expected at most {MAX_ENTRIES} entries, found {len(entries)}")
        self._entries = {entry.filename: entry for entry in entries}
        self._storages: dict[str, _Storage] = {}
        self._file_bytes = os.fstat(file.fileno()).st_size
        self.stored_bytes = 0
        """Of all storages that were asked for."""
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
        self.stored_bytes += entry.file_size
        if self.stored_bytes > self._file_bytes:
            raise ModelFileError(
                f"expected storages beside one another in {self._file_bytes} bytes, found some that overlap"
            )
        if self._verify:
            with self._archive.open(entry) as data:
                while data.read(1 << 20):
                    pass
        self._file.seek(entry.header_offset)
        magic, name_bytes, extra_bytes = struct.unpack("<4s22xHH", self._file.read(30))
        start = entry.header_offset + 30 + name_bytes + extra_bytes
        if magic != b"PK\x03\x04" or start + entry.file_size > self._file_bytes:
            raise ModelFileError(
                f"{name[:100]!r}: expected {entry.file_size} bytes within the file, found fewer"
            )
        return start, int(entry.file_size)

    def storage(self, pid: Any) -> _Storage:
        """The storage that a persistent id names: ("storage", type, key, place, count)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise ModelFileError("expected the id of a storage, found another")
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int:
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
    try:
        found = _Machine(archive.storage).run(archive.read(f"{archive.folder}data.pkl", MAX_PICKLE))
    # Of pickletools too: an unknown operation, a pickle that is cut. And what Python warns of, where that is an error.
    except (ValueError, DeprecationWarning) as error:
        if isinstance(error, PyinferError):
            raise
        raise ModelFileError(f"expected a pickle of tensors, found a broken one: {error}"[:200]) from None
    if not isinstance(found, dict):
        raise ModelFileError(f"expected a dictionary of tensors, found {type(found).__name__}")
    tensors = {name: _raw(name, tensor, path) for name, tensor in found.items()}
    held = sum(_ITEM[tensor.source] * math.prod(tensor.shape) for tensor in tensors.values())
    if held > MAX_SHARED * archive.stored_bytes:
        raise ModelFileError(
            f"expected tensors of at most {MAX_SHARED} times the {archive.stored_bytes} bytes that are stored, "
            f"found {held} bytes"
        )
    return tensors


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
