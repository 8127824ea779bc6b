"""What a model runs with where nobody says so, and whether that fits into memory: activations, context, KV cache.

Must not know models as the API has them, nor files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from pyinfer import _core, memory
from pyinfer.arguments import shown, whole
from pyinfer.errors import RequestError

if TYPE_CHECKING:
    from pyinfer._core import Kv

__all__ = [
    "DEFAULT_CONTEXT",
    "Activations",
    "Context",
    "checked_context",
    "chosen_activations",
    "chosen_kv",
    "fitting_context",
    "require_room",
]

Activations: TypeAlias = Literal["int8", "f32"]
Context: TypeAlias = int | Literal["fit"] | None
DEFAULT_CONTEXT = 4096


def chosen_kv(given: Kv, activations: Activations, biased_keys: bool) -> Literal["f16", "i16", "q8"]:
    """What was asked for, or what `auto` stands for with such activations and keys."""
    return _core.usual_kv(activations, biased_keys) if given == "auto" else given


def chosen_activations(given: str | None) -> Activations:
    """What was asked for, else what PYINFER_ACTIVATIONS says, else int8; RequestError for anything else."""
    source = "activations" if given is not None else "PYINFER_ACTIVATIONS"
    value = given if given is not None else os.environ.get("PYINFER_ACTIVATIONS") or "int8"
    if value not in ("int8", "f32"):
        raise RequestError(f"{source}: expected int8 or f32, found {value!r}")
    return cast(Activations, value)


def checked_context(given: int | None, trained: int) -> int:
    """What was asked for, at most what the model was trained for; None: the same, but no more than DEFAULT_CONTEXT."""
    size = whole("context", given, 1)
    if size is None:
        return min(trained, DEFAULT_CONTEXT)
    if size > trained:
        raise RequestError(
            f"context: expected at most {trained}, for which the model was trained, found {shown(size)}"
        )
    return size


def fitting_context(given: Context, trained: int, engine: _core.Engine, kv: Kv, name: str) -> int:
    """The context that was asked for; MemoryLimitError unless weights and one session of it fit into memory."""

    def needed(context: int) -> int:
        return sum(cast(Mapping[str, int], engine.memory(context, kv)).values())

    def roomy() -> int:
        return memory.largest(needed, size, _core.PAGE_POSITIONS) or min(size, _core.PAGE_POSITIONS)

    def advice() -> str:
        fits, free = roomy(), memory.available_bytes()
        would = free is None or needed(fits) <= free
        return f"; a context of {fits} tokens would fit" if would else "; no context would fit"

    size = checked_context(None if given == "fit" else given, trained)
    if given == "fit":
        size = roomy()
    require_room(engine, size, kv, name, advice)
    return size


def require_room(
    engine: _core.Engine, context: int, kv: Kv, name: str, advice: Callable[[], str] = str
) -> None:
    """MemoryLimitError with all figures unless weights and one session of `context` tokens fit into memory."""
    needs = engine.memory(context, kv)
    weights, cache, workspace = needs["weights"], needs["kv_cache"], needs["workspace"]
    parts = f" (weights {memory.mib(weights)}, {context} tokens of context {memory.mib(cache)}, "
    parts += f"workspace {memory.mib(workspace)})"
    memory.require(weights + cache + workspace, f"the model {name}", parts, advice)
