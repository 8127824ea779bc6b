"""A voice assistant without the voice: a line of text in, a short answer out, in a fixed amount of memory.

    python examples/assistant.py smollm2 --budget 256

Put speech recognition before standard input and a synthesiser behind standard output; the answer comes in pieces, as
they are made, and ends with a newline. Weights, keys and values and the workspace stay within the budget: the context
is made as large as it allows, and the oldest turns are forgotten when it is full.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pyinfer
from pyinfer.errors import ContextFullError, MemoryLimitError, PyinferError

MIB = 1 << 20
PAGE = 64
"""Tokens that a context grows by."""


def context_within(model: pyinfer.Model, budget: int) -> int:
    """The largest context whose memory, with all else that the model takes, is at most `budget` bytes."""
    needs = model.memory(PAGE)
    page = needs["kv_cache"]
    pages = (budget - needs["weights"] - needs["workspace"]) // page
    if pages < 1:
        least = needs["weights"] + needs["workspace"] + page
        raise MemoryLimitError(
            f"expected a budget of at least {-(-least // MIB)} MiB for {model.name}, found {budget // MIB}"
        )
    return min(pages * PAGE, model.spec["context"])


def forget_to_fit(model: pyinfer.Model, session: pyinfer.Session, said: str, answer: int) -> None:
    """Drops the oldest turns until the next one and its answer fit into the session."""
    turns = list(session.messages)
    new = {"role": "user", "content": said}
    while len(model.chat_tokens([*turns, new])) + answer > session.context:
        if not turns:
            raise ContextFullError(
                f"expected a turn that fits into {session.context} tokens with its answer of {answer}, "
                "found a longer one"
            )
        del turns[:2]
    if len(turns) < len(session.messages):
        session.messages = tuple(turns)


def converse(model: pyinfer.Model, session: pyinfer.Session, most: int, seed: int | None) -> None:
    """Answers line after line until the input ends."""
    for line in sys.stdin:
        said = line.strip()
        if not said:
            continue
        try:
            forget_to_fit(model, session, said, most)
        except ContextFullError as error:
            print(f"assistant: {error}", file=sys.stderr)
            continue
        for chunk in session.chat_stream(said, max_tokens=most, seed=seed):
            print(chunk.text, end="", flush=True)
        print(flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, opens the model within the budget and converses."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name such as smollm2, or a path")
    parser.add_argument("--budget", type=int, default=256, metavar="MIB", help="memory in MiB (256)")
    parser.add_argument("--max-tokens", type=int, default=60, metavar="N", help="tokens an answer (60)")
    parser.add_argument("--seed", type=int, help="for the same answers every time")
    options = parser.parse_args(arguments)
    with pyinfer.load(options.model, context=PAGE, kv="q8") as model:
        context = context_within(model, options.budget * MIB)
        print(f"assistant: {model.name}, {context} tokens of context", file=sys.stderr)
        with model.session(context) as session:
            converse(model, session, options.max_tokens, options.seed)


if __name__ == "__main__":
    try:
        main()
    except PyinferError as error:
        sys.exit(f"assistant: {error}")
