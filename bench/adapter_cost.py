"""Measures what adapters cost pyinfer beside the same work without them, interleaved in one process.

    python bench/adapter_cost.py MODEL... [--rank 16] [--threads 2] [--rounds 9] [--json]

For each MODEL (what `pyinfer.load` takes), with random adapters of this rank on all seven linears of every layer:

decode       steps of one session
prefill      512 tokens
stacked      decode with three adapters, and with one of three times the rank
batch        steps of 8 sessions with 4 different stacks, two sessions each

Every round runs each once, in alternating order; figures are medians of the ratios round by round. `cost` is the share
of time added, `bytes` the share of bytes added to those that a step reads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import make_adapter
from attach import shape_of
from pyinfer import Adapter, _core, hub, load
from pyinfer.convert.checkpoint import Spec
from pyinfer.stack import base_reader, stacked

PROMPT, STEPS, CONTEXT = 512, 16, 640
SESSIONS, SETS = 8, 4
Run = Callable[[], float]


class Bench:
    """One engine, and stacks of random adapters for it."""

    def __init__(self, path: Path, threads: int, rank: int, folder: Path) -> None:
        with load(path, context=64) as model:
            self._shape = shape_of(model)
        self._file = _core.ModelFile(str(path))
        self._engine = _core.Engine(self._file, threads, "int8")
        self._folder = folder
        self.ones = [self._stack([self._adapter(rank, seed)]) for seed in range(SETS)]
        self.three = self._stack([self._adapter(rank, seed) for seed in range(3)])
        self.wide = self._stack([self._adapter(3 * rank, 0)])
        skipped = () if self._file.spec["tied_head"] else ("embedding",)  # of which a step reads one row
        self.step_bytes = sum(t["bytes"] for t in self._file.tensors if t["role"] not in skipped)
        self.added_bytes = self.ones[0].bytes

    def _adapter(self, rank: int, seed: int) -> Adapter:
        path = self._folder / f"{rank}-{seed}.gguf"
        return Adapter.load(path if path.exists() else make_adapter.write(self._shape, rank, path, seed))

    def _stack(self, adapters: list[Adapter]) -> _core.AdapterSet:
        weighted = tuple((adapter, 1.0) for adapter in adapters)
        return stacked(weighted, Spec(**self._file.spec), base_reader(self._file)).packed(self._engine)

    def tokens(self, count: int) -> NDArray[np.int32]:
        """A text without meaning."""
        return np.arange(1, count + 1, dtype=np.int32) % np.int32(self._shape.n_vocab)

    def session(self, stack: _core.AdapterSet | None, depth: int = 64) -> _core.Session:
        """A session that holds some tokens."""
        session = _core.Session(self._engine, CONTEXT)
        session.adapters = stack
        session.eval(self.tokens(depth))
        return session

    def decode(self, stack: _core.AdapterSet | None) -> Run:
        """Seconds of some steps."""
        session = self.session(stack)

        def run() -> float:
            session.truncate(64)
            session.step(1)
            start = time.perf_counter()
            for token in range(STEPS):
                session.step(token)
            return time.perf_counter() - start

        return run

    def prefill(self, stack: _core.AdapterSet | None) -> Run:
        """Seconds of a prompt."""
        session = self.session(stack)
        tokens = self.tokens(PROMPT)

        def run() -> float:
            session.truncate(0)
            start = time.perf_counter()
            session.eval(tokens)
            return time.perf_counter() - start

        return run

    def batch(self, stacks: list[_core.AdapterSet | None]) -> Run:
        """Seconds of steps of several sessions, each with the next stack in turn."""
        sessions = [self.session(stacks[i % len(stacks)]) for i in range(SESSIONS)]
        token = np.array([5], np.int32)

        def run() -> float:
            for session in sessions:
                session.truncate(64)
            start = time.perf_counter()
            for _ in range(STEPS // 2):
                _core.forward(self._engine, [(session, token, "last") for session in sessions])
            return time.perf_counter() - start

        return run


@dataclass
class Pair:
    """Two ways to run the same work, and how long the second takes relative to the first."""

    name: str
    one: Run
    other: Run
    ratios: list[float]

    def round(self, turned: bool) -> None:
        """Runs both once."""
        order = (self.other, self.one) if turned else (self.one, self.other)
        first, second = order[0](), order[1]()
        self.ratios.append(first / second if turned else second / first)


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
        bench = Bench(path, options.threads, options.rank, Path(folder))
        bare = bench.decode(None)
        pairs = [
            Pair("decode", bare, bench.decode(bench.ones[0]), []),
            Pair("prefill", bench.prefill(None), bench.prefill(bench.ones[0]), []),
            Pair("stacked", bench.decode(bench.wide), bench.decode(bench.three), []),
            Pair("batch", bench.batch([None]), bench.batch(list(bench.ones)), []),
        ]
        for number in range(-1, options.rounds):
            for pair in pairs:
                pair.round(number % 2 == 1)
                if number < 0:  # the first is to warm up
                    pair.ratios.clear()
    ratio = {pair.name: statistics.median(pair.ratios) for pair in pairs}
    share = bench.added_bytes / bench.step_bytes
    return {
        "model": path.name,
        "bytes_share": share,
        "decode_cost": ratio["decode"] - 1,
        "decode_cost_over_bytes": (ratio["decode"] - 1) / share,
        "prefill_cost": ratio["prefill"] - 1,
        "three_over_one_of_summed_rank": ratio["stacked"],
        "batch_keeps": 1 / ratio["batch"],
    }


def main() -> None:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in options.models:
        found = measure(hub.resolve(name), options)
        if options.json:
            print(json.dumps(found))
            continue
        for key, value in found.items():
            print(f"{key:32} {value if isinstance(value, str) else format(value, '.3f')}")


if __name__ == "__main__":
    main()
