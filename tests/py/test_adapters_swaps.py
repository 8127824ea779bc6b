"""Adapters swapped from another thread while a session works: no mixed state, no leak.

The slow forms swap 10,000 times.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lora_writer as lw
from pyinfer import Adapter, Model, _core, load
from pyinfer.convert.checkpoint import Spec
from pyinfer.shelf import MOST_STACKS
from pyinfer.stack import base_reader, stacked
from pyinfer.timeline import Overlay

TOKENS = [1, 403, 7, 99, 250, 31]
MANY = [
    pytest.param(400, id="short"),
    pytest.param(10_000, id="long", marks=pytest.mark.slow),
]
MOST_GROWTH = 16 << 20
"""Bytes by which the process may grow; a hundred forgotten stacks are more."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return Adapter.load(lw.plain(folder / "sql", 1)), Adapter.load(lw.plain(folder / "tone", 2))


@pytest.fixture
def own(stories_model_bin: Path) -> Iterator[Model]:
    with load(stories_model_bin, threads=2) as model:
        yield model


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live_overlays() -> int:
    gc.collect()
    return sum(isinstance(found, Overlay) for found in gc.get_objects())


def under_load(swap: Callable[[int], None], work: Callable[[], bytes], count: int) -> dict[bytes, int]:
    """Swaps `count` times in a thread, while this one works; how often each result came."""
    errors: list[BaseException] = []

    def swaps() -> None:
        try:
            for i in range(count):
                swap(i)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=swaps)
    thread.start()
    seen: dict[bytes, int] = {}
    while thread.is_alive():
        result = work()
        seen[result] = seen.get(result, 0) + 1
    thread.join()
    assert not errors
    return seen


@pytest.mark.parametrize("count", MANY)
def test_a_step_of_the_core_has_one_set(own: Model, adapters: tuple[Adapter, Adapter], count: int) -> None:
    file = _core.ModelFile(str(own.path))
    engine = _core.Engine(file, 2)
    spec, ids = Spec(**file.spec), np.array(TOKENS, np.int32)
    sets = [stacked(((one, 1.0),), spec, base_reader(file)).packed(engine) for one in adapters]
    session = _core.Session(engine, 64)

    def answer() -> bytes:
        session.truncate(0)
        return session.eval(ids, "all", 2).tobytes()  # three chunks in one call

    solo = []
    for one in sets:
        session.adapters = one
        solo.append(answer())
    assert solo[0] != solo[1]
    done = threading.Event()

    def swap(i: int) -> None:
        session.adapters = sets[i % 2]
        if i % 25 == 0:  # so that steps with either come between
            done.wait(0.001)

    seen = under_load(swap, answer, count)
    assert set(seen) == set(solo)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is told by /proc")
@pytest.mark.parametrize("count", MANY)
def test_an_answer_has_one_stack_and_none_stays(
    own: Model, adapters: tuple[Adapter, Adapter], count: int
) -> None:
    """Every swap packs a stack anew, as for an adapter that was never seen."""
    with own.session() as session:

        def answer() -> bytes:
            (first,) = session.generate(TOKENS, max_tokens=1, temperature=0.0, logprobs=5).logprobs or ()
            return np.array([value for _, value in first.top]).tobytes()

        solo = []
        for one in adapters:
            session.adapters = [one]
            solo.append(answer())

        def swap(i: int) -> None:
            session.adapters = [replace(adapters[i % 2])]

        seen = under_load(swap, answer, 200)
        before, overlays = resident(), live_overlays()
        for result, times in under_load(swap, answer, count).items():
            seen[result] = seen.get(result, 0) + times
        assert set(seen) == set(solo)
        assert live_overlays() <= max(overlays, MOST_STACKS + 4)
        assert resident() - before < MOST_GROWTH
        assert count * 30_000 > MOST_GROWTH or count < 1000  # a leak would show
