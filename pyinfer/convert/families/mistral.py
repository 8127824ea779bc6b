"""Mistral: LLaMA with a window in every layer, where config.json has a sliding_window. In GGUF it is a `llama`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor
from pyinfer.convert.families import names
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.llama import IGNORED
from pyinfer.convert.families.model import Model, assembled

__all__ = ["from_huggingface"]


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture MistralForCausalLM; some say which layers have the window."""
    config = Config(values, handled=("sliding_window", "layer_types"), taken={"sliding_window": 4096})
    spec = replace(config.spec(), **config.windows(lambda layer: True))
    return assembled(spec, raw, names.HUGGINGFACE, config.rope(spec), ignored=IGNORED)
