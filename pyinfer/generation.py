"""From a prompt of tokens to chunks of text: prefill, pick, decode, until something ends it.

Must not know files, templates or how sessions are kept. `Stream` is what callers iterate over and may cancel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.completion import Chunk, Completion, FinishReason, Timings, TokenLogprob
from pyinfer.errors import Cancelled, RequestError
from pyinfer.sampling import SamplingParams
from pyinfer.stopping import StopMatcher
from pyinfer.timeline import BARE, Course, Lease, Timeline

if TYPE_CHECKING:
    from pyinfer.tokenizer import TextStream, Tokenizer

__all__ = ["Processor", "Request", "Stream", "chunks"]

Processor: TypeAlias = Callable[[Sequence[int], NDArray[np.float32]], None]
"""Called before every pick with all tokens so far and the logits, shape (n_vocab,), which it changes in place."""
Chunks: TypeAlias = Generator[Chunk, None, None]


@dataclass(frozen=True)
class Request:
    """One answer that is asked for, checked."""

    prompt: tuple[int, ...]
    """The whole timeline before the answer, at least one token."""
    n_vocab: int
    sampling: SamplingParams
    """With a seed."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer and are no part of it."""
    logprobs: int | None = None
    processors: tuple[Processor, ...] = ()
    opens: bool = False
    """Whether a text begins with the answer, as a turn of a chat does: a leading space is then the tokenizer's own."""
    overlay: Course = BARE
    """The adapters to answer with, which whoever takes the timeline puts on it."""


@dataclass
class _Answer:
    """What there is of an answer, and what of it was not handed out yet."""

    request: Request
    pieces: TextStream | None
    matcher: StopMatcher
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    handed_out: int = 0  # of the tokens

    def add(self, token: int, logprob: TokenLogprob | None) -> str:
        """Takes a token; returns the text that is certain now."""
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        return self.matcher.push(self.pieces.push(token)) if self.pieces else ""

    def rest(self) -> str:
        """The end of the text, when no token follows."""
        return self.matcher.push(self.pieces.flush() if self.pieces else "") + self.matcher.flush()

    def chunk(self, text: str) -> Chunk:
        """Hands out text and all tokens since the last chunk."""
        self.text.append(text)
        new, self.handed_out = slice(self.handed_out, None), len(self.tokens)
        return Chunk(text, tuple(self.tokens[new]), self._logprobs(new))

    def last_chunk(self, text: str, reason: FinishReason, timings: Timings) -> Chunk:
        """Hands out what is left, with the whole."""
        chunk = self.chunk(text)
        whole = Completion(
            text="".join(self.text),
            tokens=tuple(self.tokens),
            finish_reason=reason,
            seed=self.request.sampling.seed or 0,
            timings=timings,
            logprobs=self._logprobs(slice(None)),
        )
        return Chunk(chunk.text, chunk.tokens, chunk.logprobs, reason, whole)

    def _logprobs(self, part: slice) -> tuple[TokenLogprob, ...] | None:
        return None if self.request.logprobs is None else tuple(self.logprobs[part])


class _Clock:
    """Splits the time of one answer into prefill and decode; stands still while the caller holds a chunk."""

    def __init__(self) -> None:
        self._start = self._mark = time.perf_counter()
        self.held = 0  # tokens of the prompt that were not evaluated
        self.prefill = self.first_token = self.decode = 0.0

    def prefilled(self) -> None:
        self._mark = time.perf_counter()
        self.prefill = self._mark - self._start

    def picked(self) -> None:
        now = time.perf_counter()
        self.first_token = self.first_token or now - self._start
        self.decode += now - self._mark
        self._mark = now

    def resumed(self) -> None:
        self._mark = time.perf_counter()

    def timings(self, prompt: int, answer: int) -> Timings:
        return Timings(prompt, self.held, answer, self.prefill, self.decode, self.first_token)


def chunks(timeline: Timeline, tokenizer: Tokenizer, request: Request) -> Chunks:
    """Generates an answer on a timeline that the caller owns; the last chunk carries the completion."""
    clock = _Clock()
    before = () if request.opens else request.prompt
    answer = _Answer(request, tokenizer.answer_stream(before), StopMatcher(request.stop))
    text = ""
    reason: FinishReason = "length"
    try:
        for token, logprob in _steps(timeline, request, clock):
            if token in request.stop_ids:
                reason = "stop"
                break
            clock.picked()
            timeline.pick(token)
            text = answer.add(token, logprob)
            if answer.matcher.stopped:
                reason = "stop"
                break
            if text or answer.pieces is None:  # tokens are all there is
                yield answer.chunk(text)
                text = ""
                clock.resumed()
    except Cancelled:
        reason = "cancelled"
    text += answer.rest()
    if answer.matcher.stopped and reason == "length":  # in what was held back
        reason = "stop"
    yield answer.last_chunk(text, reason, clock.timings(len(request.prompt), len(answer.tokens)))


def _steps(timeline: Timeline, request: Request, clock: _Clock) -> Iterator[tuple[int, TokenLogprob | None]]:
    """Prefill, then one picked token after the other; each must be added to the timeline before the next."""
    sampler = _core.Sampler(request.n_vocab, request.sampling.for_core())
    for token in request.prompt[max(0, len(request.prompt) - request.sampling.penalty_window) :]:
        sampler.accept(token)
    clock.held, rows = timeline.replace(request.prompt, "last")
    logits = rows[-1]
    clock.prefilled()
    for i in range(_room(timeline, request)):
        if i > 0:
            logits = timeline.step()
        yield _pick(sampler, logits, timeline, request)


def _room(timeline: Timeline, request: Request) -> int:
    """How many tokens the answer may have: prompt and answer fit into the context together."""
    free = timeline.context - len(request.prompt)
    return free if request.max_tokens is None else min(free, request.max_tokens)


def _pick(
    sampler: _core.Sampler, logits: NDArray[np.float32], timeline: Timeline, request: Request
) -> tuple[int, TokenLogprob | None]:
    own = logits.copy() if request.logprobs is not None and request.processors else logits
    if request.processors:
        tokens = timeline.tokens
        for process in request.processors:
            made: object = process(tokens, logits)
            if made is not None and made is not logits:
                raise RequestError(
                    f"processors: expected logits that are changed in place, found a {type(made).__name__} returned"
                )
    token = sampler.pick(logits)
    sampler.accept(token)
    return token, None if request.logprobs is None else _logprob(own, token, request.logprobs)


def _logprob(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    """Logarithms of softmax in double precision; ties go to the lower id."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    least = np.partition(values, -n_top)[-n_top] if n_top else np.inf
    ids = np.flatnonzero(values >= least)
    likeliest = ids[np.lexsort((ids, -values[ids]))][:n_top]
    return TokenLogprob(token, float(values[token]), tuple((int(i), float(values[i])) for i in likeliest))


class Stream(Iterator[Chunk]):
    """An answer in the making: iterate over it; close it, or leave its `with` block, to stop it.

    Holds its session until it ends, is closed or is forgotten. `cancel` and `close` may be called from any thread.
    """

    _ended: Callable[[Timeline], None] | None = None  # until all else is there

    def __init__(
        self, lease: Lease, pieces: Chunks, ended: Callable[[Timeline], None] = lambda _: None
    ) -> None:
        """Takes the lease; `ended` is called with the timeline when that has been released."""
        self._lease = lease
        self._pieces = pieces
        self._turn = RLock()
        self._inside = False
        self._completion: Completion | None = None
        self._ended = ended

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        with self._turn:
            if self._inside:
                raise RequestError("a processor or signal handler asked for the chunk that is being made")
            if self._ended is None:
                raise StopIteration
            try:
                self._inside = True
                chunk = next(self._pieces)
            except BaseException:
                self._end()
                raise
            finally:
                self._inside = False
            if chunk.completion is not None:
                self._completion = chunk.completion
                self._end()
            return chunk

    @property
    def completion(self) -> Completion:
        """The whole answer, once the stream has come to its last chunk."""
        if self._completion is None:
            raise RequestError("the stream has not come to its end, so there is no completion")
        return self._completion

    def finish(self) -> Completion:
        """Takes all chunks that are left."""
        for _ in self:
            pass
        return self.completion

    def cancel(self) -> None:
        """Ends the step under way; the next chunk is the last one, with `finish_reason="cancelled"`."""
        self._lease.cancel()

    def close(self) -> None:
        """Stops, and frees the session for the next request. A processor that calls it cancels the stream."""
        if self._ended is None:
            return
        if not self._turn.acquire(blocking=False):
            self.cancel()
            self._turn.acquire()
        try:
            if self._inside:
                self.cancel()
            else:
                self._end()
        finally:
            self._turn.release()

    def _end(self) -> None:
        """May be called again: where an exception came between, it does what is left to do."""
        if self._ended is None:
            return
        try:
            self._pieces.close()
        finally:
            self._lease.release()
            ended, self._ended = self._ended, None
            ended(self._lease.timeline)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
