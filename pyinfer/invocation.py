"""Stacks that change within a prompt: adapters that apply only from the last occurrence of some tokens on (aLoRA).

What stands before is evaluated without them, so its keys and values are those of the stack of the others. Must not know
how overlays are packed, nor sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pyinfer.timeline import Overlay

__all__ = ["Invoked"]

Active = tuple[bool, ...]
"""Which adapters of a stack apply."""


@dataclass(frozen=True, eq=False)
class Invoked:
    """A stack as a course of overlays over the tokens of a prompt."""

    invocations: tuple[tuple[int, ...], ...]
    """For each adapter the tokens that invoke it; empty where it always applies."""
    overlay_of: Callable[[Active], Overlay]
    made: dict[Active, Overlay] = field(default_factory=dict)

    def spans(self, tokens: Sequence[int]) -> tuple[tuple[int, Overlay], ...]:
        """Where each overlay begins: an adapter applies from the first token of its last invocation on."""
        starts = [_last(tokens, invocation) for invocation in self.invocations]
        marks = sorted({0, *(start for start in starts if start is not None)})
        return tuple(
            (mark, self.overlay(tuple(start is not None and start <= mark for start in starts)))
            for mark in marks
        )

    def overlay(self, active: Active) -> Overlay:
        """What lies over the model where just these apply; one and the same each time."""
        if active not in self.made:
            self.made[active] = self.overlay_of(active)
        return self.made[active]


def _last(tokens: Sequence[int], wanted: tuple[int, ...]) -> int | None:
    """Where the last occurrence begins, or None; an empty sequence occurs at the beginning."""
    if not wanted:
        return 0
    starts = range(len(tokens) - len(wanted), -1, -1)
    return next((i for i in starts if tuple(tokens[i : i + len(wanted)]) == wanted), None)
