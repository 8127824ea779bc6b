"""Models that were published as differences to a base: base + delta, tensor by tensor, in float32, streamed.

Must not know families or file formats: both sides are checkpoints. As their authors prescribe, Vicuna adds what is
there, its v0 with a row of zeros for the token that the base does not have, Stanford Alpaca with the mean of the base's
rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import FLOAT_SOURCES, Checkpoint, Spec, Tensor
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError

NewRows = Literal["zero", "mean"]
NEW_ROWS: tuple[NewRows, ...] = ("zero", "mean")
_COMPUTED = ("rope_freqs", "rope_freqs_local", "rope_freqs_long")
_FREE = ("n_vocab", "context", "norm_eps")
"""What the delta decides; the other numbers must agree."""
_STEP = 1024  # rows read at once for a mean


def applied(base: Checkpoint, delta: Checkpoint, new_rows: NewRows | None = None) -> Checkpoint:
    """The checkpoint that `delta` is to `base`, with the settings of the delta and its tokenizer, else the base's.

    `new_rows` says what stands in the base for tokens that only the delta has.
    """
    if new_rows not in (None, *NEW_ROWS):
        raise RequestError(f"new_rows: expected one of {', '.join(NEW_ROWS)}, found {new_rows!r}")
    _check_spec(base.spec, delta.spec)
    places = {(tensor.role, tensor.layer): tensor for tensor in base.tensors}
    if places.keys() != {(tensor.role, tensor.layer) for tensor in delta.tensors}:
        raise ModelFileError("base: expected the tensors of the delta, found others")
    tensors = tuple(
        _sum(places[tensor.role, tensor.layer], tensor, new_rows, _offset(tensor, delta.spec))
        for tensor in delta.tensors
    )
    tokenizer = base.tokenizer if delta.tokenizer.kind == "none" else delta.tokenizer
    chosen = {"new_rows": new_rows} if new_rows else {}
    return replace(
        delta,
        files=(*base.files, *delta.files),
        licence=delta.licence or base.licence,
        chat_template=delta.chat_template or base.chat_template,
        tensors=tensors,
        tokenizer=tokenizer,
        options={**delta.options, "base": base.name, **chosen},
    )


def _check_spec(base: Spec, delta: Spec) -> None:
    for name, wanted in vars(delta).items():
        if name not in _FREE and getattr(base, name) != wanted:
            raise ModelFileError(
                f"{name}: expected {wanted} in the base as in the delta, found {getattr(base, name)}"
            )
    if base.n_vocab > delta.n_vocab:
        raise ModelFileError(f"n_vocab: expected at most {delta.n_vocab} in the base, found {base.n_vocab}")


def _offset(tensor: Tensor, spec: Spec) -> float:
    """What both sides have added to what is stored: 1 + w is to become 1 + base + delta."""
    return 1.0 if spec.norm_offset and tensor.role.endswith("norm") else 0.0


def _sum(base: Tensor, delta: Tensor, new_rows: NewRows | None, offset: float) -> Tensor:
    """Their sum less `offset` in float32; what is computed and not stored stays as the delta has it."""
    for tensor in (base, delta):
        if tensor.source not in FLOAT_SOURCES:
            raise UnsupportedError(
                f"{tensor.name}: expected {' or '.join(FLOAT_SOURCES)}, found {tensor.source}"
            )
    if delta.role in _COMPUTED:
        return delta
    if base.rows < delta.rows and new_rows is None:
        more = delta.rows - base.rows
        raise RequestError(
            f"{delta.name}: expected new_rows, zero (Vicuna v0) or mean (Stanford Alpaca), as the delta has {more} "
            f"rows more than the base's {base.rows}"
        )
    mean = lru_cache(maxsize=1)(
        lambda: _mean(base) if new_rows == "mean" else np.zeros(base.cols, np.float32)
    )

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        values = delta.values(start, stop)
        known = min(stop, base.rows) - start
        if known > 0:
            values[:known] += base.values(start, start + known) - np.float32(offset)
        if known < stop - start:
            values[max(known, 0) :] += mean()
        return values.reshape(-1).view(np.uint8)

    return replace(delta, source="F32", read=read)


def _mean(tensor: Tensor) -> NDArray[np.float32]:
    """The mean of all rows."""
    total = np.zeros(tensor.cols, np.float64)
    for start in range(0, tensor.rows, _STEP):
        total += tensor.values(start, min(start + _STEP, tensor.rows)).sum(axis=0, dtype=np.float64)
    return (total / tensor.rows).astype(np.float32)
