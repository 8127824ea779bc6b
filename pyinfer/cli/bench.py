"""Measure the speed of a model on this machine.

Prefill: -p tokens in one call from an empty cache. Decode: -n tokens one by one from an empty cache, without
sampling. Each is measured -r times after a warm-up; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np

from pyinfer import _core
from pyinfer.cli import opened, terminal
from pyinfer.cli import options as common
from pyinfer.errors import RequestError

WARM_UP_STEPS = 8


@dataclass(frozen=True)
class Result:
    """Speed with one number of threads; `min` and `max` are the slowest and the fastest repeat."""

    threads: int
    prompt: int
    generate: int
    repeats: int
    prefill_tokens_per_s: float
    prefill_min: float
    prefill_max: float
    decode_tokens_per_s: float
    decode_min: float
    decode_max: float


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    common.add_model(parser)
    parser.add_argument(
        "-p", "--prompt", type=common.count(), default=512, metavar="N", help="tokens of prefill (512)"
    )
    parser.add_argument(
        "-n", "--generate", type=common.count(), default=128, metavar="N", help="tokens of decode (128)"
    )
    parser.add_argument(
        "-t",
        "--threads",
        type=common.counts,
        metavar="N,N",
        help="threads, a result for each (default: physical cores)",
    )
    parser.add_argument("-r", "--repeats", type=common.count(), default=3, metavar="N", help="repeats (3)")
    common.add_engine(parser, threads=False)
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> int:
    """Measures and prints."""
    file = opened.model_file(options, options.huge_pages)
    longest, context = max(options.prompt, options.generate), file.spec["context"]
    if longest > context:
        raise RequestError(f"expected at most {context} tokens, the context of the model, found {longest}")
    counts = options.threads or [_core.default_threads()]
    opened.require_room(file, longest, max(counts), options)
    results = [_measured(file, threads, options) for threads in counts]
    report = {
        "model": options.model,
        "isa": _core.active_isa(),
        "activations": opened.activations(options),
        "kv": opened.kv(file, options),
        "huge_pages": options.huge_pages,
        "results": [asdict(result) for result in results],
    }
    if options.json:
        terminal.print_json(report)
    else:
        print(
            f"{options.model}, {report['isa']}, {report['activations']} activations; tokens/s, slowest to fastest"
        )
        print(_text(results))
    return 0


def _measured(file: _core.ModelFile, threads: int, options: argparse.Namespace) -> Result:
    engine = _core.Engine(file, threads, opened.activations(options))
    session = _core.Session(engine, max(options.prompt, options.generate), options.kv)
    tokens = _tokens(max(options.prompt, options.generate), file.spec["n_vocab"])
    _decode(session, tokens[: min(WARM_UP_STEPS, options.generate)])
    _prefill(session, tokens[: options.prompt])
    prefill = [options.prompt / _prefill(session, tokens[: options.prompt]) for _ in range(options.repeats)]
    decode = [options.generate / _decode(session, tokens[: options.generate]) for _ in range(options.repeats)]
    return Result(
        engine.threads, options.prompt, options.generate, options.repeats, *_spread(prefill), *_spread(decode)
    )


def _spread(speeds: list[float]) -> tuple[float, float, float]:
    return statistics.median(speeds), min(speeds), max(speeds)


def _tokens(count: int, n_vocab: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The same arbitrary tokens every time: what they say does not change how long they take."""
    return np.random.default_rng(0).integers(0, n_vocab, count, dtype=np.int32)


def _prefill(session: _core.Session, tokens: np.ndarray[tuple[int], np.dtype[np.int32]]) -> float:
    """Seconds for one prefill."""
    session.truncate(0)
    start = time.perf_counter()
    session.eval(tokens, "last")
    return time.perf_counter() - start


def _decode(session: _core.Session, tokens: np.ndarray[tuple[int], np.dtype[np.int32]]) -> float:
    """Seconds for one step a token."""
    session.truncate(0)
    ids = tokens.tolist()
    start = time.perf_counter()
    for token in ids:
        session.step(token)
    return time.perf_counter() - start


def _text(results: list[Result]) -> str:
    head = ("THREADS", "PROMPT", "PREFILL", "", "GENERATE", "DECODE", "")
    return terminal.table([head, *map(_row, results)])


def _row(result: Result) -> tuple[str, ...]:
    prefill = f"{result.prefill_tokens_per_s:.1f}", f"{result.prefill_min:.1f}-{result.prefill_max:.1f}"
    decode = f"{result.decode_tokens_per_s:.1f}", f"{result.decode_min:.1f}-{result.decode_max:.1f}"
    return str(result.threads), str(result.prompt), *prefill, str(result.generate), *decode
