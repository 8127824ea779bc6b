"""How the next token is chosen: the parameters, their defaults and limits. Must not know models, sessions or text.

The chain itself runs in the core, in the order of `csrc/sampling/samplers.inc`: logit bias, penalties, top-k, typical,
top-p, min-p, temperature, then a seeded draw.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypedDict

from pyinfer.arguments import is_number, is_whole, plain, shown
from pyinfer.errors import RequestError

if TYPE_CHECKING:
    from pyinfer import _core

__all__ = ["SamplingFields", "SamplingParams"]

_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "penalty_window": (0, 1 << 20),
    "seed": (0, 2**64 - 1),
}
_WHOLE = {"top_k", "penalty_window", "seed"}
_BIAS_LIMIT = 1000


class SamplingFields(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments of `generate`, `stream` and `chat`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float]
    seed: int | None


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The defaults are those of llama.cpp; `temperature=0` is greedy.

    Raises:
        RequestError: A value outside its limits; the message names it.
    """

    temperature: float = 0.8
    """0 … 100. 0 picks the likeliest token; ties go to the lowest id."""
    top_k: int = 40
    """0 …; only the k likeliest tokens stay. 0 = off."""
    top_p: float = 0.95
    """0 … 1; the likeliest tokens that together hold this probability stay. 1 = off."""
    min_p: float = 0.05
    """0 … 1; tokens with at least this share of the likeliest one's probability stay. 0 = off."""
    typical_p: float = 1.0
    """0 … 1; the most typical tokens that together hold this probability stay. 1 = off."""
    repetition_penalty: float = 1.0
    """0.01 … 100; divides positive and multiplies negative logits of tokens that were seen. 1 = off."""
    presence_penalty: float = 0.0
    """-100 … 100; subtracted once from the logit of a token that was seen. 0 = off."""
    frequency_penalty: float = 0.0
    """-100 … 100; subtracted for each time a token was seen. 0 = off."""
    penalty_window: int = 64
    """0 … 1048576; how many of the last tokens, those of the prompt included, count as seen."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Token id -> number added to its logit, -1000 … 1000, or -inf to forbid the token."""
    seed: int | None = None
    """0 … 2**64 - 1. None draws one; the `Completion` says which."""

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not (name == "seed" and value is None):
                object.__setattr__(self, name, _checked(name, value, low, high, whole=name in _WHOLE))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def with_seed(self) -> SamplingParams:
        """The same with a seed: its own, or a random one of 32 bits."""
        return self if self.seed is not None else replace(self, seed=int.from_bytes(os.urandom(4), "little"))

    def for_core(self) -> _core.SamplerParams:
        """The fields as the core takes them; `seed` must be set."""
        if self.seed is None:
            raise RequestError("seed: expected a number, found None; with_seed() draws one")
        return {
            "temperature": float(self.temperature),
            "top_k": self.top_k,
            "top_p": float(self.top_p),
            "min_p": float(self.min_p),
            "typical_p": float(self.typical_p),
            "repetition_penalty": float(self.repetition_penalty),
            "presence_penalty": float(self.presence_penalty),
            "frequency_penalty": float(self.frequency_penalty),
            "penalty_window": self.penalty_window,
            "logit_bias": dict(self.logit_bias),
            "seed": self.seed,
        }


_FIELDS = frozenset(item.name for item in fields(SamplingParams))


def merged(
    params: SamplingParams | None, changes: SamplingFields, others: Iterable[str] = ()
) -> SamplingParams:
    """`params`, or the defaults, with some fields changed. Any other name is a RequestError that lists `others` too."""
    unknown = sorted(changes.keys() - _FIELDS)
    if unknown:
        known = sorted({*_FIELDS, *others})
        close = get_close_matches(unknown[0], known, 1, 0.5)
        hint = f" (is {close[0]} meant?)" if close else ""
        raise RequestError(f"expected options among {', '.join(known)}, found {unknown[0]!r}{hint}")
    if params is not None and not isinstance(params, SamplingParams):
        raise RequestError(f"params: expected SamplingParams, found {type(params).__name__}")
    return replace(params or SamplingParams(), **changes)


def _checked(name: str, given: object, low: float, high: float, *, whole: bool) -> float:
    value = plain(given)
    if is_number(value) and (is_whole(value) or not whole) and low <= value <= high:
        return value
    wanted = f"{'a whole number' if whole else 'a number'} from {low:g} to {high}"
    raise RequestError(f"{name}: expected {wanted}, found {shown(given)}")


def _checked_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise RequestError(
            f"logit_bias: expected a mapping of token ids to numbers, found {type(bias).__name__}"
        )
    checked = {}
    for given, value in bias.items():
        token = plain(given)
        if not is_whole(token) or not 0 <= token < 2**31:
            raise RequestError(f"logit_bias: expected token ids of 0 or more, found {shown(given)}")
        low = -_BIAS_LIMIT if value != -math.inf else -math.inf
        checked[token] = float(_checked(f"logit_bias[{token}]", value, low, _BIAS_LIMIT, whole=False))
    return checked
