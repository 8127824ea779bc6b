"""The LLaMA family and all that share its settings: LLaMA 1 to 3.3, TinyLlama, SmolLM2, Yi, DeepSeek-LLM,
Vicuna and others; llama2.c's files too, which name no family.

GGUF files of architecture `llama` have q and k rows in interleaved order; among them are Mistral's models, whose window
is honoured where a file has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pyinfer.convert.checkpoint import RawTensor, Spec
from pyinfer.convert.families import names, rope
from pyinfer.convert.families.config import Config
from pyinfer.convert.families.gguf_settings import Settings, without_factors
from pyinfer.convert.families.model import Model, assembled
from pyinfer.convert.families.rope import Rope
from pyinfer.convert.gguf import KeyValues

__all__ = ["from_gguf", "from_huggingface", "from_llama2c"]

IGNORED = (".rotary_emb.inv_freq",)
"""Tensors of old checkpoints that can be computed."""


def from_huggingface(values: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture LlamaForCausalLM."""
    config = Config(values, handled=("attention_bias",))
    biased = config.flag("attention_bias")
    spec = replace(config.spec(), qkv_bias=biased, o_bias=biased)
    return assembled(spec, raw, names.HUGGINGFACE, config.rope(spec), ignored=IGNORED)


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `llama`; `n_tokens` is the size of the tokenizer's vocabulary, 0 if there is
    none.
    """
    settings = Settings(keys, "llama", handled=("attention.sliding_window",))
    spec = settings.spec(raw, n_tokens)
    spec = replace(
        spec,
        qkv_bias=names.GGUF["q_bias"].format(0) in raw,
        o_bias=names.GGUF["o_bias"].format(0) in raw,
        **settings.window(tuple(range(spec.n_layers))),
    )
    return assembled(spec, without_factors(raw), names.GGUF, settings.rope(spec, raw), interleaved=True)


def from_llama2c(spec: Spec, raw: Mapping[str, RawTensor]) -> Model:
    """llama2.c files, whose tensors have no names: the reader names them by role."""
    plain = Rope(rope.frequencies(spec.check().rope_dim, 10000.0))
    return assembled(spec, raw, names.LLAMA2C, plain, interleaved=True)
