"""Async twins: the same streams, stepped in worker threads. Must not know what a stream does between two chunks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar, cast

from pyinfer.completion import Chunk, Completion
from pyinfer.generation import Stream

__all__ = ["chunks", "completion"]

T = TypeVar("T")


async def chunks(open_stream: Callable[[], Stream]) -> AsyncGenerator[Chunk, None]:
    """The chunks of a stream; leaving the generator, or cancelling its task, cancels the step under way."""
    stream = await _opened(open_stream)
    try:
        while (chunk := await _stepped(stream, lambda: next(stream, None))) is not None:
            yield chunk
    finally:
        stream.close()


async def completion(open_stream: Callable[[], Stream]) -> Completion:
    """The whole answer; cancelling the task cancels the step under way."""
    stream = await _opened(open_stream)
    try:
        return await _stepped(stream, stream.finish)
    finally:
        stream.close()


class _Job(Generic[T]):
    """Work for a thread, which can be given up until one has begun it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._mine = threading.Lock()  # of the thread that does it, or of whoever gave it up

    def __call__(self) -> T | None:
        return self._work() if self._mine.acquire(blocking=False) else None

    def given_up(self) -> bool:
        """Whether it will never begin, from now on."""
        return self._mine.acquire(blocking=False)


async def _opened(open_stream: Callable[[], Stream]) -> Stream:
    """Opens a stream in a thread. When the task is cancelled, waits and closes it: its session is free then."""
    job = _Job(open_stream)
    future = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        return cast(Stream, await asyncio.shield(future))
    except asyncio.CancelledError:
        if not job.given_up():
            await _settled(future)
            if not future.cancelled() and future.exception() is None:
                cast(Stream, future.result()).close()
        raise


async def _stepped(stream: Stream, work: Callable[[], T]) -> T:
    """Runs `work` in a thread. When the task is cancelled, cancels the stream and waits until the thread is done."""
    job = _Job(work)
    future = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        return cast(T, await asyncio.shield(future))
    except asyncio.CancelledError:
        if not job.given_up():
            stream.cancel()
            await _settled(future)
        raise


async def _settled(future: asyncio.Future[T]) -> None:
    """Waits for the thread; further cancellations are dropped, for the first one is under way."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
