"""SmolLM3: LLaMA in which every fourth layer does not rotate q and k."""

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
from pyinfer.errors import ModelFileError

__all__ = ["from_gguf", "from_huggingface"]

INTERVAL = 4
TAKEN: dict[str, Any] = {"tie_word_embeddings": True, "num_key_value_heads": 4}


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture SmolLM3ForCausalLM."""
    config = Config(values, handled=("sliding_window", "layer_types", "attention_bias"), taken=TAKEN)
    biased = config.flag("attention_bias")
    unrotated = _unrotated(config)
    spec = replace(config.spec(), qkv_bias=biased, o_bias=biased, unrotated=unrotated)
    if config.flag("use_sliding_window"):
        spec = replace(spec, **config.windows(lambda layer: layer in unrotated))
    return assembled(spec, raw, names.HUGGINGFACE, config.rope(spec, theta=2000000.0))


def _unrotated(config: Config) -> tuple[int, ...]:
    """Layers with a 0 in no_rope_layers; by default every no_rope_layer_interval-th."""
    n_layers, listed = config.n_layers(), config.values.get("no_rope_layers")
    if listed is None:
        interval = config.integer("no_rope_layer_interval", INTERVAL)
        return _every(interval, n_layers)
    if not isinstance(listed, list) or len(listed) != n_layers or any(one not in (0, 1) for one in listed):
        raise ModelFileError(
            f"no_rope_layers: expected a list of {n_layers} numbers 0 or 1, found {listed!r}"[:200]
        )
    return tuple(layer for layer, rotates in enumerate(listed) if not rotates)


def _every(interval: int, n_layers: int) -> tuple[int, ...]:
    if interval < 1:
        raise ModelFileError(f"no_rope_layer_interval: expected 1 or more, found {interval}")
    return tuple(range(interval - 1, n_layers, interval))


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `smollm3`; the interval is no setting there."""
    settings = Settings(keys, "smollm3")
    spec = settings.spec(raw, n_tokens)
    spec = replace(spec, unrotated=_every(INTERVAL, spec.n_layers))
    return assembled(spec, without_factors(raw), names.GGUF, settings.rope(spec, raw), interleaved=True)
