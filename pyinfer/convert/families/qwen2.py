"""Qwen2 and Qwen2.5: LLaMA with biases on q, k and v; the upper layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor
from pyinfer.convert.families import names
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.gguf_settings import Settings, without_factors
from pyinfer.convert.families.model import Model, assembled
from pyinfer.convert.gguf import KeyValues

__all__ = ["from_gguf", "from_huggingface", "upper_windows"]

HANDLED = ("sliding_window", "layer_types")


def upper_windows(config: Config) -> dict[str, Any]:
    """Layers from max_window_layers on have the window, where use_sliding_window asks for it."""
    if not config.flag("use_sliding_window"):
        return {}
    first = config.integer("max_window_layers", 28)
    return config.windows(lambda layer: layer >= first)


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture Qwen2ForCausalLM."""
    config = Config(values, handled=HANDLED, taken={"sliding_window": 4096})
    spec = replace(config.spec(), qkv_bias=True, **upper_windows(config))
    return assembled(spec, raw, names.HUGGINGFACE, config.rope(spec))


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `qwen2`."""
    settings = Settings(keys, "qwen2")
    spec = replace(settings.spec(raw, n_tokens), qkv_bias=True)
    return assembled(spec, without_factors(raw), names.GGUF, settings.rope(spec, raw))
