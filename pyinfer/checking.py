"""Looks at adapters on a model: how large their changes are, what rounding would leave of them, and whether the ways to
apply them agree on this machine.

Must not print; the command line does.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.adapters import Adapter, Weighted
from pyinfer.convert.checkpoint import Tensor
from pyinfer.convert.merge import merged_format, retention
from pyinfer.convert.model_file import open_model_file
from pyinfer.errors import RequestError, UnsupportedError
from pyinfer.export import export, norm
from pyinfer.merging import convert_merged
from pyinfer.model import Model
from pyinfer.stack import Change, Stack, base_reader, stacked

__all__ = ["MOST_KL", "Agreement", "Looked", "agreement", "look"]

MOST_KL = 1e-5
"""Ways that differ by more than this do not agree: halves in the KV cache cost about a tenth of it."""
TOKENS = 48
BITS: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")


@dataclass(frozen=True)
class Looked:
    """One changed matrix: how large the change is, relative to the matrix, and what merging would leave of it."""

    role: str
    layer: int
    rank: int
    relative: float  # ‖Δ‖ / ‖W‖
    int8: float
    int4: float


def look(weighted: Weighted, model: Path) -> Iterator[Looked]:
    """Every matrix that a stack changes in a model.bin."""
    checkpoint = open_model_file(model)
    tensors = {(tensor.role, tensor.layer): tensor for tensor in checkpoint.tensors}
    stack = stacked(
        weighted, checkpoint.spec, base_reader(_core.ModelFile(str(model))), checkpoint.architecture
    )
    for change in stack.changes:
        if len(change.a):
            tied = change.role == "head" and ("head", change.layer) not in tensors
            tensor = tensors["embedding" if tied else change.role, change.layer]
            yield _looked(change, replace(tensor, role=change.role), stack)


def _looked(change: Change, base: Tensor, stack: Stack) -> Looked:
    whole = math.sqrt(float(np.square(base.values(0, base.rows), dtype=np.float64).sum()))
    size = _whole_change(change, base) if change.gain is not None else norm(change)
    int8, int4 = (retention(base, stack, merged_format(base.role, into)) for into in BITS)
    relative = size / whole if whole else math.inf
    return Looked(change.role, change.layer, len(change.a), relative, int8, int4)


def _whole_change(change: Change, base: Tensor) -> float:
    """The length of a change that scales the base too."""
    values = base.values(0, base.rows)
    return float(np.linalg.norm(change.merged(0, values) - values))


@dataclass(frozen=True)
class Agreement:
    """A way to apply a stack, compared with attaching it."""

    way: str
    kl: float  # the largest divergence of a token's probabilities
    logits: float  # the largest difference of a logit
    refused: str = ""  # why this way cannot be taken

    @property
    def good(self) -> bool:
        """Whether the two are the same but for rounding."""
        return bool(self.refused) or self.kl <= MOST_KL


def agreement(weighted: Weighted, model_file: Path, threads: int | None = None) -> list[Agreement]:
    """Attached, merged and exported: logits of one random text, with float activations."""
    with tempfile.TemporaryDirectory(prefix="pyinfer-") as name, _open(model_file, threads) as model:
        tokens = _tokens(model.n_vocab, min(TOKENS, model.context))
        expected = model.logits(tokens, adapters=list(weighted))
        folder = Path(name)
        return [
            _compared("merged", lambda: _merged(weighted, model, folder, tokens), expected),
            _compared("exported", lambda: _exported(weighted, model, folder, tokens), expected),
        ]


def _open(path: Path, threads: int | None) -> Model:
    return Model(path, threads=threads, context=None, activations="f32")


def _tokens(n_vocab: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, n_vocab, count)]


def _compared(way: str, run: Callable[[], NDArray[np.float32]], expected: NDArray[np.float32]) -> Agreement:
    try:
        found = run()
    except (RequestError, UnsupportedError) as error:
        return Agreement(way, math.nan, math.nan, str(error))
    return Agreement(way, _kl(expected, found), float(np.abs(expected - found).max()))


def _merged(weighted: Weighted, model: Model, folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    output = folder / "merged.bin"
    convert_merged(model.path, output, weighted, into="f32")
    with _open(output, model.threads) as merged:
        return merged.logits(tokens, adapters=[])


def _exported(weighted: Weighted, model: Model, folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    file = _core.ModelFile(str(model.path))
    checkpoint = open_model_file(model.path)
    stack = stacked(weighted, checkpoint.spec, base_reader(file), checkpoint.architecture)
    export(stack, folder / "exported")
    return model.logits(tokens, adapters=[Adapter.load(folder / "exported")])


def _kl(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (expected, found))
    return float((np.exp(p) * (p - q)).sum(1).max())


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
