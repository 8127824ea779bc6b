"""Stacks of LoRA adapters in float64, from the definitions in docs/lora.md. Knows nothing of pyinfer.

A linear layer y = W x becomes y = g * (W x) + sum_i w_i s_i (B_i A_i x + b_i) + bias, with the scaling s = alpha / r
(rsLoRA: alpha / sqrt(r)) and the gain g = 1 + sum_i w_i (g_i - 1), where g_i = magnitude_i / |row of W + s_i B_i A_i|
for a DoRA and 1 otherwise; a DoRA's s_i B_i is multiplied by g_i too. Hostile folders are not its job.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .llama import Doubles, Weights, interleaved

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Adapter:
    """A folder: its settings, and tensors as {(module as PEFT names it, which of its tensors): values}."""

    settings: dict[str, Any]
    tensors: dict[tuple[str, str], Doubles]

    def of(self, what: str) -> dict[str, Doubles]:
        """Module -> its tensor of this kind."""
        return {module: values for (module, kind), values in self.tensors.items() if kind == what}

    def scaling(self, module: str, rank: int) -> float:
        """What multiplies B A in this module."""
        alpha = _pattern(self.settings.get("alpha_pattern"), module, self.settings["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank))


def _pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    """The value of the first key that matches the end of the module's name."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


_KINDS = (
    ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_embedding_A", ".lora_embedding_B",
    ".lora_magnitude_vector", ".token_adapter.trainable_tokens_delta", ".base_layer.weight", ".base_layer.bias",
    ".weight", ".bias",
)  # fmt: skip


def read(folder: Path) -> Adapter:
    """Opens adapter_config.json and adapter_model.safetensors."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {}
    for name, values in safetensors(folder / "adapter_model.safetensors").items():
        path = name.removeprefix("base_model.model.")
        ending = next(ending for ending in _KINDS if path.endswith(ending))
        kind = ending.removeprefix(".token_adapter").strip(".")
        tensors[path.removesuffix(ending), kind] = values
    return Adapter(settings, tensors)


def safetensors(path: Path) -> dict[str, Doubles]:
    """Every tensor of a file in float64."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    found = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            start, stop = (8 + length + at for at in entry["data_offsets"])
            found[name] = _floats(entry["dtype"], raw[start:stop]).reshape(entry["shape"])
    return found


def _floats(kind: str, raw: bytes) -> Doubles:
    if kind == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[kind]).astype(np.float64)


def reference_name(module: str) -> str:
    """What the reference model calls a module of a Hugging Face LLaMA."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    assert match, module
    return f"blk.{match[1]}.{_NAMES[match[2]]}"


class _Layer:
    """What a stack does to one linear layer. Rows are in the reference's order, so those of q and k are interleaved."""

    def __init__(self) -> None:
        self.gain: Doubles | float = 1.0
        self.bias: Doubles | float = 0.0
        self.parts: list[
            tuple[Doubles, Doubles, int]
        ] = []  # A, w s B, the first row of activations it is added to

    def __call__(self, x: Doubles, y: Doubles) -> Doubles:
        """The layer's output from its input and W x, both (n, ...)."""
        out: Doubles = self.gain * y + self.bias
        for a, b, first in self.parts:
            out[first:] += x[first:] @ a.T @ b.T
        return out


class _Stack:
    """A model with adapters on it, built one adapter after another."""

    def __init__(self, base: Weights, tied: bool) -> None:
        self.base, self.tied = base, tied
        self.layers: dict[str, _Layer] = {}
        self.replaced: dict[str, Doubles] = {}
        self.embedding: Doubles | float = 0.0

    def put(self, adapter: Adapter, weight: float, tokens: Sequence[int]) -> None:
        """Adds one adapter; of tensors that stand in for the base's, their difference from it.

        A `base_layer.weight` is only a copy of what the base has.
        """
        for module, values in (adapter.of("weight") | adapter.of("trainable_tokens_delta")).items():
            self._replace(adapter, module, values, weight)
        for module, values in (adapter.of("bias") | adapter.of("base_layer.bias")).items():
            self._layer(module).bias += weight * self._rows(module, values)
        for module, a in adapter.of("lora_A.weight").items():
            self._add(adapter, module, a, weight, first_row(adapter, tokens))
        for module, a in adapter.of("lora_embedding_A").items():
            b = adapter.tensors[module, "lora_embedding_B"]
            self.embedding = self.embedding + weight * adapter.scaling(module, len(a)) * (b @ a).T

    def _layer(self, module: str) -> _Layer:
        return self.layers.setdefault(reference_name(module), _Layer())

    def _rows(self, module: str, values: Doubles) -> Doubles:
        if not module.endswith(("q_proj", "k_proj")):
            return values
        return interleaved(values.reshape(len(values), -1), self.base.spec).reshape(values.shape)

    def _add(self, adapter: Adapter, module: str, a: Doubles, weight: float, first: int) -> None:
        layer, scaling = self._layer(module), adapter.scaling(module, len(a))
        w = self.base.tensor(reference_name(module)).astype(np.float64)
        if adapter.settings.get("use_qalora"):
            a = _unpooled(a, w.shape[1], adapter.settings["qalora_group_size"])
        b = scaling * self._rows(module, adapter.tensors[module, "lora_B.weight"])
        if (module, "lora_B.bias") in adapter.tensors:
            layer.bias += weight * scaling * self._rows(module, adapter.tensors[module, "lora_B.bias"])
        if (module, "lora_magnitude_vector") in adapter.tensors:
            magnitude = self._rows(module, adapter.tensors[module, "lora_magnitude_vector"])
            gain = magnitude / np.linalg.norm(w + b @ a, axis=1)
            layer.gain += weight * (gain - 1.0)
            b = gain[:, None] * b
        layer.parts.append((a, weight * b, first))

    def _replace(self, adapter: Adapter, module: str, values: Doubles, weight: float) -> None:
        """A whole tensor, or some rows of one end: of the tied head too, unless it has rows of its own."""
        name, indices = reference_name(module), adapter.settings.get("trainable_token_indices")
        if (module, "weight") in adapter.tensors:
            self._add_difference(name, slice(None), self._rows(module, values), weight)
            return
        if isinstance(indices, dict):
            indices = indices[module.rpartition(".")[2]]
        shared = self.tied and ("lm_head", "trainable_tokens_delta") not in adapter.tensors
        for place in (name, "output") if shared else (name,):
            self._add_difference(place, indices, values, weight)

    def _add_difference(self, name: str, rows: Any, values: Doubles, weight: float) -> None:
        base = self.base.tensor(name).astype(np.float64)
        whole = self.replaced.setdefault(name, base.copy())
        whole[rows] += weight * (values - base[rows])

    def weights(self) -> Weights:
        """The model with all that on it."""

        def tensor(name: str) -> NDArray[Any]:
            values = self.replaced.get(name, self.base.tensor(name))
            return values + self.embedding if name == "token_embd" else values

        def is_quantized(name: str) -> bool:
            return name not in self.replaced and self.base.is_quantized(name)

        def output(name: str, x: Doubles, y: Doubles) -> Doubles:
            return self.layers[name](x, y) if name in self.layers else y

        return replace(self.base, tensor=tensor, is_quantized=is_quantized, output=output)


def _unpooled(a: Doubles, cols: int, group: int) -> Doubles:
    """QA-LoRA's A acts on means of `group` inputs, times the number of groups."""
    found: Doubles = a.repeat(group, axis=1) * (cols // group / group)
    return found


def first_row(adapter: Adapter, tokens: Sequence[int]) -> int:
    """Where an adapter begins to act: an aLoRA at the last invocation among the tokens, or not at all."""
    wanted = adapter.settings.get("alora_invocation_tokens")
    if not wanted:
        return 0
    starts = [i for i in range(len(tokens)) if list(tokens[i : i + len(wanted)]) == wanted]
    return max(starts, default=len(tokens))


def stacked(
    base: Weights, stack: Sequence[tuple[Adapter, float]], tokens: Sequence[int], tied: bool = False
) -> Weights:
    """The model with an ordered stack of (adapter, weight) on it, for a text of these tokens."""
    whole = _Stack(base, tied)
    for adapter, weight in stack:
        whole.put(adapter, weight, tokens)
    return whole.weights()
