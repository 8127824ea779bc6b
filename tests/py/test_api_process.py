"""What a process may do to a model: threads, signals, forks, and its end."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

import gguf_writer
import pyinfer
from pyinfer import Model, Session, convert, load
from pyinfer.errors import RequestError

ONCE = "Once upon a time"
PACKAGE = str(Path(pyinfer.__file__).parent)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A random model whose full prefill takes seconds."""
    folder = tmp_path_factory.mktemp("slow")
    shape = gguf_writer.TinyLlama(
        n_layers=16, dim=256, n_heads=4, n_kv_heads=4, n_ff=1024, n_vocab=270, context=16384, kind="Q8_0"
    )
    gguf = gguf_writer.write_llama(folder / "slow.gguf", shape, tokenizer="bpe")
    convert.convert(gguf, folder / "slow.bin")
    return load(folder / "slow.bin", threads=1, context=16384)


@pytest.mark.parametrize(("n_threads", "max_tokens"), [(1, 24), (2, 6)])
def test_each_of_32_threads_gets_what_it_gets_alone(
    stories_model_bin: Path, n_threads: int, max_tokens: int
) -> None:
    calls: list[tuple[str, int]] = [
        (text, seed) for text in (ONCE, "Lily", "The dog", "") for seed in range(8)
    ]
    with load(stories_model_bin, threads=n_threads) as model:

        def answer(call: tuple[str, int]) -> tuple[tuple[int, ...], object]:
            made = model.generate(call[0], seed=call[1], temperature=1.5, max_tokens=max_tokens, logprobs=2)
            return made.tokens, made.logprobs

        alone = [answer(call) for call in calls]
        together: list[object] = [None] * len(calls)

        def work(i: int) -> None:
            together[i] = answer(calls[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert together == alone
        assert len(model._idle) <= 2


def test_threads_that_close_and_generate_at_once_get_answers_or_errors(
    stories_model_bin: Path, stories: Model
) -> None:
    expected = stories.generate(ONCE, temperature=0, max_tokens=40).tokens
    for _ in range(10):
        model = load(stories_model_bin, threads=1)
        odd: list[object] = []

        def work(model: Model = model, odd: list[object] = odd) -> None:
            try:
                answer = model.generate(ONCE, temperature=0, max_tokens=40)
                if answer.tokens != expected and answer.finish_reason != "cancelled":
                    odd.append(answer)
            except RequestError as error:
                if "is closed" not in str(error):
                    odd.append(error)
            except BaseException as error:
                odd.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        model.close()
        for thread in threads:
            thread.join(20)
        assert not odd
        assert not any(thread.is_alive() for thread in threads)
        assert not model._idle


def test_cancelling_from_another_thread_ends_a_long_prefill(slow: Model) -> None:
    stream = slow.stream([5] * 16000, max_tokens=1)
    pressed: list[float] = []

    def cancel() -> None:
        pressed.append(time.monotonic())
        stream.cancel()

    threading.Timer(0.2, cancel).start()
    (chunk,) = stream
    assert chunk.finish_reason == "cancelled"
    assert time.monotonic() - pressed[0] < 1.0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")
def test_ctrl_c_ends_a_long_prefill(slow: Model) -> None:
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    with slow.session() as session:
        timer = threading.Timer(0.2, press)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            session.generate([5] * 16000, max_tokens=1)
        assert time.monotonic() - pressed[0] < 1.0
        assert 0 <= session.position < 16000
        assert session.generate([5, 6], max_tokens=1, temperature=0).tokens == _one(slow)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")
def test_a_signal_handler_that_asks_for_a_step_meanwhile_is_refused(slow: Model) -> None:
    found: list[BaseException] = []

    def handle(*_: object) -> None:
        try:
            _one(slow)
        except RequestError as error:
            found.append(error)
            raise KeyboardInterrupt from None

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            slow.generate([5] * 16000, max_tokens=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert "found one that a poll came from" in str(found[0])


def _one(model: Model) -> tuple[int, ...]:
    return model.generate([5, 6], max_tokens=1, temperature=0).tokens


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")
def test_ctrl_c_ends_a_decode(stories: Model) -> None:
    def press(tokens: object, _: object, at: int = 12) -> None:
        if len(tokens) == at:  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGINT)

    with stories.session() as session:
        with pytest.raises(KeyboardInterrupt):
            session.generate(ONCE, processors=[press])
        again = session.generate(ONCE, temperature=0, max_tokens=9)
        assert again.tokens == stories.generate(ONCE, temperature=0, max_tokens=9).tokens


class Interrupt:
    """Ctrl-C at the nth point of the package where a signal may come: its calls, and what C gives back to it."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE):
            self._left -= 1
            if self._left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    def __enter__(self) -> Interrupt:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    @property
    def came(self) -> bool:
        return self._left <= 0


def _interrupted_everywhere(stories: Model, asked: Model | Session, work: Callable[[], object]) -> int:
    """At how many points; after each, what is asked must answer as ever."""
    expected = stories.generate(ONCE, seed=1, max_tokens=2).tokens
    for at in itertools.count(1):
        interrupt = Interrupt(at)
        with contextlib.suppress(KeyboardInterrupt), interrupt:
            work()
        assert asked.generate(ONCE, seed=1, max_tokens=2).tokens == expected, at
        if not interrupt.came:
            return at
    raise AssertionError


def _streams(session: Session) -> None:
    with session.stream(ONCE, seed=1, max_tokens=2) as stream:
        next(stream)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "work",
    [
        lambda session: session.generate(ONCE, seed=1, max_tokens=2),
        lambda session: session.append("and"),
        _streams,
    ],
    ids=["generate", "append", "stream"],
)
def test_ctrl_c_at_any_point_leaves_a_session_usable(
    stories: Model, work: Callable[[Session], object]
) -> None:
    with stories.session() as session:
        assert _interrupted_everywhere(stories, session, lambda: work(session)) > 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_point_leaves_a_model_usable(stories: Model) -> None:
    def work() -> object:
        return stories.generate(ONCE, seed=1, max_tokens=2)

    assert _interrupted_everywhere(stories, stories, work) > 100


def in_fork(work: Callable[[], bool]) -> int:
    """Exit status of a fork that runs `work`: 0 if it returned True; a fork that hangs is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_fork_gets_an_error(stories_model_bin: Path, n_threads: int) -> None:
    model = load(stories_model_bin, threads=n_threads)
    session = model.session()
    stream, other = session.stream(ONCE), model.stream(ONCE)
    next(stream)
    idle = model.session()
    tokens = model.generate(ONCE, temperature=0, max_tokens=5).tokens

    def refused(call: Callable[[], object]) -> bool:
        try:
            call()
        except RequestError as error:
            return f"cannot be used in its fork {os.getpid()}" in str(error)
        return False

    def work() -> bool:
        calls: list[Callable[[], object]] = [
            lambda: model.generate(ONCE),
            lambda: model.logits([5]),
            lambda: model.session(),
            lambda: session.generate(ONCE),
            lambda: idle.append([5]),
            lambda: next(stream),
            lambda: next(other),
        ]
        fine = all([refused(call) for call in calls]) and f"{n_threads} threads" in repr(model)
        stream.cancel()
        session.close()
        model.close()
        return fine

    assert in_fork(work) == 0
    stream.close()
    assert model.generate(ONCE, temperature=0, max_tokens=5).tokens == tokens
    model.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_may_have_a_model_of_its_own(stories_model_bin: Path) -> None:
    """Its threads may have got the numbers of the parent's, which do not exist there."""
    model = load(stories_model_bin, threads=3)
    tokens = model.generate(ONCE, temperature=0, max_tokens=5).tokens

    def work() -> bool:
        with load(stories_model_bin, threads=3) as own:
            before = own.generate(ONCE, temperature=0, max_tokens=5).tokens
            model.close()
            gc.collect()
            return before == own.generate(ONCE, temperature=0, max_tokens=5).tokens == tokens

    assert in_fork(work) == 0
    assert model.generate(ONCE, temperature=0, max_tokens=5).tokens == tokens
    model.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_others_generate_gets_an_error(stories_model_bin: Path) -> None:
    model = load(stories_model_bin, threads=2)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            model.generate(ONCE, max_tokens=5)

    def child() -> bool:
        try:
            model.generate(ONCE)
        except RequestError:
            model.close()
            return True
        return False

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert [in_fork(child) for _ in range(5)] == [0] * 5
    finally:
        done.set()
        for thread in threads:
            thread.join()
        model.close()


ENDS = {
    "return": "pass",
    "an open stream": "stream = model.stream('a'); next(stream)",
    "a cycle": "model.me = model; del model; gc.collect()",
    "a fork": "child = os.fork(); os.waitpid(child, 0) if child else None",
    "a fork that closes the model": "child = os.fork(); os.waitpid(child, 0) if child else model.close()",
    "a thread that generates": "threading.Thread(target=lambda: model.generate('a', max_tokens=40)).start()",
    "a daemon that opens and packs": "threading.Thread(target=packing, daemon=True).start(); busy(0.1)",
    "a daemon that generates": "threading.Thread(target=endless, daemon=True).start(); time.sleep(0.1)",
}
BEGIN = """
import gc, os, sys, threading, time, numpy as np, pyinfer
model = pyinfer.load(sys.argv[1], threads=2)
model.generate('a', max_tokens=3)
def endless():
    while True:
        model.generate('a')
def packing():
    values = np.ones((64, 64), np.float32)
    while True:
        file = pyinfer._core.ModelFile(sys.argv[1])
        pyinfer._core.Engine(file, 1).prefetch()
        file.verify(0)
        pyinfer._core.unpack('q8', pyinfer._core.pack('q8', values), 64, 64)
def busy(seconds):
    end = time.time() + seconds
    while time.time() < end:
        pass
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_well(stories_model_bin: Path, how: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + ENDS[how], str(stories_model_bin)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            _, said = process.communicate(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a fork that hangs, too
    assert (process.returncode, said) == (0, b"")
