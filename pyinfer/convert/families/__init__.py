"""The families table: which file knows the names and settings of an architecture, by the name that each
kind of checkpoint uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyinfer.convert.checkpoint import RawTensor, Spec
from pyinfer.convert.families import gemma2, gemma3, llama, meta, mistral, names, phi3, qwen2, qwen3, smollm3
from pyinfer.convert.families.model import Model
from pyinfer.convert.gguf import KeyValues

GGUF: dict[str, Callable[[KeyValues, Mapping[str, RawTensor], int], Model]] = {
    "llama": llama.from_gguf,
    "qwen2": qwen2.from_gguf,
    "qwen3": qwen3.from_gguf,
    "phi3": phi3.from_gguf,
    "gemma2": gemma2.from_gguf,
    "gemma3": gemma3.from_gguf,
    "smollm3": smollm3.from_gguf,
}
HUGGINGFACE: dict[str, Callable[[Mapping[str, Any], Mapping[str, RawTensor]], Model]] = {
    "LlamaForCausalLM": llama.from_huggingface,
    "MistralForCausalLM": mistral.from_huggingface,
    "Qwen2ForCausalLM": qwen2.from_huggingface,
    "Qwen3ForCausalLM": qwen3.from_huggingface,
    "Phi3ForCausalLM": phi3.from_huggingface,
    "Gemma2ForCausalLM": gemma2.from_huggingface,
    "Gemma3ForCausalLM": gemma3.from_huggingface,
    "Gemma3ForConditionalGeneration": gemma3.from_vision,
    "SmolLM3ForCausalLM": smollm3.from_huggingface,
}
_GGUF_NAMES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "SmolLM3ForCausalLM": "smollm3",
}
LLAMA2C: Callable[[Spec, Mapping[str, RawTensor]], Model] = llama.from_llama2c
META: Callable[[Mapping[str, Any], Sequence[Mapping[str, RawTensor]], int], Model] = meta.from_meta

_INTERLEAVED = ("llama", "smollm3")
_HUGGINGFACE_MODULES = {**names.HUGGINGFACE, **names.FUSED_HUGGINGFACE}
_GGUF_TENSORS = {"phi3": {**names.GGUF, **names.FUSED_PHI3, "up": "", "gate": ""}}


def huggingface_module(path: str) -> tuple[str, int] | None:
    """Role and layer of a module by its path in a Hugging Face model of any family,
    `model.layers.3.self_attn.q_proj`, also as part of a model that sees; None where no family knows it. The roles
    `qkv` and `gate_up` stand for fused modules.
    """
    return names.place_of(f"{gemma3.text_name(path)}.weight", _HUGGINGFACE_MODULES)


def huggingface_path(role: str, layer: int) -> str:
    """The path of a module in a Hugging Face model."""
    return names.HUGGINGFACE[role].format(layer).removesuffix(".weight")


def gguf_architecture(architecture: str) -> str:
    """What GGUF files call an architecture of any kind of checkpoint."""
    return _GGUF_NAMES.get(architecture, architecture)


def gguf_tensor(architecture: str, name: str) -> tuple[str, int] | None:
    """Role and layer of a tensor by its name in GGUF files of an architecture; the roles `qkv` and `gate_up`
    stand for fused tensors.
    """
    return names.place_of(name, _GGUF_TENSORS.get(architecture, names.GGUF)) if architecture in GGUF else None


def gguf_interleaved(architecture: str) -> bool:
    """Whether q and k have their rows in interleaved rotary order in GGUF files of an architecture."""
    return architecture in _INTERLEAVED
