"""Runs LLaMA-architecture language models on the CPU.

    import pyinfer

    model = pyinfer.load("smollm2")
    for chunk in model.chat_stream("Why is the sky blue?"):
        print(chunk.text, end="", flush=True)

Names are imported when they are first used, so that `import pyinfer` costs next to nothing. All exceptions are in
`pyinfer.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyinfer import errors
from pyinfer.errors import PyinferError

if TYPE_CHECKING:
    from pyinfer._core import __version__
    from pyinfer.adapters import Adapter
    from pyinfer.completion import Chunk, Completion
    from pyinfer.generation import Stream
    from pyinfer.model import Model, load
    from pyinfer.sampling import SamplingParams
    from pyinfer.session import Session
    from pyinfer.tokenizer import Tokenizer

__all__ = [
    "Adapter",
    "Chunk",
    "Completion",
    "Model",
    "PyinferError",
    "SamplingParams",
    "Session",
    "Stream",
    "Tokenizer",
    "__version__",
    "errors",
    "load",
]

_HOMES = {
    "Adapter": "adapters",
    "Chunk": "completion",
    "Completion": "completion",
    "Model": "model",
    "SamplingParams": "sampling",
    "Session": "session",
    "Stream": "generation",
    "Tokenizer": "tokenizer",
    "__version__": "_core",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyinfer' has no attribute {name!r}")
    value = getattr(import_module(f"pyinfer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
