"""Reads GGUF adapters: files whose general.type is `adapter`, with pairs of tensors X.lora_a and X.lora_b.

The format has one alpha and no flag for rank-stabilised scaling, so `alpha / rank` is what such a file means. Must not
know the model that the adapter is put on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyinfer.convert.adapter import (
    LINEAR_ROLES,
    AdapterSource,
    LowRank,
    ReadFile,
    read_values,
    require_invocable,
    require_pair,
)
from pyinfer.convert.checkpoint import RawTensor, in_file
from pyinfer.convert.families import GGUF, gguf_interleaved, gguf_tensor
from pyinfer.convert.gguf import MAGIC, GgufFile, KeyValues, read_gguf
from pyinfer.convert.peft_config import MAX_INVOCATION
from pyinfer.errors import ModelFileError, UnsupportedError

_SUFFIXES = (".lora_a", ".lora_b")
_INVOCATION = "adapter.alora.invocation_tokens"
_KNOWN = (
    "adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix", _INVOCATION,
)  # fmt: skip


def looks_like(path: Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_gguf_adapter(path: Path) -> AdapterSource:
    """Reads a file."""
    with in_file(path):
        files = (ReadFile.at(path),)
        file = read_gguf(path)
        architecture, alpha = _settings(file.keys)
        pairs = _pairs(file)
        changes = tuple(_low_rank(name, pair, architecture, alpha) for name, pair in pairs.items())
        invocation = _invocation(file.keys)
        invoked = {"invoked by": "tokens " + ", ".join(map(str, invocation))} if invocation else {}
        source = AdapterSource(
            kind="gguf",
            files=files,
            changes=changes,
            architecture=architecture,
            interleaved=gguf_interleaved(architecture),
            base=file.keys.text("general.base_model.0.name"),
            invocation=invocation,
            facts={"method": "LoRA", "alpha": f"{alpha:g} over r", **invoked},
        )
        return require_invocable(source)


def _settings(keys: KeyValues) -> tuple[str, float]:
    """The architecture and alpha; whatever else says how to apply the adapter is refused."""
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if keys.text(key) != expected:
            raise UnsupportedError(f"{key}: expected {expected!r}, found {(keys.text(key) or 'none')[:64]!r}")
    architecture = keys.text("general.architecture")
    if architecture not in GGUF:
        raise UnsupportedError(
            f"general.architecture: expected one of {', '.join(GGUF)}, found {(architecture or 'none')[:64]!r}"
        )
    for key in keys.names():
        if key.startswith("adapter.") and key not in _KNOWN:
            raise UnsupportedError(f"{key[:100]}: this setting is not supported")
    alpha = keys.number("adapter.lora.alpha")
    if not abs(alpha) < 1e9:
        raise ModelFileError(f"adapter.lora.alpha: expected a number below 1e9, found {alpha}")
    return architecture, alpha


def _invocation(keys: KeyValues) -> tuple[int, ...]:
    """The tokens from which on it applies; none: everywhere."""
    found = keys.integers(_INVOCATION)
    if found is None:
        return ()
    if not 1 <= len(found) <= MAX_INVOCATION or not all(0 <= int(token) < 1 << 22 for token in found):
        raise ModelFileError(f"{_INVOCATION}: expected token ids, found {len(found)} numbers of another kind")
    return tuple(map(int, found))


def _pairs(file: GgufFile) -> dict[str, dict[str, RawTensor]]:
    """The two factors of each tensor that is changed; anything else is refused by name."""
    pairs: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in file.tensors().items():
        base, suffix = name[: -len(_SUFFIXES[0])], name[-len(_SUFFIXES[0]) :]
        if suffix not in _SUFFIXES:
            raise UnsupportedError(
                f"{name}: expected a name that ends with .lora_a or .lora_b, found another"
            )
        pairs.setdefault(base, {})[suffix] = tensor
    if not pairs:
        raise ModelFileError("expected tensors, found none")
    return pairs


def _low_rank(name: str, pair: dict[str, RawTensor], architecture: str, alpha: float) -> LowRank:
    place = gguf_tensor(architecture, name)
    if place is None or place[0] not in (*LINEAR_ROLES, "embedding"):
        raise UnsupportedError(f"{name}: this tensor is not part of the supported architecture")
    for suffix in _SUFFIXES:
        if suffix not in pair:
            raise ModelFileError(f"{name}: expected {name}{suffix}, found none")
    a, b = (read_values(pair[suffix]) for suffix in _SUFFIXES)
    if place[0] == "embedding":  # stored by token
        a = np.ascontiguousarray(a.T)
    require_pair(name, a, b)
    scaling = alpha / a.shape[0] if alpha else 1.0  # an alpha of 0 stands for none
    return LowRank(*place, a, b, scaling, name)
