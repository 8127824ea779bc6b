"""Numbers as callers give them: Python's, numpy's, and those of any other package that registers its own."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard

from pyinfer.errors import RequestError

__all__ = ["is_number", "is_whole", "plain", "shown", "whole"]


def plain(value: object) -> object:
    """Python's own number where a value is one of another kind, as numpy's scalars are; else the value as it is."""
    if type(value) in (bool, int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, Real) else value
    except OverflowError:  # a fraction that no float holds
        return value


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a plain value is a whole number; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a plain value is a number; truth values are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value as errors show it: of a whole number that is longer than Python prints, its bits."""
    try:
        return repr(value)
    except ValueError:
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def whole(name: str, given: object, low: int, high: int | None = None, none: str = "") -> int | None:
    """A whole number within limits, or None, of which errors say what it stands for; RequestError for anything else."""
    value = plain(given)
    if value is None or (is_whole(value) and low <= value <= (high or value)):
        return value
    wanted = f"from {low} to {high}" if high else f"of at least {low}"
    otherwise = f", or None for {none}" if none else ""
    raise RequestError(f"{name}: expected a whole number {wanted}{otherwise}, found {shown(given)}")
