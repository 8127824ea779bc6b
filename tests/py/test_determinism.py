"""Same tokens, same bits: logits depend neither on threads, chunks, batch neighbours and cache nor on the processor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from probing import CHUNKS, ISAS, THREADS, probe_logits
from pyinfer import _core, convert
from tiny_models import Shape, named, tokens

Tiny = Callable[[Shape], tuple[Path, Path]]
Logits = NDArray[np.float32]
TESTS = Path(__file__).parents[1]
STORIES = TESTS / "data" / "stories260K.bin"
LENGTH = 200  # tokens: four pages of the cache
SHAPE = named("mixed_types")
PROBED = {"mixed_types": 150, "heads_of_8": 150, "rows_of_576": 70, "vocabulary_32001": 70}
"""Shape -> tokens."""


def array(ids: list[int]) -> NDArray[np.int32]:
    return np.array(ids, np.int32)


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> _core.Engine:
    return _core.Engine(_core.ModelFile(str(tiny(SHAPE)[1])), threads=2)


@pytest.fixture(scope="module")
def whole(engine: _core.Engine) -> Logits:
    """Logits of all positions, computed in one go; read-only."""
    logits = _core.Session(engine, LENGTH).eval(array(tokens(SHAPE, LENGTH)), "all")
    logits.flags.writeable = False
    return logits


def assert_same_bits(ours: Logits, expected: Logits) -> None:
    assert np.array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", PROBED)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int8 f16", "int8 i16", "f32 f16"])
def test_threads_and_chunks(name: str, isa: str, kind: str, tiny: Tiny, tmp_path: Path) -> None:
    ids = tokens(named(name), PROBED[name])
    plain = isa == "scalar"  # which takes seconds for each way
    threads = THREADS[::2] if plain else THREADS
    chunks = (7, 512, 0) if plain and kind.startswith("f32") else CHUNKS
    answer = probe_logits(
        tiny(named(name))[1], ids, tmp_path, isa, *kind.split(), threads=threads, chunks=chunks
    )
    assert answer.isa == isa and np.isfinite(answer.logits).all()
    first = next(iter(answer.digests.values()))
    assert [way for way, digest in answer.digests.items() if digest != first] == []


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_split_into_calls_and_chunks(engine: _core.Engine, whole: Logits, data: st.DataObject) -> None:
    ids, at, got = tokens(SHAPE, LENGTH), 0, []
    session = _core.Session(engine, LENGTH)
    while at < LENGTH:
        end = data.draw(st.integers(at + 1, LENGTH), label="end")
        chunk = data.draw(st.integers(1, 130), label="chunk")
        got.append(session.eval(array(ids[at:end]), "all", chunk))
        at = end
    assert_same_bits(np.concatenate(got), whole)


@given(cuts=st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_truncating_and_evaluating_again(engine: _core.Engine, whole: Logits, cuts: list[int]) -> None:
    ids, session = tokens(SHAPE, LENGTH), _core.Session(engine, LENGTH)
    session.eval(array(ids))
    for cut in cuts:
        session.truncate(cut)
        session.eval(
            array(tokens(SHAPE, LENGTH - cut, seed=9))
        )  # another text leaves other keys and values behind
        session.truncate(cut)
        assert session.position == cut
        assert_same_bits(session.eval(array(ids[cut:]), "all"), whole[cut:])


SESSIONS, SHARE = 4, 128  # SHARE tokens of each session fill one step
Schedule = list[tuple[int, ...]]  # per call, tokens of each session; what is left over comes last


def batches(schedule: Schedule) -> Iterator[list[tuple[int, int, int]]]:
    """Calls as rows of (session, begin, end) until every session holds SHARE tokens."""
    at = [0] * SESSIONS
    for lengths in [*schedule, (SHARE,) * SESSIONS]:
        ends = [min(begin + n, SHARE) for begin, n in zip(at, lengths, strict=True)]
        rows = [(i, begin, end) for i, (begin, end) in enumerate(zip(at, ends, strict=True)) if end > begin]
        if rows:
            yield rows
        at = ends


@given(schedule=st.lists(st.tuples(*[st.integers(0, 90)] * SESSIONS), max_size=6))
@settings(max_examples=20, deadline=None)
def test_neighbours_in_the_batch(engine: _core.Engine, whole: Logits, schedule: Schedule) -> None:
    """Session 0 computes the text of `whole`; the others compute other texts beside it, at other depths."""
    texts = [tokens(SHAPE, LENGTH), *(tokens(SHAPE, LENGTH, seed=20 + i) for i in range(1, SESSIONS))]
    sessions = [_core.Session(engine, SHARE) for _ in texts]
    got = []
    for rows in batches(schedule):
        items = [(sessions[i], array(texts[i][begin:end]), "all") for i, begin, end in rows]
        for (i, _, _), logits in zip(rows, _core.forward(engine, items), strict=True):  # type: ignore[arg-type]
            got += [logits] if i == 0 else []
    assert_same_bits(np.concatenate(got), whole[:SHARE])


def test_steps_are_evals(engine: _core.Engine, whole: Logits) -> None:
    session = _core.Session(engine, LENGTH)
    for i, token in enumerate(tokens(SHAPE, LENGTH)):
        assert_same_bits(session.step(token), whole[i])


def test_logits_that_were_asked_for(engine: _core.Engine, whole: Logits) -> None:
    ids = array(tokens(SHAPE, LENGTH))
    assert_same_bits(_core.Session(engine, LENGTH).eval(ids, "last", 64), whole[-1:])
    assert _core.Session(engine, LENGTH).eval(ids, "none").shape == (0, SHAPE.n_vocab)


@pytest.mark.parametrize("context", [LENGTH, LENGTH + 1, 4 * LENGTH])
def test_context_size_does_not_matter(engine: _core.Engine, whole: Logits, context: int) -> None:
    assert_same_bits(_core.Session(engine, context).eval(array(tokens(SHAPE, LENGTH)), "all"), whole)


def assert_bits_of_every_processor(
    name: str, model: Path, isa: str, kind: str, folder: Path, **ways: tuple[int, ...]
) -> None:
    """All ways to compute a model's logits give the bits that are written down for every processor."""
    golden = json.loads((TESTS / "golden" / "bits.json").read_text(encoding="utf-8"))[name]
    answer = probe_logits(model, golden["tokens"], folder, isa, *kind.split(), **ways)
    assert set(answer.digests.values()) == {golden["sha256"][kind]}
    if kind == "int8 f16":
        assert answer.logits[-1].argmax() == golden["greedy"][0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["int8 f16", "int8 i16", "f32 f16"])
def test_every_processor_tells_the_same_story(isa: str, kind: str, tmp_path: Path) -> None:
    stories = tmp_path / "stories.bin"
    convert.convert(STORIES, stories, weights="q4")
    assert_bits_of_every_processor("stories", stories, isa, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("isa", "kind"),
    [*((isa, "int8 f16") for isa in ISAS), *((isa, "int8 i16") for isa in ISAS[1:]), (ISAS[-1], "f32 f16")],
)
def test_a_real_model(isa: str, kind: str, smollm2_bin: Path, tmp_path: Path) -> None:
    # Plain C++ takes a minute for all ways, of which smaller models show that they agree.
    ways = {"threads": (2,), "chunks": (64,)} if isa == "scalar" else {}
    assert_bits_of_every_processor("smollm2", smollm2_bin, isa, kind, tmp_path, **ways)
