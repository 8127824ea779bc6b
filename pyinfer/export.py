"""Writes a stack of adapters as one PEFT adapter: by concatenation, which is exact, or cut to a rank by SVD.

What a single LoRA cannot say (DoRA's gains, replaced tensors) is refused by name. Must not know models.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer import cache
from pyinfer.convert.adapter import as_float
from pyinfer.convert.families import huggingface_path
from pyinfer.convert.peft import CONFIG, WEIGHTS
from pyinfer.errors import RequestError, UnsupportedError
from pyinfer.stack import Change, Stack

__all__ = ["Exported", "export", "norm"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Exported:
    """What was written: `error` is the length of what was cut off over the length of the whole change."""

    path: Path
    modules: int
    rank: int
    error: float
    bytes: int


def export(stack: Stack, folder: Path, *, rank: int | None = None, base: str | None = None) -> Exported:
    """Writes adapter_config.json and adapter_model.safetensors into a new folder.

    Args:
        stack: What to write.
        folder: Made if need be; it must be empty.
        rank: Ranks are cut to this, keeping what matters most to each matrix. None: ranks add up, nothing is lost.
        base: The base model to name in the settings.

    Raises:
        UnsupportedError: The stack has something that a single LoRA cannot say.
        RequestError: There is nothing to write, the folder is not empty, or a weighted factor is beyond float32.
    """
    _check(stack)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder}: expected a new or empty folder, found one that is not")
    tensors: dict[str, NDArray[np.float32]] = {}
    ranks: dict[str, int] = {}
    lost = whole = 0.0
    biased = any(change.bias is not None for change in stack.changes)
    for change in stack.changes:
        a, b, cut = _factors(change, rank)
        path = huggingface_path(change.role, change.layer)
        ranks[path], lost, whole = len(a), lost + cut, whole + norm(change) ** 2
        tensors |= _named(change, path, a, b, biased)
    folder.mkdir(parents=True, exist_ok=True)
    size = _write(folder, tensors, _config(ranks, biased, base))
    return Exported(folder, len(ranks), max(ranks.values()), math.sqrt(lost / whole) if whole else 0.0, size)


def norm(change: Change) -> float:
    """Frobenius norm of the change of a matrix, from the small products BᵀB and AAᵀ unless BA is smaller."""
    left, right = change.outer
    if len(right) ** 2 > len(left) * right.shape[1]:
        return float(np.linalg.norm(left @ right))
    square = float(((left.T @ left) * (right @ right.T)).sum())
    return math.sqrt(max(square, 0.0))


def _check(stack: Stack) -> None:
    stack.require_everywhere()
    if stack.replaced:
        raise UnsupportedError(
            f"{stack.replaced[0].role}: a replaced tensor cannot be written as a LoRA; merge the stack instead"
        )
    for change in stack.changes:
        where = huggingface_path(change.role, change.layer)
        if change.fused:
            raise UnsupportedError(
                f"{where}: it stands in one module with others in this family, for which an adapter cannot be written"
            )
        if change.gain is not None:
            raise UnsupportedError(
                f"{where}: DoRA cannot be written as a plain LoRA; merge the stack instead"
            )
        if change.role == "embedding" and any(other.bias is not None for other in stack.changes):
            raise UnsupportedError(
                f"{where}: beside biases it cannot be written as a LoRA; merge the stack instead"
            )
        if not len(change.a):
            raise UnsupportedError(f"{where}: a bias without a change cannot be written as a LoRA")
    if not stack.changes:
        raise RequestError("adapters: expected a stack that changes something, found none")


def _factors(change: Change, rank: int | None) -> tuple[Doubles, Doubles, float]:
    """A, B with weights and scalings in it, and the square of what was cut off."""
    a = as_float(change.a).astype(np.float64)
    b = as_float(change.b).astype(np.float64) * change.scale
    if rank is None or len(a) <= rank:
        return a, b, 0.0
    left, upper = np.linalg.qr(b)
    right, lower = np.linalg.qr(a.T)
    u, s, v = np.linalg.svd(upper @ lower.T)
    kept = min(rank, len(s))
    root = np.sqrt(s[:kept])
    return (root * (right @ v.T[:, :kept])).T, left @ u[:, :kept] * root, float(np.square(s[kept:]).sum())


def _named(change: Change, path: str, a: Doubles, b: Doubles, biased: bool) -> dict[str, NDArray[np.float32]]:
    prefix = f"base_model.model.{path}"
    with np.errstate(over="ignore"):
        kept = {"A": np.ascontiguousarray(a, np.float32), "B": np.ascontiguousarray(b, np.float32)}
    if not all(np.isfinite(values).all() for values in kept.values()):
        raise RequestError(f"{path}: expected factors within float32 once weighted, found larger ones")
    if change.role == "embedding":
        return {f"{prefix}.lora_embedding_{letter}": values for letter, values in kept.items()}
    named = {f"{prefix}.lora_{letter}.weight": values for letter, values in kept.items()}
    if biased:
        bias = np.zeros(len(b), np.float32) if change.bias is None else change.bias
        named[f"{prefix}.lora_B.bias"] = bias
    return named


def _config(ranks: dict[str, int], biased: bool, base: str | None) -> dict[str, Any]:
    """Settings under which every scaling is 1: alpha is the rank."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": biased,
        "fan_in_fan_out": False,
        "target_modules": list(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
    }


def _write(folder: Path, tensors: dict[str, NDArray[np.float32]], config: dict[str, Any]) -> int:
    from safetensors.numpy import save

    cache.write_whole(folder / WEIGHTS[0], save(tensors, metadata={"format": "pt"}))
    cache.write_whole(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())
