"""Runs the cases on one engine in a process of its own, on request, and times them alike for every engine.

Requests and answers are JSON objects, one a line, on standard input and output. Standard library only.

    {"op": "open", "model": PATH, "settings": {}}              -> {"about": {}, "seconds": 0.1}
    {"op": "run", "case": "decode-128", "threads": 2, "settings": {}}  -> {"seconds": 0.6, "tokens": 128}
    {"op": "logits", "n": 64, "threads": 2, "settings": {}}    -> {"logits": [...]}: of the last of n tokens
    {"op": "forget"}                                           -> {}: frees all contexts

An engine that cannot do something answers {"skip": REASON}. `start` on the command line measures one start instead:

    PROGRAM start --model PATH --threads 2 --spawned SECONDS [--settings JSON]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import cases

START_PROMPT = 8
START_WORK = 512  # tokens of the prompt that follows, so that the peak of memory is the peak of work
Settings = dict[str, Any]


class Unsupported(Exception):
    """The engine has no such ability; the reason is printed beside the result."""


class Timeline(Protocol):
    """One or several sequences of tokens, all of one length."""

    position: int

    def rewind(self, position: int) -> None:
        """Forgets all tokens from `position` on."""

    def fill(self, tokens: list[int]) -> None:
        """Appends these tokens to every sequence; logits of the last."""

    def step(self, tokens: list[int]) -> None:
        """Appends one token to each sequence; logits of each."""

    def logits(self) -> list[float]:
        """Logits of the last token of the only sequence."""


class Engine(ABC):
    """An engine with one model in it."""

    @abstractmethod
    def open(self, model: str, settings: Settings) -> None:
        """Loads the model."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Name, version, flags: whatever tells this build from another."""

    @abstractmethod
    def run(self, case: cases.Case, threads: int, settings: Settings) -> float:
        """Runs a case once; the seconds of its own tokens."""

    @abstractmethod
    def logits(self, n: int, threads: int, settings: Settings) -> list[float]:
        """Logits of the last of n tokens."""

    @abstractmethod
    def forget(self) -> None:
        """Frees all timelines."""


class TimelineEngine(Engine):
    """An engine that is driven token by token."""

    @abstractmethod
    def n_vocab(self) -> int:
        """Tokens of the model's vocabulary."""

    @abstractmethod
    def timeline(self, capacity: int, sequences: int, threads: int, settings: Settings) -> Timeline:
        """A timeline of this size; the same one if asked again."""

    def run(self, case: cases.Case, threads: int, settings: Settings) -> float:
        """Runs a case once; the seconds of its own tokens."""
        tokens = cases.random_tokens(case.capacity, self.n_vocab())
        timeline = self.timeline(case.capacity, case.sequences, threads, settings)
        go_to(timeline, tokens[: case.depth])
        new = tokens[case.depth :]
        steps = [[token] * case.sequences for token in new]
        gc.collect()
        start = time.perf_counter()
        if case.kind == "prefill":
            timeline.fill(new)
        else:
            for step in steps:
                timeline.step(step)
        return time.perf_counter() - start

    def logits(self, n: int, threads: int, settings: Settings) -> list[float]:
        """Logits of the last of n tokens."""
        timeline = self.timeline(n, 1, threads, settings)
        timeline.rewind(0)
        timeline.fill(cases.random_tokens(n, self.n_vocab()))
        return timeline.logits()


def go_to(timeline: Timeline, tokens: list[int]) -> None:
    """Leaves exactly these tokens in a timeline, which holds the beginning of the same list or more of it."""
    if tokens and timeline.position >= len(tokens):
        timeline.rewind(len(tokens))
        return
    timeline.rewind(0)
    if tokens:
        timeline.fill(tokens)


def memory() -> dict[str, int]:
    """Resident bytes of this process, now and at the peak; empty where the system does not tell."""
    names = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "file"}
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return {}
    return {names[f[0][:-1]]: int(f[1]) * 1024 for f in lines if f[0][:-1] in names}


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    op = request["op"]
    if op == "open":
        start = time.perf_counter()
        engine.open(request["model"], request["settings"])
        return {"seconds": time.perf_counter() - start, "about": engine.about()}
    if op == "run":
        case = cases.parse(request["case"])
        seconds = engine.run(case, request["threads"], request["settings"])
        return {"seconds": seconds, "tokens": case.tokens * case.sequences}
    if op == "logits":
        return {"logits": engine.logits(request["n"], request["threads"], request["settings"])}
    if op == "forget":
        engine.forget()
        return {}
    raise ValueError(f"expected open, run, logits or forget, found {op}")


def serve(engine: Engine) -> None:
    """Answers requests until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever an engine prints must not mix with the answers
    for line in sys.stdin:
        try:
            reply = answer(engine, json.loads(line))
        except Unsupported as error:
            reply = {"skip": str(error)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def start(make: Callable[[], TimelineEngine], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of the process to each stage, and the memory that some work needs at most."""
    running = time.monotonic()
    settings = json.loads(args.settings)
    engine = make()
    imported = time.monotonic()
    engine.open(args.model, settings)
    opened = time.monotonic()
    timeline = engine.timeline(START_PROMPT + START_WORK, 1, args.threads, settings)
    timeline.fill(cases.random_tokens(START_PROMPT, engine.n_vocab()))
    first = time.monotonic()
    timeline.fill(cases.random_tokens(START_WORK, engine.n_vocab()))
    return {
        "interpreter": running - args.spawned,
        "import": imported - running,
        "open": opened - imported,
        "first_token": first - opened,
        "total": first - args.spawned,
        "memory": memory(),
    }


def main(make: Callable[[], TimelineEngine]) -> int:
    """Serves requests, or measures one start; `make` imports and returns the engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("serve", "start"))
    parser.add_argument("--model", default="")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--spawned", type=float, default=0.0)
    args = parser.parse_args()
    if args.mode == "serve":
        serve(make())
    else:
        print(json.dumps(start(make, args)))
    return 0
