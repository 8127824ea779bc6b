"""One session of the core and the tokens it holds: prefix reuse, cancellation, one user at a time.

Must not know text, sampling, models or what an adapter is. The tokens are those evaluated (`len` equals the core's
position) and at most one more at the end, which was picked but not evaluated yet.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.errors import Cancelled, ContextFullError, RequestError

if TYPE_CHECKING:
    from pyinfer._core import Kv

__all__ = ["BARE", "Course", "Lease", "Overlay", "Timeline", "require_process"]

Rows = Literal["none", "last", "all"]
T = TypeVar("T")
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class Overlay:
    """What lies over the model's weights in a step; its number tells cached tokens of one from those of another."""

    core: _core.AdapterSet | None
    number: int = field(default_factory=lambda: next(_numbers))

    def spans(self, tokens: Sequence[int]) -> tuple[tuple[int, Overlay], ...]:
        """The same for all tokens."""
        return ((0, self),)


BARE = Overlay(None)
"""The model as it is."""


class Course(Protocol):
    """Overlays that follow one another within a prompt; an overlay alone is the simplest."""

    def spans(self, tokens: Sequence[int]) -> Sequence[tuple[int, Overlay]]:
        """(first position, overlay) in ascending order, the first at 0; the last one is also for what follows."""


class Lease:
    """A timeline in the hands of one operation, until it is released or forgotten.

    An exception that comes between two lines, as Ctrl-C may, can leave no timeline taken for ever: what nobody holds a
    lease of is free.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline

    def cancel(self) -> None:
        """Ends the operation with `Cancelled`."""
        self.timeline.cancel(self)

    def release(self) -> None:
        """Gives the timeline back; the second time nothing happens."""
        self.timeline.release(self)

    @contextlib.contextmanager
    def handed_on(self) -> Iterator[Lease]:
        """For a block that gives the lease to a stream: an exception in it releases the lease."""
        try:
            yield self
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Timeline:
    """Tokens in the order they came, with their KV cache. Every method may be called from any thread."""

    def __init__(self, engine: _core.Engine, context: int, kv: Kv = "auto") -> None:
        self._core: _core.Session | None = _core.Session(engine, context, kv)
        self.context = context
        self._process = os.getpid()
        self._evaluated: list[int] = []
        self._under: list[int] = []  # for each of them, the number of the overlay that it was evaluated with
        self._overlay = self._ahead = BARE  # what the core has, and what the next step takes
        self._wanted: Course = BARE
        self._course: Course = BARE  # the one that _ahead comes from
        self._picked: list[int] = []  # (0 or 1)
        # Guards the three below; a garbage collection may come in at any point.
        self._switch = threading.RLock()
        self._lease: Callable[[], Lease | None] = _nobody
        self._cancelled = False
        self._closing = False

    # Ownership: one user at a time

    def lease(self) -> Lease:
        """Takes the timeline for one operation; RequestError when it is taken, closed or of another process."""
        require_process(self._process)
        with self._switch:
            if self.leased:
                raise RequestError(
                    "the session is in use: finish or close its stream first, or take another session"
                )
            if self._core is None or self._closing:
                raise RequestError("the session is closed")
            self._cancelled = False
            # Where an exception came between a step and the notes of it.
            del self._under[len(self._evaluated) :]
            if self._core.position > len(self._evaluated):
                self._core.truncate(len(self._evaluated))
            lease = Lease(self)
            self._lease = weakref.ref(lease)
        return lease

    @property
    def leased(self) -> bool:
        """Whether an operation has it."""
        return self._lease() is not None

    def release(self, lease: Lease) -> None:
        """Ends an operation, unless another one has begun; a close that came meanwhile happens now."""
        if os.getpid() != self._process:  # in a fork the lock may be held by a thread that does not exist
            return
        with self._switch:
            if self._lease() in (None, lease):
                self._lease = _nobody
                if self._closing:
                    self._free()

    def cancel(self, lease: Lease | None = None) -> None:
        """Ends the operation under way with `Cancelled`; nothing happens when there is none, or another one."""
        if os.getpid() != self._process:
            return
        with self._switch:
            mine = self.leased and lease in (None, self._lease())
            if mine and not self._cancelled and self._core is not None:
                self._cancelled = True
                self._core.cancel()

    def close(self) -> None:
        """Frees the cache, at once or when the operation under way has ended, which is cancelled."""
        if os.getpid() != self._process:
            return
        with self._switch:
            self._closing = True
            if self.leased:
                self.cancel()
            else:
                self._free()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def _free(self) -> None:
        if self._core is not None:
            self._core.close()
        self._core = None
        self._evaluated, self._under, self._picked = [], [], []
        self._overlay = self._ahead = self._wanted = self._course = BARE

    # Tokens: for the owner

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens, shape (position,)."""
        return (*self._evaluated, *self._picked)

    def shared(self, tokens: Sequence[int]) -> int:
        """How many tokens are held of those that a prompt begins with."""
        return _common(self._evaluated, tokens)

    def use(self, course: Course) -> None:
        """What every step from the next one on runs with, from any thread. Tokens that are held stay as they are."""
        self._wanted = course

    def rest(self) -> None:
        """Lets go of adapters, which tokens that are held keep the numbers of."""
        if os.getpid() != self._process:
            return
        with self._switch:
            if self._core is not None and self._overlay is not BARE:
                self._core.adapters = None
            self._overlay = self._ahead = self._wanted = self._course = BARE

    def truncate(self, position: int) -> None:
        """Forgets all tokens from `position` on."""
        self._picked = self._picked[: max(0, position - len(self._evaluated))]
        if position < len(self._evaluated):
            del self._evaluated[position:]
            del self._under[position:]
            self._open().truncate(position)

    def replace(self, tokens: Sequence[int], rows: Rows) -> tuple[int, NDArray[np.float32]]:
        """Makes these the tokens; evaluates what is not held or was under another overlay, and at least the last one.

        Returns how many were held, and logits of shape (0 | 1 | n evaluated, n_vocab) that nobody else writes to. After
        an exception the timeline holds a beginning of `tokens`.
        """
        if len(tokens) > self.context:
            raise ContextFullError(f"the prompt has {len(tokens)} tokens, the context holds {self.context}")
        spans = self._followed(tokens)
        numbers = [
            overlay.number for begin, end, overlay in _pieces(spans, len(tokens)) for _ in range(begin, end)
        ]
        held = min(_common(self._under, numbers), _common(self._evaluated, tokens), len(tokens) - 1)
        self.truncate(held)
        self._picked = []
        return held, self._evaluate(tokens[held:], rows, spans)

    def append(self, tokens: Sequence[int]) -> None:
        """Adds tokens and evaluates them; after an exception the timeline holds what it held before."""
        before = self.tokens
        if len(before) + len(tokens) > self.context:
            message = f"the session holds {len(before)} tokens and the context {self.context}"
            raise ContextFullError(f"{len(tokens)} more tokens do not fit: {message}")
        new, start = (*self._picked, *tokens), len(self._evaluated)
        self._picked = []
        try:
            self._evaluate(new, "none", self._followed((*self._evaluated, *new)))
        except BaseException:
            self.truncate(start)
            self._picked = list(before[start:])
            raise

    def pick(self, token: int) -> None:
        """Adds a token that is not evaluated until `step`, or until more tokens come."""
        self._picked = [token]

    def step(self) -> NDArray[np.float32]:
        """Evaluates the picked token; logits of shape (n_vocab,), valid until the next call."""
        token = self._picked[0]
        if self._wanted is not self._course:
            self._followed(self.tokens)
        logits = self._run(lambda core: core.step(token), self._ahead)
        self._picked = []
        self._under.append(self._overlay.number)
        self._evaluated.append(token)
        return logits

    def _followed(self, tokens: Sequence[int]) -> Sequence[tuple[int, Overlay]]:
        """The overlays of these tokens by the course that is wanted now; steps go on with the last one."""
        course = self._wanted
        spans = course.spans(tokens)
        self._course, self._ahead = course, spans[-1][1]
        return spans

    def _evaluate(
        self, tokens: Sequence[int], rows: Rows, spans: Sequence[tuple[int, Overlay]]
    ) -> NDArray[np.float32]:
        """Evaluates tokens that follow those held, each with the overlay of its position."""
        start = len(self._evaluated)
        end = start + len(tokens)
        found = []
        for begin, stop, overlay in _pieces(spans, end):
            if stop > start or stop == end:
                part = tokens[max(begin, start) - start : stop - start]
                wanted: Rows = "none" if rows == "last" and stop < end else rows
                found.append(self._evaluate_under(part, wanted, overlay))
        found = [logits for logits in found if len(logits)] or found
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _evaluate_under(self, tokens: Sequence[int], rows: Rows, overlay: Overlay) -> NDArray[np.float32]:
        ids = np.asarray(tokens, dtype=np.int32)
        start = len(self._evaluated)
        try:
            return self._run(lambda core: core.eval(ids, rows), overlay)
        finally:
            done = self._open().position - start
            self._under += [self._overlay.number] * done
            self._evaluated += [int(token) for token in tokens[:done]]

    def _run(self, work: Callable[[_core.Session], T], overlay: Overlay) -> T:
        """Runs one step of the core. A cancel that came too late for the last operation does not end this one."""
        core = self._open()
        start = core.position
        if overlay is not self._overlay:
            core.adapters = overlay.core
            self._overlay = overlay
        while True:
            try:
                return work(core)
            except Cancelled:
                if self._cancelled:
                    raise
                core.truncate(start)

    def _open(self) -> _core.Session:
        require_process(self._process)
        if self._core is None:
            raise RequestError("the session is closed")
        return self._core


def _nobody() -> None:
    """The lease of a timeline that nobody has."""


def require_process(process: int) -> None:
    """Raises RequestError in a fork of the process that loaded the model: the fork has none of its threads."""
    if os.getpid() != process:
        raise RequestError(
            f"the model was loaded by process {process} and cannot be used in its fork {os.getpid()}; load it there"
        )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return i
    return min(len(a), len(b))


def _pieces(spans: Sequence[tuple[int, Overlay]], length: int) -> Iterator[tuple[int, int, Overlay]]:
    """(begin, end, overlay) of each span of a text of this many tokens."""
    ends = [*(begin for begin, _ in spans[1:]), length]
    for (begin, overlay), end in zip(spans, ends, strict=True):
        yield begin, end, overlay
