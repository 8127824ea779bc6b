"""Rotary frequencies and how they are stretched for longer texts: all of it is arithmetic that is done at conversion.

Must not know where the numbers stand in a checkpoint. Formulas: linear, dynamic NTK, YaRN and LongRoPE as
`transformers` has them in modeling_rope_utils.py, llama3 as Meta's llama-models has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import Spec
from pyinfer.errors import ModelFileError

__all__ = ["Rope", "dynamic", "frequencies", "linear", "llama3", "long_magnitude", "longrope", "yarn"]

Frequencies = NDArray[np.float64]
"""Radians a position of each rotating pair."""


@dataclass(frozen=True, eq=False)
class Rope:
    """How q and k rotate."""

    usual: Frequencies
    magnitude: float = 1.0  # factor on cos and sin
    long: Frequencies | None = None  # of sequences made for more than `long_context` positions
    long_context: int = 0
    context: int = 0  # positions that the stretched frequencies reach; 0: what the model says
    local: Frequencies | None = None  # of layers with a window

    def put_into(self, spec: Spec) -> Spec:
        """The specification with what it says of rotation."""
        if spec.rope_dim == 0:
            return spec
        return replace(
            spec,
            rope_magnitude=self.magnitude,
            long_context=0 if self.long is None else self.long_context,
            local_rope=self.local is not None,
            context=max(spec.context, self.context),
        )

    def vectors(self, spec: Spec) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(role, frequencies as they are stored)."""
        sets = (("rope_freqs", self.usual), ("rope_freqs_local", self.local), ("rope_freqs_long", self.long))
        for role, values in sets:
            if values is None or spec.rope_dim == 0:
                continue
            single = values.astype(np.float32)
            if not np.isfinite(single).all():
                raise ModelFileError(
                    f"rope frequencies: expected finite numbers, found {values[~np.isfinite(single)][0]}"
                )
            yield role, single


def frequencies(rope_dim: int, theta: float) -> Frequencies:
    """theta^(-2i / rope_dim) of each pair."""
    if not (math.isfinite(theta) and theta > 0):
        raise ModelFileError(f"rope_theta: expected a finite number above 0, found {theta}")
    return theta ** (-np.arange(0, rope_dim, 2) / rope_dim) if rope_dim else np.empty(0)


def linear(rope_dim: int, theta: float, factor: float) -> Rope:
    """Every wave is slowed."""
    return Rope(frequencies(rope_dim, theta) / factor)


def llama3(rope_dim: int, theta: float, factor: float, low: float, high: float, original: float) -> Rope:
    """Llama 3.1: long waves are slowed by `factor`, short ones stay, those between are blended."""
    if high <= low:
        raise ModelFileError(
            f"rope_scaling.high_freq_factor: expected more than low_freq_factor {low}, found {high}"
        )
    usual = frequencies(rope_dim, theta)
    turns = original * usual / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return Rope((1 - blend) * usual / factor + blend * usual)


def dynamic(rope_dim: int, theta: float, factor: float, context: int) -> Rope:
    """Dynamic NTK: up to `context` positions nothing changes. Longer sequences have the base of the longest
    there may be, so that what was computed for a position stays right as a text grows.
    """
    reach = int(context * factor)
    if rope_dim <= 2 or reach <= context:
        return Rope(frequencies(rope_dim, theta))
    base = theta * (factor * reach / context - (factor - 1)) ** (rope_dim / (rope_dim - 2))
    return Rope(
        frequencies(rope_dim, theta),
        long=frequencies(rope_dim, base),
        long_context=context,
        context=reach,
    )


@dataclass(frozen=True)
class YarnShape:
    """Which waves YaRN stretches: those that turn less than `slow` times in the original context whole, those
    that turn more than `fast` times not at all.
    """

    fast: float = 32.0
    slow: float = 1.0
    whole: bool = True  # limits are rounded outwards to whole pairs


def yarn(
    rope_dim: int,
    theta: float,
    factor: float,
    original: int,
    magnitude: float | None = None,
    shape: YarnShape = YarnShape(),
) -> Rope:
    """YaRN, with the paper's magnitude 0.1 ln(factor) + 1 unless another is given."""
    usual = frequencies(rope_dim, theta)
    if theta <= 1:
        raise ModelFileError(f"rope_theta: expected a number above 1 for yarn, found {theta}")

    def pair_that_turns(times: float) -> float:
        return rope_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(shape.fast), pair_that_turns(shape.slow)
    if shape.whole:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope_dim - 1)
    ramp = np.clip((np.arange(len(usual)) - low) / (high - low if high != low else 0.001), 0, 1)
    if magnitude is None:
        magnitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return Rope(usual / factor * ramp + usual * (1 - ramp), magnitude, context=int(original * factor))


def long_magnitude(stretch: float, original: int) -> float:
    """The factor on cos and sin of LongRoPE for a context that is `stretch` times the original one."""
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def longrope(
    rope_dim: int,
    theta: float,
    short: NDArray[np.float32],
    long: NDArray[np.float32],
    original: int,
    magnitude: float,
) -> Rope:
    """LongRoPE: a divisor for each pair; sequences made for more than the original context have others."""
    usual = frequencies(rope_dim, theta)
    return Rope(usual / short, magnitude, usual / long, original)
