"""Measure a model on a text: its perplexity, by the definition of llama.cpp's llama-perplexity.

The text, without a newline at its end, is tokenised as a whole and cut into chunks of --ctx tokens; what is
left over is not used. Each chunk starts from an empty cache, its first token replaced by BOS where the model
begins with one, and the second half of its tokens is scored.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.cli import opened, terminal
from pyinfer.cli import options as common
from pyinfer.convert.metadata import Metadata
from pyinfer.errors import ModelFileError, RequestError
from pyinfer.tokenizer import Tokenizer

ROWS = 64
"""Rows of logits held at a time."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of the scored tokens."""

    perplexity: float
    uncertainty: float
    """Standard error of the perplexity, from the spread of the log-likelihoods."""
    tokens: int
    """Tokens scored: ctx/2 - 1 a chunk."""
    chunks: int
    ctx: int
    text_tokens: int
    """Tokens of the whole text."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    common.add_model(parser)
    parser.add_argument("--perplexity", metavar="FILE", type=Path, required=True, help="the text, UTF-8")
    parser.add_argument(
        "--ctx", type=common.count(4), metavar="N", help="tokens a chunk (512, or the model's context)"
    )
    parser.add_argument("--chunks", type=common.count(), metavar="N", help="stop after this many chunks")
    common.add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> int:
    """Evaluates and prints."""
    with open(options.perplexity, "rb") as stream:
        text = opened.text(stream, str(options.perplexity))
    file = opened.model_file(options, options.huge_pages)
    tokenizer, bos = Tokenizer.open(file), _opening_token(file)
    ctx = options.ctx or min(512, file.spec["context"])
    tokens = np.asarray(tokenizer.encode(text.removesuffix("\n"), add_special=True), np.int32)
    chunks = _chunks(tokens, ctx, file.spec["context"], options)
    opened.require_room(file, ctx, options.threads or 0, options)
    engine = _core.Engine(file, options.threads or 0, opened.activations(options))
    session = _core.Session(engine, ctx, options.kv)
    with terminal.progress("tokens") as progress:
        scores = []
        for i, chunk in enumerate(chunks):
            scores += list(_score(session, chunk, bos))
            progress((i + 1) * ctx, len(chunks) * ctx, "evaluating")
    result = summary(np.concatenate(scores), len(chunks), ctx, len(tokens))
    if options.json:
        terminal.print_json({"model": options.model, "file": str(options.perplexity), **asdict(result)})
    else:
        print(f"perplexity {result.perplexity:.4f} +/- {result.uncertainty:.4f}", end=", ")
        print(f"{result.tokens} of {result.text_tokens} tokens scored, {result.chunks} chunks of {ctx}")
    return 0


def _opening_token(file: _core.ModelFile) -> int | None:
    metadata = Metadata.from_json(file.metadata())
    return metadata.bos if metadata.add_bos else None


def _chunks(
    tokens: NDArray[np.int32], ctx: int, context: int, options: argparse.Namespace
) -> list[NDArray[np.int32]]:
    if ctx > context:
        raise RequestError(f"ctx: expected at most {context}, the context of the model, found {ctx}")
    if len(tokens) < ctx:
        wanted = f"expected a text of at least {ctx} tokens, one chunk"
        raise RequestError(f"{options.perplexity}: {wanted}, found {len(tokens)}")
    whole = [tokens[start : start + ctx] for start in range(0, len(tokens) - ctx + 1, ctx)]
    return whole[: options.chunks]


def _score(
    session: _core.Session, chunk: NDArray[np.int32], bos: int | None
) -> Iterator[NDArray[np.float64]]:
    """Log-likelihoods of the tokens of one chunk from ctx/2 + 1 on, a few rows at a time."""
    tokens = chunk.copy()
    if bos is not None:
        tokens[0] = bos
    first, last = len(tokens) // 2, len(tokens) - 1
    session.truncate(0)
    session.eval(tokens[:first], "none")
    for start in range(first, last, ROWS):
        stop = min(start + ROWS, last)
        yield log_likelihoods(session.eval(tokens[start:stop], "all"), tokens[start + 1 : stop + 1])


def log_likelihoods(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities of `targets` (n,) under `logits` (n, n_vocab)."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    picked: NDArray[np.float64] = values[np.arange(len(targets)), targets]
    totals: NDArray[np.float64] = np.log(np.exp(values).sum(axis=1))
    return picked - totals


def summary(scores: NDArray[np.float64], chunks: int, ctx: int, text_tokens: int) -> Perplexity:
    """Perplexity and its standard error from the log-likelihoods of all scored tokens."""
    if not np.isfinite(scores).all():
        raise ModelFileError("expected finite logits, found others: the model's weights are not sound")
    perplexity = math.exp(-scores.mean())
    error = math.sqrt(scores.var() / max(1, len(scores) - 1))
    return Perplexity(perplexity, perplexity * error, len(scores), chunks, ctx, text_tokens)
