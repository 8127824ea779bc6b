"""Drives pyinfer's compiled core through `Session.eval`, `Session.step` and `forward`; the Python layer is not timed.

Settings are keyword arguments of `_core.Engine`, and `lora`: paths of GGUF adapters, all with weight 1.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

import driver
from driver import Settings


class Timeline:
    """One session for each sequence."""

    def __init__(self, core: Any, engine: Any, capacity: int, sequences: int, stack: Any) -> None:
        self._core = core
        self._engine = engine
        self._sessions = [core.Session(engine, capacity) for _ in range(sequences)]
        for session in self._sessions:
            session.adapters = stack
        self._logits: NDArray[np.float32] = np.zeros(0, np.float32)
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forgets all tokens from `position` on."""
        for session in self._sessions:
            session.truncate(position)
        self.position = position

    def fill(self, tokens: list[int]) -> None:
        """Appends these tokens to every sequence."""
        array = np.array(tokens, np.int32)
        for session in self._sessions:
            self._logits = session.eval(array, logits="last")[-1]
        self.position += len(tokens)

    def step(self, tokens: list[int]) -> None:
        """Appends one token to each sequence."""
        if len(tokens) == 1:
            self._logits = self._sessions[0].step(tokens[0])
        else:
            rows = [np.array([token], np.int32) for token in tokens]
            self._core.forward(
                self._engine, [(s, r, "last") for s, r in zip(self._sessions, rows, strict=True)]
            )
        self.position += 1

    def logits(self) -> list[float]:
        """Logits of the last token."""
        return [float(value) for value in self._logits]


class PyInfer(driver.TimelineEngine):
    """pyinfer's core with one model; one engine for each number of threads."""

    def __init__(self) -> None:
        from pyinfer import _core

        self._core: Any = _core
        self._timelines: dict[tuple[Any, ...], Timeline] = {}
        self._engine: Any = None
        self._key: tuple[int, Settings] = (0, {})

    def open(self, model: str, settings: Settings) -> None:
        """Maps the model, and reads its vocabulary as the peers do."""
        from pyinfer.tokenizer import Tokenizer

        self._file = self._core.ModelFile(model)
        self._tokenizer = Tokenizer.open(self._file)

    def about(self) -> dict[str, Any]:
        """Version and instruction set."""
        return {"engine": "pyinfer", "version": self._core.__version__, "isa": self._core.active_isa()}

    def n_vocab(self) -> int:
        """Tokens of the model's vocabulary."""
        return int(self._file.spec["n_vocab"])

    def timeline(self, capacity: int, sequences: int, threads: int, settings: Settings) -> Timeline:
        """Sessions of this size; the same ones if asked again."""
        options = {name: value for name, value in settings.items() if name != "lora"}
        if self._engine is None or self._key != (threads, options):
            self.forget()
            self._engine = self._core.Engine(self._file, threads=threads, **options)
            self._key = (threads, options)
        key = (capacity, sequences, *settings.get("lora", []))
        if key not in self._timelines:
            stack = self._packed(settings.get("lora", []))
            self._timelines[key] = Timeline(self._core, self._engine, capacity, sequences, stack)
        return self._timelines[key]

    def _packed(self, paths: list[str]) -> Any:
        """A stack of adapters for the engine; None if there are none."""
        if not paths:
            return None
        from pyinfer.adapters import Adapter
        from pyinfer.convert.checkpoint import Spec
        from pyinfer.stack import base_reader, stacked

        weighted = tuple((Adapter.load(path), 1.0) for path in paths)
        return stacked(weighted, Spec(**self._file.spec), base_reader(self._file)).packed(self._engine)

    def forget(self) -> None:
        """Frees all sessions and the engine."""
        self._timelines.clear()
        self._engine = None


if __name__ == "__main__":
    sys.exit(driver.main(PyInfer))
