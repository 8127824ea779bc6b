"""The async twins: the same answers, and cancellation that reaches the step under way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyinfer import Model, Stream, aio
from pyinfer.errors import RequestError

ONCE = "Once upon a time"


class Gate:
    """A processor that holds the answer at its n-th token until it is opened."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, _: Sequence[int], __: NDArray[np.float32]) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.reached.set()
            assert self.opened.wait(10)


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, 10)


def open_soon(gate: Gate) -> None:
    threading.Timer(0.05, gate.opened.set).start()


def test_async_answers_equal_the_others(stories: Model, tiny_chat: Model) -> None:
    async def main() -> None:
        options: Any = {"seed": 3, "max_tokens": 20}
        answer = stories.generate(ONCE, **options)
        assert (await stories.agenerate(ONCE, **options)).tokens == answer.tokens
        assert "".join([chunk.text async for chunk in stories.astream(ONCE, **options)]) == answer.text
        chat = tiny_chat.chat("hi", **options)
        assert (await tiny_chat.achat("hi", **options)).tokens == chat.tokens
        assert "".join([chunk.text async for chunk in tiny_chat.achat_stream("hi", **options)]) == chat.text
        with stories.session() as session:
            assert (await session.agenerate(ONCE, **options)).tokens == answer.tokens

    asyncio.run(main())


def test_many_async_answers_run_side_by_side(stories: Model) -> None:
    async def main() -> None:
        whole = [stories.generate(ONCE, seed=seed, max_tokens=15).tokens for seed in range(20)]
        tasks = [stories.agenerate(ONCE, seed=seed, max_tokens=15) for seed in range(20)]
        assert [answer.tokens for answer in await asyncio.gather(*tasks)] == whole

    asyncio.run(main())


def test_the_loop_runs_while_the_model_works(stories: Model) -> None:
    async def main() -> None:
        gate = Gate(at=2)
        task = asyncio.create_task(stories.agenerate(ONCE, max_tokens=5, processors=[gate]))
        await reached(gate)
        assert not task.done()
        gate.opened.set()
        assert len((await task).tokens) == 5

    asyncio.run(main())


def test_cancelling_the_task_stops_the_answer(stories: Model) -> None:
    async def main() -> None:
        gate = Gate(at=3)
        with stories.session() as session:
            task = asyncio.create_task(session.agenerate(ONCE, processors=[gate]))
            await reached(gate)
            task.cancel()
            open_soon(gate)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert gate.calls == 3, "the step after the cancellation did not run"
            assert session.generate(ONCE, max_tokens=2).finish_reason == "length"

    asyncio.run(main())


def test_cancelling_the_task_while_it_opens_frees_the_session(stories: Model) -> None:
    async def main() -> None:
        begun, opens = threading.Event(), threading.Event()
        with stories.session() as session:

            def slow() -> Stream:
                begun.set()
                opens.wait(10)
                return session.stream(ONCE, max_tokens=3)

            task = asyncio.create_task(aio.completion(slow))
            await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
            opens.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            session.append([5])

    asyncio.run(main())


def test_cancelling_what_waits_for_a_thread_gives_it_up(stories: Model) -> None:
    async def main() -> None:
        busy, opened = threading.Event(), threading.Event()

        def open_stream() -> Stream:
            opened.set()
            return stories.stream(ONCE, max_tokens=3)

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as only:
            loop.set_default_executor(only)
            waiting = loop.run_in_executor(None, busy.wait, 10)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(aio.completion(open_stream), 0.05)
            assert not waiting.done()
            busy.set()
            await waiting
            assert len((await stories.agenerate(ONCE, max_tokens=2)).tokens) == 2
        assert not opened.is_set()

    asyncio.run(main())


def test_a_second_cancellation_does_not_leave_the_thread_behind(stories: Model) -> None:
    async def main() -> None:
        gate = Gate(at=3)
        with stories.session() as session:
            task = asyncio.create_task(session.agenerate(ONCE, processors=[gate]))
            await reached(gate)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.01)
                assert not task.done()
            gate.opened.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            session.append([5])

    asyncio.run(main())


def test_cancelling_a_task_that_reads_a_stream_stops_it(stories: Model) -> None:
    async def read(gate: Gate) -> None:
        async for _ in stories.astream(ONCE, processors=[gate]):
            pass

    async def main() -> None:
        gate = Gate(at=4)
        task = asyncio.create_task(read(gate))
        await reached(gate)
        task.cancel()
        open_soon(gate)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.calls == 4

    asyncio.run(main())


def test_closing_the_generator_frees_the_session(stories: Model) -> None:
    async def main() -> None:
        with stories.session() as session:
            stream = session.astream(ONCE)
            await anext(stream)
            await stream.aclose()
            session.append([5])
            async for _ in session.astream(ONCE):
                break
            await asyncio.sleep(0)
            await _until(lambda: not session._timeline.leased)
            session.append([5])

    asyncio.run(main())


async def _until(condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_a_timeout_stops_the_answer(stories: Model) -> None:
    async def main() -> None:
        gate = Gate(at=2)
        with stories.session() as session:
            open_later = threading.Timer(0.2, gate.opened.set)
            open_later.start()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(session.agenerate(ONCE, processors=[gate]), 0.05)
            assert gate.calls == 2
            session.append([5])

    asyncio.run(main())


def test_errors_come_through(stories: Model) -> None:
    async def main() -> None:
        with pytest.raises(RequestError, match=r"^max_tokens"):
            await stories.agenerate(ONCE, max_tokens=-1)
        with pytest.raises(RequestError, match=r"^max_tokens"):
            async for _ in stories.astream(ONCE, max_tokens=-1):
                pass

    asyncio.run(main())


def test_cancelling_one_answer_does_not_touch_another(stories: Model) -> None:
    async def main() -> None:
        expected = stories.generate(ONCE, seed=1, max_tokens=40).tokens
        others = [asyncio.create_task(stories.agenerate(ONCE, seed=1, max_tokens=40)) for _ in range(4)]
        for delay in range(30):
            task = asyncio.create_task(stories.agenerate(ONCE, max_tokens=40))
            await asyncio.sleep(delay / 10000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert {answer.tokens for answer in await asyncio.gather(*others)} == {expected}

    asyncio.run(main())
