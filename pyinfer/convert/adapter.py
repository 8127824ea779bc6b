"""What every reader of adapters returns: low-rank changes and replaced tensors by role, with no trace of the file they
came from.

Must not know any file format, nor the model that an adapter is put on; whether it fits is for `pyinfer/stack.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.convert.checkpoint import FUSED_ROLES, RawTensor
from pyinfer.errors import ModelFileError, UnsupportedError

LINEAR_ROLES = ("q", "k", "v", "o", "gate", "up", "down", "head", *FUSED_ROLES)
"""Tensors that multiply a vector; adapters may be for several at once, where a family stores them as one."""
Values = NDArray[Any]
"""float32 or float16 values, or uint16 for the bits of bfloat16: adapters keep the precision they came in."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one matrix: `scaling * b @ a`, with what else belongs to it."""

    role: str
    layer: int  # NO_LAYER outside the layers
    a: Values  # (rank, in); of an embedding (rank, n_vocab)
    b: Values  # (out, rank); of an embedding (dim, rank)
    scaling: float
    name: str  # as the file calls the module, for messages
    magnitude: NDArray[np.float32] | None = (
        None  # DoRA: (out,), the length that each row of W + change is set to
    )
    bias: NDArray[np.float32] | None = None  # (out,), added to the output as it is
    new_bias: NDArray[np.float32] | None = (
        None  # (out,), in place of the bias that the layer has, if it has one
    )
    fused: bool = False  # cut out of a change of several matrices at once

    @property
    def rank(self) -> int:
        """Rows of `a`."""
        return int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class Replaced:
    """A tensor that takes the place of the base's, whole or in some rows."""

    role: str
    layer: int
    values: NDArray[np.float32]  # (rows, cols); vectors have one row
    name: str
    rows: tuple[int, ...] | None = None  # the rows that `values` are; None: all
    with_head: bool = False  # where embedding and head are one, both change
    only_tied: bool = False  # and it fits only there
    of_base: bool = False  # stored beside a change: it counts only where it differs from what the base has
    trained: tuple[int, ...] = ()  # rows of one that is `of_base` that count in any case


@dataclass(frozen=True)
class ReadFile:
    """A file as it was just before it was read."""

    path: Path
    size: int
    changed_ns: int

    @staticmethod
    def at(path: Path) -> ReadFile:
        """The file as it is now."""
        status = path.stat()
        return ReadFile(path, status.st_size, status.st_mtime_ns)

    @property
    def unchanged(self) -> bool:
        """Whether it is still there, of that size and time."""
        try:
            return ReadFile.at(self.path) == self
        except OSError:
            return False


@dataclass(frozen=True, eq=False)
class AdapterSource:
    """An adapter that was read and checked as far as it can be without a model."""

    kind: str  # the reader's name
    files: tuple[ReadFile, ...]
    changes: tuple[LowRank, ...]
    replaced: tuple[Replaced, ...] = ()
    in_every_layer: frozenset[str] = frozenset()  # roles that it says it changes in all layers of its base
    architecture: str | None = None  # of its base, as GGUF names it
    interleaved: bool = False  # rows of q and k are in interleaved rotary order
    base: str | None = None  # the model it says it was trained on
    invocation: tuple[int, ...] = ()  # it applies only from the last occurrence of these tokens on
    facts: Mapping[str, str] = field(default_factory=dict)  # what a person may want to know of it

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files."""
        return tuple(file.path for file in self.files)

    @property
    def unchanged(self) -> bool:
        """Whether its files are those that were read."""
        return all(file.unchanged for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all its arrays."""
        low_rank = sum(change.a.nbytes + change.b.nbytes for change in self.changes)
        return low_rank + sum(item.values.nbytes for item in self.replaced)


def as_float(values: Values) -> NDArray[np.float32]:
    """The values as float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def read_values(tensor: RawTensor) -> Values:
    """A matrix or vector in the precision it has, float32 for quantised types; only finite values pass."""
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    data = tensor.read(0, rows)
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if tensor.source in kinds:
        values: Values = data.view(kinds[tensor.source]).reshape(tensor.shape)
    else:
        values = _core.dequantize(tensor.source, data, rows, tensor.shape[-1]).reshape(tensor.shape)
    require_finite(values, tensor.name)
    return values


def require_finite(values: Values, name: str) -> None:
    """Raises ModelFileError where a value is infinite or no number: such values have all bits of the exponent set."""
    kinds = {np.dtype(np.float32): (np.uint32, 0x7F800000), np.dtype(np.float16): (np.uint16, 0x7C00)}
    bits, exponent = kinds.get(values.dtype, (np.uint16, 0x7F80))
    found = np.ascontiguousarray(values).view(bits)
    if ((found & bits(exponent)) == exponent).any():
        raise ModelFileError(f"{name}: expected finite values, found others")


def require_pair(name: str, a: Values, b: Values) -> None:
    """Raises ModelFileError where the two factors cannot be multiplied."""
    for letter, values in (("A", a), ("B", b)):
        if values.ndim != 2 or 0 in values.shape:
            raise ModelFileError(
                f"{name}: expected {letter} as a matrix, found the shape {list(values.shape)}"
            )
    if a.shape[0] != b.shape[1]:
        raise ModelFileError(
            f"{name}: expected B with {a.shape[0]} columns, the rank that A has rows, found {b.shape[1]}"
        )


def require_invocable(source: AdapterSource) -> AdapterSource:
    """The adapter; raises UnsupportedError where one that waits for its invocation has what would act before."""
    if not source.invocation:
        return source
    others = [item.name for item in source.replaced]
    for change in source.changes:
        extra = (change.bias, change.new_bias, change.magnitude)
        if change.role == "embedding" or any(part is not None for part in extra):
            others.append(change.name)
    if others:
        raise UnsupportedError(
            f"{others[0]}: expected only changes of linear layers beside alora_invocation_tokens, found more"[
                :300
            ]
        )
    return source
