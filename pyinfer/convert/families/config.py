"""Typed access to config.json, and what its settings mean in every family: the numbers of a `Spec`, windows, rotation.

What a config asks for and the decoder does not do is refused by name; what is not listed anywhere here, transformers
ignores too. Must not know names of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import LIMITS, Spec
from pyinfer.convert.families import rope
from pyinfer.convert.families.rope import Rope
from pyinfer.errors import ModelFileError, UnsupportedError

__all__ = ["Config", "factor_of"]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "hidden_activation": (None, "silu"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "sliding_window": (None,),
    "layer_types": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "use_bidirectional_attention": (False, None),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0),
    "logit_scale": (1, None),
    "attention_multiplier": (None,),
    "residual_multiplier": (1, None),
    "embedding_multiplier": (1, None),
}
"""Settings that are accepted only where they change nothing, unless a family says that it handles them."""


LEAST, MOST = 1e-30, 1e30


def factor_of(key: str, value: Any) -> float:
    """A number above 0, of a size that leaves room to reckon with it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not LEAST <= value <= MOST:
        raise ModelFileError(f"{key}: expected a number from {LEAST:g} to {MOST:g}, found {value!r}"[:200])
    return float(value)


class Config:
    """The settings of one model: what the file says, else what the family takes for granted."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        handled: tuple[str, ...] = (),
        taken: Mapping[str, Any] | None = None,
    ) -> None:
        """`handled`: settings beyond the common ones that the family honours. `taken`: its defaults."""
        self.values: Mapping[str, Any] = {**(taken or {}), **values}
        for key, accepted in NEUTRAL.items():
            if key not in handled and self.values.get(key, accepted[0]) not in accepted:
                raise UnsupportedError(
                    f"{key}: expected {accepted[0]!r}, found {self.values[key]!r}, which is not supported"
                )

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; without a default it must be there."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not abs(value) < 1 << 31:
            raise ModelFileError(f"{key}: expected an integer below 2^31, found {value!r}"[:200])
        return value

    def n_layers(self) -> int:
        """Layers, within what a specification may have: what follows makes lists of them."""
        low, high = LIMITS["n_layers"]
        value = self.integer("num_hidden_layers")
        if not low <= value <= high:
            raise ModelFileError(f"num_hidden_layers: expected {low} to {high}, found {value}")
        return value

    def number(self, key: str, default: float) -> float:
        """What `factor_of` takes."""
        value = self.values.get(key)
        return default if value is None else factor_of(key, value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise ModelFileError(f"{key}: expected true or false, found {value!r}")
        return default if value is None else value

    def require(self, key: str, expected: str) -> None:
        """Refuses another value of a setting that the family knows one of."""
        if self.values.get(key) != expected:
            raise UnsupportedError(
                f"{key}: expected {expected!r}, found {self.values.get(key)!r}, which is not supported"
            )

    # The numbers

    def spec(self) -> Spec:
        """What every family has; `rope_dim` follows partial_rotary_factor."""
        dim, n_heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        if n_heads < 1 or (self.values.get("head_dim") is None and dim % n_heads):
            raise ModelFileError(
                f"num_attention_heads: expected a divisor of hidden_size {dim}, found {n_heads}"
            )
        head_dim = self.integer("head_dim", dim // n_heads)
        if head_dim < 2:
            raise ModelFileError(f"head_dim: expected 2 or more, found {head_dim}")
        return Spec(
            n_layers=self.n_layers(),
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=self.integer("num_key_value_heads", n_heads),
            head_dim=head_dim,
            n_ff=self.integer("intermediate_size"),
            n_vocab=self.integer("vocab_size"),
            # The second is what Vicuna's and LongChat's models of 16,384 say beside a linear scaling.
            context=max(
                self.integer("max_position_embeddings", 2048), self.integer("max_sequence_length", 1)
            ),
            rope_dim=int(head_dim * self._rotating_share()),
            norm_eps=self.number("rms_norm_eps", 1e-6),
            rope_magnitude=1.0,
            attention_scale=1 / math.sqrt(head_dim),
            tied_head=self.flag("tie_word_embeddings"),
        ).check()  # before anything is made of these sizes

    def _rotating_share(self) -> float:
        inner = self.rope_settings().get("partial_rotary_factor")
        share = (
            self.number("partial_rotary_factor", 1.0)
            if inner is None
            else factor_of("partial_rotary_factor", inner)
        )
        if share > 1:
            raise ModelFileError(f"partial_rotary_factor: expected at most 1, found {share}")
        return share

    # Windows

    def windows(self, is_windowed: Callable[[int], bool]) -> dict[str, Any]:
        """The fields `window` and `windowed`: by layer_types, else by the family's rule, where there is a
        window at all.
        """
        n_layers, types = self.n_layers(), self.values.get("layer_types")
        if types is None:
            layers = tuple(filter(is_windowed, range(n_layers)))
        else:
            layers = tuple(
                i for i, kind in enumerate(self._layer_types(types, n_layers)) if kind == "sliding_attention"
            )
        if self.values.get("sliding_window") is None:
            if layers and types is not None:
                raise ModelFileError(
                    "sliding_window: expected an integer, as layer_types asks for one, found None"
                )
            return {}
        window = self.integer("sliding_window")
        if window < 1:
            raise ModelFileError(f"sliding_window: expected 1 or more, found {window}")
        return {"window": window, "windowed": layers} if layers else {}

    def _layer_types(self, types: Any, n_layers: int) -> list[str]:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != n_layers:
            raise ModelFileError(f"layer_types: expected a list of {n_layers} names, found {types!r}"[:200])
        for kind in types:
            if kind not in known:
                raise UnsupportedError(f"layer_types: expected {' or '.join(known)}, found {kind!r}")
        return types

    # Rotation

    def rope_settings(self, kind: str | None = None) -> Mapping[str, Any]:
        """The object that describes rotation, by either of its names; `kind` for models that have one for each
        kind of layer.
        """
        found = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(found, Mapping):
            raise ModelFileError(f"rope_scaling: expected an object, found {found!r}")
        inner = found.get(kind, found) if kind else found
        if not isinstance(inner, Mapping):
            raise ModelFileError(f"rope_parameters.{kind}: expected an object, found {inner!r}")
        return inner

    def rope(self, spec: Spec, *, kind: str | None = None, theta: float | None = None) -> Rope:
        """How q and k rotate; `theta` is the family's default."""
        settings = self.rope_settings(kind)
        given = settings.get("rope_theta", self.values.get("rope_theta"))
        base = (theta or 10000.0) if given is None else factor_of("rope_theta", given)
        return _Scaling(self, settings, spec, base).rope()


_COMMON = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
)
_SCALINGS: dict[str, tuple[str, ...]] = {
    "default": ("attention_factor",),
    "linear": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": (
        "attention_factor",
        "attn_factor",
        "beta_fast",
        "beta_slow",
        "finetuned",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("attention_factor", "short_factor", "long_factor"),
}
"""Kinds of scaling and what they read besides the common settings; `finetuned` tells how the model came about, and
`attn_factor` counts neither in transformers nor in llama.cpp (DeepSeek-R1-0528-Qwen3-8B has it)."""


class _Scaling:
    """The scaling that a rope_scaling object asks for."""

    def __init__(self, config: Config, settings: Mapping[str, Any], spec: Spec, theta: float) -> None:
        self.config, self.settings, self.spec, self.theta = config, settings, spec, theta

    def rope(self) -> Rope:
        kind = self._kind()
        dim, theta = self.spec.rope_dim, self.theta
        if kind == "default":
            return Rope(rope.frequencies(dim, theta))
        if kind == "linear":
            return rope.linear(dim, theta, self._factor("factor"))
        if kind == "dynamic":
            return rope.dynamic(dim, theta, self._factor("factor"), self._original())
        if kind == "llama3":
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return rope.llama3(dim, theta, *(self._factor(name) for name in names))
        return self._yarn() if kind == "yarn" else self._longrope()

    def _kind(self) -> str:
        kind = self.settings.get("rope_type", self.settings.get("type", "default"))
        if kind == "su" or (kind == "yarn" and "long_factor" in self.settings):
            kind = "longrope"  # its names before it had one
        if not isinstance(kind, str) or kind not in _SCALINGS:
            raise UnsupportedError(f"rope_scaling: expected the type {', '.join(_SCALINGS)}, found {kind!r}")
        for key in self.settings:
            if key not in _COMMON and key not in _SCALINGS[kind]:
                raise UnsupportedError(f"rope_scaling.{key}: this setting of {kind} is not supported")
        return kind

    def _factor(self, name: str, default: float | None = None) -> float:
        value = self.settings.get(name)
        if value is None and default is not None:
            return default
        return factor_of(f"rope_scaling.{name}", value)

    def _original(self) -> int:
        """Positions before stretching."""
        inner = self.settings.get("original_max_position_embeddings")
        value = self.config.values.get("original_max_position_embeddings") if inner is None else inner
        if value is None:
            value = self.spec.context
        if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value < 1 << 31:
            raise ModelFileError(
                f"original_max_position_embeddings: expected an integer from 2 to 2^31, found {value!r}"[:200]
            )
        return value

    def _stretch(self, original: int) -> float:
        return self._factor("factor", self.spec.context / original)

    def _yarn(self) -> Rope:
        original = self._original()
        factor = self._stretch(original)
        given = self.settings.get("attention_factor")
        magnitude = self._mscale(factor) if given is None else self._factor("attention_factor")
        truncate = self.settings.get("truncate", True)
        if not isinstance(truncate, bool):
            raise ModelFileError(f"rope_scaling.truncate: expected true or false, found {truncate!r}")
        shape = rope.YarnShape(self._factor("beta_fast", 32.0), self._factor("beta_slow", 1.0), truncate)
        return rope.yarn(self.spec.rope_dim, self.theta, factor, original, magnitude, shape)

    def _mscale(self, factor: float) -> float | None:
        """DeepSeek's quotient of two magnitudes, where both are given."""
        if not self.settings.get("mscale") or not self.settings.get("mscale_all_dim"):
            return None
        of = [
            0.1 * self._factor(name) * math.log(max(factor, 1)) + 1 for name in ("mscale", "mscale_all_dim")
        ]
        return of[0] / of[1]

    def _longrope(self) -> Rope:
        original = self._original()
        given = self.settings.get("attention_factor")
        magnitude = (
            rope.long_magnitude(self._stretch(original), original)
            if given is None
            else self._factor("attention_factor")
        )
        short, long = (self._divisors(name) for name in ("short_factor", "long_factor"))
        return rope.longrope(self.spec.rope_dim, self.theta, short, long, original, magnitude)

    def _divisors(self, name: str) -> NDArray[np.float32]:
        values, n = self.settings.get(name), self.spec.rope_dim // 2
        if not isinstance(values, list) or len(values) != n:
            raise ModelFileError(
                f"rope_scaling.{name}: expected a list of {n} numbers, found {values!r}"[:200]
            )
        return np.array([factor_of(f"rope_scaling.{name}", value) for value in values], np.float32)
