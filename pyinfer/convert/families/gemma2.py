"""Gemma 2: every other layer has a window, from the first on; scores and logits are softly capped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor
from pyinfer.convert.families import gemma, names
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.gguf_settings import Settings, without_factors
from pyinfer.convert.families.model import Model, assembled, offset_norms
from pyinfer.convert.gguf import KeyValues

__all__ = ["from_gguf", "from_huggingface"]

CAPS = (50.0, 30.0)
"""Of scores and of logits, in every published model: the first GGUF files of the family do not say so."""
TAKEN = {
    **gemma.TAKEN,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    **dict(zip(gemma.CAPS, CAPS, strict=True)),
}
LAYERS_OF_27B = 46


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture Gemma2ForCausalLM."""
    config = Config(values, handled=gemma.HANDLED, taken=TAKEN)
    spec = gemma.huggingface_spec(config)
    spec = replace(spec, **config.windows(lambda layer: layer % 2 == 0))
    return offset_norms(assembled(spec, raw, gemma.HUGGINGFACE, config.rope(spec)))


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `gemma2`."""
    settings = Settings(keys, "gemma2", handled=(*gemma.CAPS, "attention.sliding_window"))
    spec = gemma.gguf_spec(settings.spec(raw, n_tokens), settings, LAYERS_OF_27B, CAPS)
    spec = replace(spec, **settings.window(tuple(range(0, spec.n_layers, 2)), 4096))
    return assembled(spec, without_factors(raw), names.GGUF, settings.rope(spec, raw))
