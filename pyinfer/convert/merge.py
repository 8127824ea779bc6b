"""Puts changes into the weights of a checkpoint: W + Δ in float, stored once.

Where the base has floats, the sum lands as the base would. Where it is quantised, the sum is promoted to 8 bits: on the
grid of 4 bits an update below half a step rounds away, so that is done only when asked for, and measured. Must not know
adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.convert.checkpoint import FLOAT_SOURCES, NO_LAYER, VECTOR_ROLES, Checkpoint, ReadRows, Tensor
from pyinfer.convert.landing import format_of, place, rounding

Into = Literal["int8", "int4", "f32"]
FLOAT_FORMATS = ("f32", "f16", "bf16")
SAMPLED_ROWS = 64


class Changes(Protocol):
    """What is put into the weights."""

    @property
    def touched(self) -> frozenset[tuple[str, int]]:
        """(role, layer) of every tensor that changes."""

    def merged(self, role: str, layer: int, start: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of the base from `start` on with the change in them."""


@dataclass(frozen=True)
class Merged:
    """A checkpoint with changed weights, and what that costs."""

    checkpoint: Checkpoint
    touched: int  # tensors
    added_bytes: int  # by which the result is larger than the base
    retention: float  # share of the change left after rounding, of the matrix that keeps least


class CheckpointBase:
    """Reads whole tensors of a checkpoint as numbers, a head that is the embedding as well."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors = {(tensor.role, tensor.layer): tensor for tensor in checkpoint.tensors}

    def _tensor(self, role: str, layer: int) -> Tensor:
        tied = role == "head" and (role, layer) not in self._tensors
        return self._tensors["embedding" if tied else role, layer]

    def __call__(self, role: str, layer: int) -> NDArray[np.float32]:
        """The values, (rows, cols)."""
        tensor = self._tensor(role, layer)
        return tensor.values(0, tensor.rows)

    def rounding(self, role: str, layer: int) -> float:
        """What the length of a row's rounding may be, relative to the row."""
        return rounding(self._tensor(role, layer).source)


def merge(
    checkpoint: Checkpoint, changes: Changes, *, weights: str | None = None, into: Into | None = None
) -> Merged:
    """The checkpoint with changes in its weights; `weights` as for a conversion, `into` overrides the formats."""
    base = _untied(checkpoint, changes)
    tensors = tuple(
        _changed(tensor, changes, _format(tensor, base.kind, weights, into))
        if (tensor.role, tensor.layer) in changes.touched
        else tensor
        for tensor in base.tensors
    )
    made = replace(base, tensors=tensors)
    added = _size(made, weights) - _size(checkpoint, weights)
    return Merged(made, len(changes.touched), added, _lowest(base.tensors, tensors, changes))


def _size(checkpoint: Checkpoint, weights: str | None) -> int:
    return sum(item.bytes for item in place(checkpoint, weights))


def _format(tensor: Tensor, kind: str, weights: str | None, into: Into | None) -> str | None:
    """Where a changed tensor lands; None for vectors, which stay floats."""
    if tensor.role in VECTOR_ROLES:
        return None
    if into == "f32":
        return "f32"
    if into == "int4":
        return merged_format(tensor.role, into)
    own = format_of(tensor, kind, weights)
    quantised = tensor.source not in FLOAT_SOURCES and own not in FLOAT_FORMATS
    return "q8" if into == "int8" or quantised else own


def merged_format(role: str, into: Literal["int8", "int4"]) -> str:
    """Where a changed matrix lands that is to have so many bits: embedding and head keep 8."""
    return "q4" if into == "int4" and role not in ("embedding", "head") else "q8"


def _changed(tensor: Tensor, changes: Changes, lands: str | None) -> Tensor:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        rows = changes.merged(tensor.role, tensor.layer, start, tensor.values(start, stop))
        return np.ascontiguousarray(rows, "<f4").reshape(-1).view(np.uint8)

    reader: ReadRows = read
    return replace(tensor, source="F32", read=reader, lands=lands)


def _untied(checkpoint: Checkpoint, changes: Changes) -> Checkpoint:
    """Where embedding and head are one and either changes, the head becomes a tensor of its own."""
    if not checkpoint.spec.tied_head or not changes.touched & {("embedding", NO_LAYER), ("head", NO_LAYER)}:
        return checkpoint
    embedding = next(tensor for tensor in checkpoint.tensors if tensor.role == "embedding")
    tensors = (*checkpoint.tensors, replace(embedding, role="head"))
    return replace(checkpoint, spec=replace(checkpoint.spec, tied_head=False), tensors=tensors)


def _lowest(before: tuple[Tensor, ...], after: tuple[Tensor, ...], changes: Changes) -> float:
    pairs = zip(before, after, strict=True)
    shares = (retention(old, changes, new.lands) for old, new in pairs if new is not old and new.lands)
    return min(shares, default=1.0)


def _starts(rows: int) -> Iterator[int]:
    tiles = -(-rows // 16)
    wanted = min(tiles, SAMPLED_ROWS // 16)
    return (tiles * i // wanted * 16 for i in range(wanted))


def _kept(w: NDArray[np.float32], target: NDArray[np.float32], lands: str) -> tuple[float, float]:
    delta = target.astype(np.float64) - w
    stored = _core.unpack(lands, _core.pack(lands, target), *target.shape)
    return float(((stored.astype(np.float64) - w) * delta).sum()), float(np.square(delta).sum())


def retention(base: Tensor, changes: Changes, lands: str) -> float:
    """Share of the change of one matrix that is left when the sum is stored in a format, measured on some rows."""
    kept = whole = 0.0
    for start in _starts(base.rows):
        w = base.values(start, min(start + 16, base.rows))
        kept_here, whole_here = _kept(w, changes.merged(base.role, base.layer, start, w), lands)
        kept, whole = kept + kept_here, whole + whole_here
    return kept / whole if whole else 1.0
