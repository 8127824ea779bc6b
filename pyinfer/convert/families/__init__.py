"""The families table: which file knows the names and settings of an architecture, by the name that each
kind of checkpoint uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyinfer.convert.checkpoint import RawTensor, Spec
from pyinfer.convert.families import llama, meta
from pyinfer.convert.families.llama import Model
from pyinfer.convert.gguf import KeyValues

GGUF: dict[str, Callable[[KeyValues, Mapping[str, RawTensor], int], Model]] = {
    "llama": llama.from_gguf,
}
HUGGINGFACE: dict[str, Callable[[Mapping[str, Any], Mapping[str, RawTensor]], Model]] = {
    "LlamaForCausalLM": llama.from_huggingface,
}
LLAMA2C: Callable[[Spec, Mapping[str, RawTensor]], Model] = llama.from_llama2c
META: Callable[[Mapping[str, Any], Sequence[Mapping[str, RawTensor]], int], Model] = meta.from_meta


def huggingface_module(path: str) -> tuple[str, int] | None:
    """Role and layer of a module by its path in a Hugging Face model of any family; None where no family knows it."""
    return llama.huggingface_module(path)


def huggingface_path(role: str, layer: int) -> str:
    """The path of a module in a Hugging Face model."""
    return llama.huggingface_path(role, layer)


def gguf_tensor(architecture: str, name: str) -> tuple[str, int] | None:
    """Role and layer of a tensor by its name in GGUF files of an architecture."""
    return llama.gguf_tensor(name) if architecture in llama.GGUF_ARCHITECTURES else None
