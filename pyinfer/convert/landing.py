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

_OWN = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q4_0": "q4",
    "Q4_1": "q4m",
    "Q5_0": "q8",
    "Q5_1": "q8m",
    "Q8_0": "q8",
    "Q4_K": "q4k",
    "Q5_K": "q5k",
    "Q6_K": "q6k",
}
"""The format that keeps a source type's values."""
_EXACT = set(_OWN.items()) | {(source, kept) for source in FLOAT_SOURCES for kept in ("f32", VECTOR)}
_DEFAULT = {"gguf": None, "huggingface": "q8", "llama2c": "f32", "model.bin": None}


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


def chosen_weights(kind: str, weights: str | None) -> str | None:
    """What is asked for, or the default of this kind of checkpoint; None keeps each tensor as near to its
    source as can be.
    """
    if weights is not None and weights not in WEIGHTS:
        raise RequestError(f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}")
    return weights or _DEFAULT[kind]


def format_of(tensor: Tensor, weights: str | None) -> str:
    """The format that a tensor is stored in; RequestError where `weights` cannot be honoured."""
    if tensor.role in VECTOR_ROLES:
        return VECTOR
    if tensor.lands:
        return tensor.lands
    if weights is None:
        return tensor.source if tensor.packed else _OWN[tensor.source]
    if tensor.source not in FLOAT_SOURCES:
        raise RequestError(
            f"weights: {tensor.name} is {tensor.source}, quantised already; {weights!r} needs a source in floats"
        )
    if weights == "q4" and tensor.role in ("embedding", "head"):
        return "q8"
    return weights


def place(checkpoint: Checkpoint, weights: str | None) -> tuple[Placement, ...]:
    """Every tensor's format and place, in the order of the checkpoint. `q4` keeps embedding and head in
    q8.
    """
    asked = chosen_weights(checkpoint.kind, weights)
    placed, offset = [], 0
    for tensor in checkpoint.tensors:
        kind = format_of(tensor, asked)
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
