"""Phi-3, Phi-3.5 and Phi-4 (text): q, k, v and gate, up stand in one tensor each and are cut apart; LongRoPE,
part of a head may rotate, and every layer has a window where config.json has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor
from pyinfer.convert.families import names
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.gguf_settings import Settings, without_factors
from pyinfer.convert.families.model import Model, assembled, split
from pyinfer.convert.gguf import KeyValues

__all__ = ["from_gguf", "from_huggingface"]


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture Phi3ForCausalLM."""
    config = Config(values, handled=("sliding_window", "partial_rotary_factor"))
    spec = replace(config.spec(), **config.windows(lambda layer: True)).check()
    parts = split(raw, spec, names.FUSED_HUGGINGFACE, names.HUGGINGFACE)
    return assembled(spec, parts, names.HUGGINGFACE, config.rope(spec))


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `phi3`."""
    settings = Settings(keys, "phi3", handled=("attention.sliding_window",))
    spec = settings.spec(raw, n_tokens)
    spec = replace(spec, **settings.window(tuple(range(spec.n_layers)))).check()
    parts = split(without_factors(raw), spec, names.FUSED_PHI3, names.GGUF)
    return assembled(spec, parts, names.GGUF, settings.rope(spec, raw))
