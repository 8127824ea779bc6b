"""The adapters that PEFT wrote and its logits for them, as tests read them; tests/golden/make_lora.py made them all.

Knows the reference, not the product.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import llama, lora

FOLDER = Path(__file__).parents[1] / "golden" / "lora"
BASE = FOLDER / "base"
CHANGED_BASE = ("pissa", "olora")
"""Adapters that only fit the base that their training changed."""
GROWN = ("grown", "grown_untrained", "tied_grown", "grown_tokens", "tied_grown_tokens")
"""Cases of a larger vocabulary, which only merging can give a model."""


@dataclass(frozen=True)
class Case:
    """A stack of adapters, as (folder, weight), on one form of the base, and a text."""

    name: str
    tied: bool
    stack: tuple[tuple[str, float], ...]
    tokens: tuple[int, ...]

    @property
    def peft(self) -> NDArray[np.float32]:
        """PEFT's logits in float32, (tokens, vocabulary)."""
        with np.load(FOLDER / "logits.npz") as kept:
            logits: NDArray[np.float32] = kept[self.name]
        return logits

    @property
    def paths(self) -> list[tuple[Path, float]]:
        """The stack with whole paths."""
        return [(FOLDER / name, weight) for name, weight in self.stack]

    def exact(self, base: llama.Weights, rounding: llama.Rounding | None = None) -> llama.Doubles:
        """Logits of this stack on a base, in float64."""
        stack = [(lora.read(path), weight) for path, weight in self.paths]
        weights = lora.stacked(base, stack, self.tokens, self.tied)
        return llama.logits(weights, list(self.tokens), rounding)


def _cases() -> tuple[Case, ...]:
    listed: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
    return tuple(
        Case(c["name"], c["base"] == "tied", tuple((n, w) for n, w in c["stack"]), tuple(c["tokens"]))
        for c in listed
    )


CASES = _cases()


def named(name: str) -> Case:
    """One case."""
    return next(case for case in CASES if case.name == name)


def base_weights(tied: bool) -> llama.Weights:
    """The base's own weights for the reference."""
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    spec = llama.Spec(
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        rope_dim=config["head_dim"],
        norm_eps=config["rms_norm_eps"],
    )
    stored = lora.safetensors(BASE / "model.safetensors")
    tensors = {lora.reference_name(name.removesuffix(".weight")): values for name, values in stored.items()}
    if tied:
        tensors["output"] = tensors["token_embd"]
    for name in tensors:
        if name.endswith(("attn_q", "attn_k")):
            tensors[name] = llama.interleaved(tensors[name], spec)
    theta = config["rope_parameters"]["rope_theta"]
    frequencies = theta ** (-np.arange(0, spec.rope_dim, 2) / spec.rope_dim)
    return llama.Weights(spec, frequencies, tensors.__getitem__, lambda name: False)


def base_folder(path: Path, tied: bool) -> Path:
    """A Hugging Face folder of the base in one of its forms: the tied one has no head of its own to be read."""
    shutil.copytree(BASE, path)
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}), encoding="utf-8")
    return path
