"""Which weight format each tensor lands in, and where in the file: decided before any weight is read.

Must not know readers or the file system.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pyinfer import _core
from pyinfer.convert.checkpoint import FLOAT_SOURCES, VECTOR_ROLES, Checkpoint, Tensor
from pyinfer.errors import RequestError

WEIGHTS = ("q4", "q8", "f16", "bf16", "f32")
"""What `weights` may ask for."""

ALIGNMENT = 64
VECTOR = "vector"

_OWN = {source: own for source, (_, _, own) in _core.SOURCES.items()}
"""The format that keeps a source type's values; q8 keeps the integers of Q8_F and rounds its scales to halves."""
_EXACT = (set(_OWN.items()) - {("Q8_F", "q8")}) | {
    (source, kept) for source in FLOAT_SOURCES for kept in ("f32", VECTOR)
}
_ROUNDING = {
    0.01: ("F32", "F16", "BF16", "f32", "f16", "bf16"),
    0.03: ("Q8_0", "Q8_F", "q8", "q8m"),
    0.05: ("Q6_K", "q6k"),
    0.1: ("Q5_0", "Q5_1", "Q5_K", "q5k"),
    0.2: ("Q4_0", "Q4_1", "Q4_K", "Q4_Z", "IQ4_NL", "IQ4_XS", "q4", "q4m", "q4k", "q4z", "iq4", "iq4k"),
    0.35: ("Q3_K", "q3k"),
    0.55: ("Q2_K", "q2k"),
}
"""Some twice what rounding to a type adds to a row of normal random numbers, relative to its length."""
_DEFAULT = {"gguf": None, "huggingface": "q8", "meta": "q8", "llama2c": "f32", "model.bin": None}
"""What tensors in floats land in when nothing is asked for; None keeps them as they are."""


@dataclass(frozen=True)
class Placement:
    """A tensor, its format and its place; `offset` counts from the start of the weights."""

    tensor: Tensor
    format: str
    offset: int
    bytes: int

    @property
    def exact(self) -> bool:
        """Whether every value is kept."""
        return self.tensor.packed or (self.tensor.source, self.format) in _EXACT


def rounding(kind: str) -> float:
    """What the length of a row's rounding may be, relative to the row, in a source type or a format."""
    return next(share for share, kinds in _ROUNDING.items() if kind in kinds)


def chosen_weights(kind: str, weights: str | None) -> str | None:
    """What is asked for, or the default of this kind of checkpoint; None keeps each tensor as near to its
    source as can be.
    """
    if weights is not None and weights not in WEIGHTS:
        raise RequestError(f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}")
    return weights or _DEFAULT[kind]


def format_of(tensor: Tensor, kind: str, weights: str | None) -> str:
    """The format that a tensor of a checkpoint of this kind is stored in; RequestError where `weights` cannot
    be honoured. A default does not concern what is quantised already.
    """
    if tensor.role in VECTOR_ROLES:
        return VECTOR
    if tensor.lands:
        return tensor.lands
    chosen = chosen_weights(kind, weights)
    if tensor.source not in FLOAT_SOURCES:
        if weights is not None:
            why, needed = ("packed", "that is no model.bin") if tensor.packed else ("quantised", "in floats")
            raise RequestError(
                f"weights: {tensor.name} is {tensor.source}, {why} already; {weights!r} needs a source {needed}"
            )
        return tensor.source if tensor.packed else _OWN[tensor.source]
    if chosen is None:
        return _OWN[tensor.source]
    return "q8" if chosen == "q4" and tensor.role in ("embedding", "head") else chosen


def place(checkpoint: Checkpoint, weights: str | None) -> tuple[Placement, ...]:
    """Every tensor's format and place, in the order of the checkpoint. `q4` keeps embedding and head in
    q8.
    """
    placed, offset = [], 0
    for tensor in checkpoint.tensors:
        kind = format_of(tensor, checkpoint.kind, weights)
        size = 4 * tensor.cols if kind == VECTOR else _core.packed_bytes(kind, tensor.rows, tensor.cols)
        placed.append(Placement(tensor, kind, offset, size))
        offset = aligned(offset + size)
    return tuple(placed)


def aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of `alignment`."""
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class Group:
    """All tensors of one source type that land in one format."""

    source: str
    format: str
    exact: bool
    tensors: int
    bytes_in: int
    bytes_out: int


def groups(placements: Iterable[Placement]) -> tuple[Group, ...]:
    """Sums by source type and format, in order of appearance."""
    found: dict[tuple[str, str], Group] = {}
    for item in placements:
        key = (item.tensor.source, item.format)
        had = found.get(key, Group(*key, item.exact, 0, 0, 0))
        found[key] = Group(
            *key, item.exact, had.tensors + 1, had.bytes_in + item.tensor.bytes, had.bytes_out + item.bytes
        )
    return tuple(found.values())
