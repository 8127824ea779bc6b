"""Opening what a verb works on below the public API: the file of a model, memory for it, a text."""

from __future__ import annotations

import argparse
from typing import IO, TYPE_CHECKING, Literal

from pyinfer.cli import terminal
from pyinfer.errors import RequestError

if TYPE_CHECKING:
    from pyinfer import _core

__all__ = ["activations", "kv", "model_file", "require_room", "text"]


def model_file(
    options: argparse.Namespace, huge_pages: Literal["auto", "on", "off"] = "auto"
) -> _core.ModelFile:
    """The model.bin of `options.model`, fetched and converted if need be."""
    from pyinfer import _core, hub

    with terminal.progress() as progress:
        wanted = getattr(options, "weights", None)  # of verbs that run the model
        path = hub.resolve(options.model, cache=options.cache, weights=wanted, progress=progress)
    return _core.ModelFile(str(path), huge_pages)


def activations(options: argparse.Namespace) -> Literal["int8", "f32"]:
    """What was asked for, by option or by PYINFER_ACTIVATIONS; int8 otherwise."""
    from pyinfer.fitting import chosen_activations

    return chosen_activations(options.activations)


def kv(file: _core.ModelFile, options: argparse.Namespace) -> str:
    """How sessions of the file keep keys and values: what was asked for, or what `auto` stands for."""
    from pyinfer.fitting import chosen_kv

    return chosen_kv(options.kv, activations(options), file.spec["qkv_bias"])


def require_room(file: _core.ModelFile, context: int, threads: int, options: argparse.Namespace) -> None:
    """MemoryLimitError unless the weights and one session fit into memory; reads nothing of the weights."""
    from pyinfer import _core, fitting

    engine = _core.Engine(file, threads, activations(options), prefetch=False)
    fitting.require_room(engine, context, options.kv, options.model)


def text(stream: IO[bytes], where: str) -> str:
    """A whole text, which must be UTF-8."""
    raw = stream.read()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise RequestError(
            f"{where}: expected UTF-8 text, found byte 0x{byte:02x} at {error.start}"
        ) from None
