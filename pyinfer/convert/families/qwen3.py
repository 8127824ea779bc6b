"""Qwen3 (dense): LLaMA with a norm of each head of q and k; no biases unless attention_bias asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor
from pyinfer.convert.families import names
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.gguf_settings import Settings, without_factors
from pyinfer.convert.families.model import Model, assembled
from pyinfer.convert.families.qwen2 import HANDLED, upper_windows
from pyinfer.convert.gguf import KeyValues

__all__ = ["from_gguf", "from_huggingface"]


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture Qwen3ForCausalLM."""
    taken = {"sliding_window": 4096, "head_dim": 128}
    config = Config(values, handled=(*HANDLED, "attention_bias"), taken=taken)
    biased = config.flag("attention_bias")
    spec = replace(config.spec(), qk_norm=True, qkv_bias=biased, o_bias=biased, **upper_windows(config))
    return assembled(spec, raw, names.HUGGINGFACE, config.rope(spec))


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `qwen3`."""
    settings = Settings(keys, "qwen3")
    spec = replace(settings.spec(raw, n_tokens), qk_norm=True)
    return assembled(spec, without_factors(raw), names.GGUF, settings.rope(spec, raw))
