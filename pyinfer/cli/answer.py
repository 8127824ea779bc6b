"""Writing an answer as it comes, and what there is to say about it afterwards; for `run` and its chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyinfer import _core
from pyinfer.cli import terminal

if TYPE_CHECKING:
    from pyinfer import Completion, Stream

__all__ = ["remarks", "stats", "write"]

_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def write(stream: Stream) -> Completion:
    """Writes every chunk to standard output when it comes. A terminal is spared what it would obey."""
    plain = _CONTROLS if sys.stdout.isatty() else {}
    last = "\n"
    try:
        for chunk in stream:
            sys.stdout.write(chunk.text.translate(plain))
            sys.stdout.flush()
            last = chunk.text[-1:] or last
    finally:
        if last != "\n":
            sys.stdout.write("\n")
            sys.stdout.flush()
    return stream.completion


def remarks(completion: Completion, context: int, max_tokens: int | None, with_stats: bool) -> Iterator[str]:
    """Lines for standard error: that the context was too small, and the statistics if asked for."""
    short = max_tokens is None or len(completion.tokens) < max_tokens
    if completion.finish_reason == "length" and short:
        yield f"pyinfer: the answer was cut off, the context of {context} tokens is full; see --ctx"
    if with_stats:
        yield stats(completion)


def stats(completion: Completion) -> str:
    """Where the time and the memory went."""
    times = completion.timings
    evaluated = times.prompt_tokens - times.cached_tokens
    rows = [
        ("prefill", f"{evaluated} tokens", f"{times.prefill_tokens_per_s:.1f} tokens/s"),
        ("decode", f"{times.answer_tokens} tokens", f"{times.decode_tokens_per_s:.1f} tokens/s"),
        ("first token", f"{times.time_to_first_token_s:.3f} s", ""),
    ]
    rows += [("peak memory", terminal.size(_core.peak_memory()), ""), ("seed", str(completion.seed), "")]
    return terminal.table(rows)
