"""What one rendering of a template may spend, and what values cost: the meter of the sandbox.

Must not know Jinja's syntax tree or which functions there are. Every turn of a loop, every call and every value that is
made costs fuel by its size; processor time is looked at whenever fuel is spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

FUEL = 1 << 21
FUEL_PER_INPUT = 64  # for each unit of what the messages weigh
SECONDS = 2.0  # of processor time
CHARS_PER_UNIT = 16
MOST_BITS = 4096  # of a whole number


class Refused(SecurityError):
    """The template asks for more than it may have."""


@dataclass
class Budget:
    """What one rendering may still spend."""

    fuel: int
    deadline: float = field(default_factory=lambda: time.thread_time() + SECONDS)
    unseen: int = 0  # fuel spent since the clock was looked at

    def spend(self, units: int) -> None:
        """Takes fuel; Refused when there is none left, or no time."""
        self.fuel -= units
        self.unseen += units
        if self.fuel < 0:
            raise Refused("it makes too many steps or too much text")
        if self.unseen >= 256:
            self.unseen = 0
            if time.thread_time() > self.deadline:
                raise Refused(f"it takes longer than {SECONDS:g} seconds")


current: ContextVar[Budget] = ContextVar("budget of the rendering under way")


def spend(units: int) -> None:
    """Spends from the budget of the rendering under way."""
    current.get().spend(units)


def weigh(value: object, spend: Callable[[int], None] = spend) -> None:
    """Spends by size as if shared parts were copied: what printing or comparing the value may cost."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            spend(1 + len(one) // CHARS_PER_UNIT)
            continue
        if isinstance(one, int) and one.bit_length() > MOST_BITS:
            raise Refused(f"it makes a number of more than {MOST_BITS} bits")
        spend(1)
        if isinstance(one, Mapping):
            spend(len(one))
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            spend(len(one) // CHARS_PER_UNIT)
            waiting += one


def weighed(value: Any) -> Any:
    """The value, paid for. Lazy sequences become lists."""
    if isinstance(value, Iterator):
        value = list(counted(value))
    elif isinstance(value, range):
        spend(len(value))
    weigh(value, current.get().spend)
    return value


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each paid for when it is taken."""
    for item in items:
        spend(1)
        yield item


def text_of(value: object) -> str:
    """What a value prints as; only plain values print."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, Mapping)):
        weigh(value)
        _require_plain(value)
    elif not isinstance(value, (int, float, Undefined, type(None))):
        raise Refused(f"it prints a {type(value).__name__}")
    return str(value)


def _require_plain(value: object) -> None:
    waiting: list[object] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif not isinstance(one, (str, int, float, Undefined, type(None))):
            raise Refused(f"it prints a {type(one).__name__}")


def concat(parts: Iterable[Any]) -> str:
    """Text from parts, each paid for before the next is made."""
    made = []
    for part in parts:
        text = text_of(part)
        spend(1 + len(text) // CHARS_PER_UNIT)
        made.append(text)
    return "".join(made)
