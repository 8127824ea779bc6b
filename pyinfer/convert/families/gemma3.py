"""Gemma 3 (text): five layers with a window, then one without; those with a window rotate by frequencies of
their own, and heads of q and k are normed.

Models that also see are read without their eyes: the vision tower and its projector are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor, Spec
from pyinfer.convert.families import gemma, names, rope
from pyinfer.convert.families.config import Config, factor_of
from pyinfer.convert.families.gguf_settings import Settings, without_factors
from pyinfer.convert.families.model import Model, Raw, assembled, offset_norms
from pyinfer.convert.families.rope import Rope
from pyinfer.convert.gguf import KeyValues
from pyinfer.errors import ModelFileError, UnsupportedError

__all__ = ["from_gguf", "from_huggingface", "from_vision"]

TAKEN = {**gemma.TAKEN, "vocab_size": 262208, "max_position_embeddings": 131072}
THETA, LOCAL_THETA = 1000000.0, 10000.0
PERIOD = 6
LAYERS_OF_27B = 62
_SEEING = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_TEXT = ("language_model.", "model.language_model.")


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture Gemma3ForCausalLM."""
    config = Config(values, handled=gemma.HANDLED, taken=TAKEN)
    period = config.integer("sliding_window_pattern", PERIOD)
    if period < 1:
        raise ModelFileError(f"sliding_window_pattern: expected 1 or more, found {period}")
    spec = replace(gemma.huggingface_spec(config), qk_norm=True)
    spec = replace(spec, **config.windows(lambda layer: (layer + 1) % period != 0))
    weights = raw
    return offset_norms(assembled(spec, weights, gemma.HUGGINGFACE, _huggingface_rope(config, spec)))


def _huggingface_rope(config: Config, spec: Spec) -> Rope:
    """rope_parameters has one object for each kind of layer; before it, rope_local_base_freq stood beside
    rope_theta.
    """
    usual = config.rope(spec, kind="full_attention", theta=THETA)
    if not spec.window:
        return usual
    settings = config.rope_settings()
    local = settings.get("sliding_attention", {}) if "full_attention" in settings else {}
    if not isinstance(local, Mapping) or local.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"rope_parameters.sliding_attention: expected the type default, found {local!r}"[:200]
        )
    theta = local.get("rope_theta", config.values.get("rope_local_base_freq", LOCAL_THETA))
    return replace(usual, local=rope.frequencies(spec.rope_dim, factor_of("rope_local_base_freq", theta)))


def from_vision(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """The text part of directories of architecture Gemma3ForConditionalGeneration."""
    text = values.get("text_config")
    if not isinstance(text, Mapping):
        raise ModelFileError(f"text_config: expected an object, found {text!r}"[:200])
    if values.get("quantization_config") is not None:
        raise UnsupportedError("quantization_config: expected None, found one, which is not supported")
    return from_huggingface(text, _text_part(raw))


def _text_part(raw: Raw) -> dict[str, RawTensor]:
    """Tensors of the language model by the names they have alone."""
    return {text_name(name): tensor for name, tensor in raw.items() if not name.startswith(_SEEING)}


def text_name(name: str) -> str:
    """A name in the model that sees, as the language model alone has it; others as they are."""
    if name.startswith(_TEXT[1]):
        return "model." + name.removeprefix(_TEXT[1])
    return name.removeprefix(_TEXT[0])


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `gemma3`."""
    handled = (*gemma.CAPS, "attention.sliding_window", "rope.freq_base_swa")
    settings = Settings(keys, "gemma3", handled=handled, elsewhere=("mm.", "vision."))
    spec = replace(gemma.gguf_spec(settings.spec(raw, n_tokens), settings, LAYERS_OF_27B), qk_norm=True)
    layers = tuple(layer for layer in range(spec.n_layers) if (layer + 1) % PERIOD != 0)
    spec = replace(spec, **settings.window(layers))
    usual = settings.rope(spec, raw)
    if spec.window:
        theta = factor_of("gemma3.rope.freq_base_swa", settings.number("rope.freq_base_swa", LOCAL_THETA))
        usual = replace(usual, local=rope.frequencies(spec.rope_dim, theta))
    return assembled(spec, without_factors(raw), names.GGUF, usual)
