"""What Gemma 2 and Gemma 3 share: scaled embeddings, norms before and behind each block that are stored as w
where 1 + w is meant, a gelu gate, and a scale of q that is a setting of its own.

GGUF files have 1 + w already.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import Spec
from pyinfer.convert.families import names
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.gguf_settings import Settings

__all__ = ["CAPS", "HANDLED", "HUGGINGFACE", "TAKEN", "gguf_spec", "huggingface_spec"]

HUGGINGFACE: names.Names = {
    **names.HUGGINGFACE,
    "post_attn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "post_ffn_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}
HANDLED = (
    "sliding_window", "layer_types", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "hidden_activation", "hidden_act",
)  # fmt: skip
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
TAKEN: dict[str, Any] = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
"""What both families' configurations say where config.json is silent."""


def with_traits(spec: Spec, attn_softcap: float, logit_softcap: float) -> Spec:
    """The specification with what every model of these families has."""
    return replace(
        spec,
        post_norms=True,
        gelu=True,
        norm_offset=True,
        embedding_scale=math.sqrt(spec.dim),
        attn_softcap=attn_softcap,
        logit_softcap=logit_softcap,
    )


def huggingface_spec(config: Config) -> Spec:
    """All but windows and rotation."""
    config.require("hidden_activation", "gelu_pytorch_tanh")
    spec = with_traits(config.spec(), *(config.number(cap, 0.0) for cap in CAPS))
    return replace(spec, attention_scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5)


def gguf_spec(
    spec: Spec, settings: Settings, n_layers_of_27b: int, caps: tuple[float, float] = (0.0, 0.0)
) -> Spec:
    """The specification of a GGUF file, with these soft caps of scores and logits where it has none. It does not have
    the scale of q, which follows from the size of the model: the one of 27 billion parameters divides by the root of
    dim / n_heads, the others by that of head_dim.
    """
    attn, logit = (settings.number(name, usual) for name, usual in zip(CAPS, caps, strict=True))
    spec = with_traits(spec, attn, logit)
    divisor = spec.dim // spec.n_heads if spec.n_layers == n_layers_of_27b else spec.head_dim
    return replace(spec, attention_scale=divisor**-0.5)
