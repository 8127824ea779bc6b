"""What the keys of a GGUF file mean in every family: the numbers of a `Spec`, windows, rotation.

A key of the architecture that is not known is refused by name, as is a value that asks for something the
decoder does not do. Must not know names of tensors but those that hold factors of frequencies. Source:
llama.cpp's loader and the converters that write such files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import RawTensor, Spec, same_values
from pyinfer.convert.families import rope
from pyinfer.convert.families.config import factor_of
from pyinfer.convert.families.rope import Rope
from pyinfer.convert.gguf import KeyValues
from pyinfer.errors import ModelFileError, UnsupportedError

__all__ = ["ROPE_TENSORS", "Settings"]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "use_parallel_residual": (False,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "pooling_type": (0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}
"""Settings (after the architecture's prefix) that are accepted only where they change nothing."""
READ = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length", "attention.scale", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
IGNORED = ("tensor_data_layout", "attention.layer_norm_epsilon", "rope.scaling.finetuned")
"""Settings that describe training or the converter and change no result."""
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Factors of frequencies, which are no weights."""

Raw = Mapping[str, RawTensor]


class Settings:
    """The keys of one architecture, without its prefix."""

    def __init__(
        self,
        keys: KeyValues,
        architecture: str,
        handled: tuple[str, ...] = (),
        elsewhere: tuple[str, ...] = ("\0",),
    ) -> None:
        """`handled`: settings beyond the common ones that the family honours. `elsewhere`: how settings begin that
        belong to parts which are not read.
        """
        self.keys, self.prefix = keys, f"{architecture}."
        for key in keys.names():
            name = key.removeprefix(self.prefix)
            if name == key or name in (*READ, *IGNORED, *handled) or name.startswith(elsewhere):
                continue
            if name not in NEUTRAL:
                raise UnsupportedError(f"{key}: this setting is not supported")
            if keys.scalar(key) not in NEUTRAL[name]:
                raise UnsupportedError(
                    f"{key}: expected {NEUTRAL[name][0]}, found {keys.scalar(key)}, which is not supported"
                )

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """An integer within limits; without a default the key must be there."""
        return self.keys.integer(self.prefix + name, low, high, default)

    def number(self, name: str, default: float | None = None) -> float:
        """A number; without a default the key must be there."""
        return self.keys.number(self.prefix + name, default)

    def spec(self, raw: Raw, n_tokens: int) -> Spec:
        """What every family has; `n_tokens` is the size of the tokenizer's vocabulary, 0 if there is none."""
        n_vocab = self._n_vocab(raw, n_tokens)
        dim = self.integer("embedding_length", 1, 65536)
        n_heads = self.integer("attention.head_count", 1, 1024)
        head_dim = self._head_dim(dim, n_heads)
        scale = self.number("attention.scale", 0.0)
        return Spec(
            n_layers=self.integer("block_count", 1, 1024),
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=self.integer("attention.head_count_kv", 1, 1024, n_heads),
            head_dim=head_dim,
            n_ff=self.integer("feed_forward_length", 1, 1 << 20),
            n_vocab=n_vocab,
            context=self.integer("context_length", 1, 1 << 24),
            rope_dim=self.integer("rope.dimension_count", 0, 1024, head_dim),
            norm_eps=self.number("attention.layer_norm_rms_epsilon"),
            rope_magnitude=1.0,
            attention_scale=scale if scale != 0.0 else 1 / math.sqrt(head_dim),
            # Some converters write the one tensor of a tied model twice.
            tied_head="output.weight" not in raw
            or same_values(raw["output.weight"], raw["token_embd.weight"]),
        )

    def _n_vocab(self, raw: Raw, n_tokens: int) -> int:
        if "token_embd.weight" not in raw or len(raw["token_embd.weight"].shape) != 2:
            raise ModelFileError("expected a matrix token_embd.weight, found none")
        n_vocab = raw["token_embd.weight"].shape[0]
        said = self.integer("vocab_size", 1, 1 << 22, n_vocab)
        for what, count in ((f"{self.prefix}vocab_size", said), ("tokens", n_tokens)):
            if count not in (0, n_vocab):
                raise ModelFileError(
                    f"{what}: expected {n_vocab} as token_embd.weight has rows, found {count}"
                )
        return n_vocab

    def _head_dim(self, dim: int, n_heads: int) -> int:
        p = self.prefix
        if f"{p}attention.key_length" not in self.keys and dim % n_heads:
            raise ModelFileError(
                f"{p}attention.head_count: expected a divisor of {p}embedding_length {dim}, found {n_heads}"
            )
        head_dim = self.integer("attention.key_length", 2, 1024, dim // n_heads)
        value_length = self.integer("attention.value_length", 1, 1024, head_dim)
        if value_length != head_dim:
            raise UnsupportedError(
                f"{p}attention.value_length: expected {head_dim} as {p}attention.key_length, found {value_length}"
            )
        return head_dim

    def window(self, layers: tuple[int, ...], default: int = 0) -> dict[str, Any]:
        """The fields `window` and `windowed` of a specification; 0 in the file stands for none."""
        window = self.integer("attention.sliding_window", 0, 1 << 24, default)
        return {"window": window, "windowed": layers} if window and layers else {}

    # Rotation

    def rope(self, spec: Spec, raw: Raw) -> Rope:
        """How q and k rotate."""
        theta = factor_of(f"{self.prefix}rope.freq_base", self.number("rope.freq_base", 10000.0))
        if ROPE_TENSORS[1] in raw or ROPE_TENSORS[2] in raw:
            return self._longrope(spec, raw, theta)
        named = self.keys.text(f"{self.prefix}rope.scaling.type")
        kind = "linear" if named is None else named
        if kind not in ("none", "linear", "yarn"):
            raise UnsupportedError(
                f"{self.prefix}rope.scaling.type: expected none, linear or yarn, found {kind!r}"
            )
        scaled = self._yarn(spec, theta) if kind == "yarn" else self._linear(spec, theta, kind)
        factors = frequency_factors(raw[ROPE_TENSORS[0]], spec) if ROPE_TENSORS[0] in raw else 1.0
        magnitude = scaled.magnitude * self._attn_factor()
        return replace(scaled, usual=scaled.usual / factors, magnitude=magnitude)

    def _linear(self, spec: Spec, theta: float, kind: str) -> Rope:
        usual, factor = rope.frequencies(spec.rope_dim, theta), self._factor()
        if kind == "linear" and factor != 0.0:
            usual = usual / factor_of(f"{self.prefix}rope.scaling.factor", factor)
        return Rope(usual)

    def _factor(self) -> float:
        return self.number("rope.scaling.factor", self.number("rope.scale_linear", 0.0))

    def _attn_factor(self) -> float:
        return factor_of(
            f"{self.prefix}rope.scaling.attn_factor", self.number("rope.scaling.attn_factor", 1.0)
        )

    def _original(self, spec: Spec) -> int:
        return self.integer("rope.scaling.original_context_length", 2, 1 << 24, spec.context)

    def _yarn(self, spec: Spec, theta: float) -> Rope:
        factor = factor_of(f"{self.prefix}rope.scaling.factor", self.number("rope.scaling.factor"))
        fast, slow = (
            factor_of(f"{self.prefix}rope.scaling.{name}", self.number(f"rope.scaling.{name}", usual))
            for name, usual in (("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0))
        )
        shape = rope.YarnShape(fast, slow)
        return rope.yarn(spec.rope_dim, theta, factor, self._original(spec), None, shape)

    def _longrope(self, spec: Spec, raw: Raw, theta: float) -> Rope:
        for name in ROPE_TENSORS[1:]:
            if name not in raw:
                raise ModelFileError(f"expected a tensor {name}, found none")
        self._require_longrope_alone(raw)
        short, long = (frequency_factors(raw[name], spec) for name in ROPE_TENSORS[1:])
        return rope.longrope(spec.rope_dim, theta, short, long, self._original(spec), self._attn_factor())

    def _require_longrope_alone(self, raw: Raw) -> None:
        """Nothing else may ask for a change of the frequencies."""
        usual, short, _ = ROPE_TENSORS
        if usual in raw:
            raise UnsupportedError(f"{usual}: expected no such tensor beside {short}, found one")
        kind = self.keys.text(f"{self.prefix}rope.scaling.type")
        if kind not in (None, "none", "linear", "longrope"):
            raise UnsupportedError(
                f"{self.prefix}rope.scaling.type: expected longrope beside {short}, found {kind!r}"
            )
        if kind != "none" and self._factor() not in (0.0, 1.0):
            raise UnsupportedError(
                f"{self.prefix}rope.scaling.factor: expected 1 beside {short}, found {self._factor():g}"
            )


def frequency_factors(raw: RawTensor, spec: Spec) -> NDArray[np.float32]:
    """Divisors of the frequencies."""
    if raw.shape != (spec.rope_dim // 2,) or raw.source != "F32":
        raise ModelFileError(
            f"{raw.name}: expected {spec.rope_dim // 2} values in F32, found {list(raw.shape)} in {raw.source}"
        )
    factors = raw.read(0, 1).view("<f4").astype(np.float32)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(
            f"{raw.name}: expected finite factors above 0, found {factors.min()} to {factors.max()}"
        )
    return factors


def without_factors(raw: Raw) -> dict[str, RawTensor]:
    """The weights."""
    return {name: tensor for name, tensor in raw.items() if name not in ROPE_TENSORS}
