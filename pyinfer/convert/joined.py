"""Tensors that several files hold a part of each: rows below each other, or columns side by side. Read on demand.

Must not know what the tensors are; which way they are joined follows from the shape that the whole must have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import RawTensor, ReadRows
from pyinfer.errors import ModelFileError


def join(parts: Sequence[RawTensor], shape: tuple[int, ...]) -> RawTensor:
    """One tensor of this shape from its parts, in their order; equal vectors stand once for all."""
    first, shapes = parts[0], [part.shape for part in parts]
    if any(part.source != first.source for part in parts):
        raise ModelFileError(
            f"{first.name}: expected one type in all parts, found {sorted({p.source for p in parts})}"
        )
    if len(parts) == 1 or (len(shape) == 1 and all(found == shape for found in shapes)):
        return first
    if all(len(found) == len(shape) == 2 for found in shapes):
        rows, cols = [found[0] for found in shapes], [found[1] for found in shapes]
        if sum(rows) == shape[0] and set(cols) == {shape[1]}:
            return RawTensor(first.name, first.source, shape, _below(parts))
        if sum(cols) == shape[1] and set(rows) == {shape[0]}:
            return RawTensor(first.name, first.source, shape, _beside(parts))
    raise ModelFileError(
        f"{first.name}: expected parts that make the shape {list(shape)}, found {[list(found) for found in shapes]}"
    )


def _below(parts: Sequence[RawTensor]) -> ReadRows:
    starts = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        pieces = []
        for part, first, end in zip(parts, starts, starts[1:], strict=False):
            if first < stop and start < end:
                pieces.append(part.read(max(start, first) - first, min(stop, end) - first))
        return np.concatenate(pieces)

    return read


def _beside(parts: Sequence[RawTensor]) -> ReadRows:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        pieces = [part.read(start, stop).reshape(stop - start, -1) for part in parts]
        return np.concatenate(pieces, axis=1).reshape(-1)

    return read
