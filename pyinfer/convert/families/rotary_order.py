"""The order of rotating dimensions: sources that pair neighbours (2i, 2i + 1) are put into the decoder's half-
split order.

Whole rows of q and k move, so no value changes. Must not know names or files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import ReadRows, Spec, Tensor, row_bytes

__all__ = ["half_split", "half_split_order"]

_TURNED = ("q", "k")
_TURNED_VECTORS = ("q_bias", "k_bias")


def half_split_order(rows: int, head_dim: int, rope_dim: int) -> NDArray[np.int64]:
    """For each row in half-split order, its row in interleaved order; dimensions past `rope_dim` stay
    where they are.
    """
    head = np.arange(head_dim)
    head[:rope_dim] = np.concatenate([np.arange(0, rope_dim, 2), np.arange(1, rope_dim, 2)])
    return (np.arange(0, rows, head_dim)[:, None] + head).reshape(-1)


def half_split(tensor: Tensor, spec: Spec) -> Tensor:
    """The same tensor in half-split order, where it is one whose order matters."""
    if tensor.role in _TURNED:
        order = half_split_order(tensor.rows, spec.head_dim, spec.rope_dim)
        return replace(tensor, read=_rows_in_order(tensor, order))
    if tensor.role in _TURNED_VECTORS:
        order = half_split_order(tensor.cols, spec.head_dim, spec.rope_dim)
        return replace(tensor, read=_values_in_order(tensor, order))
    return tensor


def _rows_in_order(tensor: Tensor, order: NDArray[np.int64]) -> ReadRows:
    size = row_bytes(tensor.source, tensor.cols)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        wanted = order[start:stop]
        first, last = int(wanted.min()), int(wanted.max())
        rows = tensor.read(first, last + 1).reshape(-1, size)
        return rows[wanted - first].reshape(-1)

    return read


def _values_in_order(tensor: Tensor, order: NDArray[np.int64]) -> ReadRows:
    size = row_bytes(tensor.source, 1)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return tensor.read(start, stop).reshape(-1, size)[order].reshape(-1)

    return read
