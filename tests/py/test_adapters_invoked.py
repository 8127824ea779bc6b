"""Adapters that apply only from an invocation on: what is shared with the base, swaps, stacks, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gguf_writer
import lora_writer as lw
from pyinfer import Adapter, Model, _core, load, merging
from pyinfer.checking import agreement
from pyinfer.convert.checkpoint import Spec
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError
from pyinfer.invocation import Invoked
from pyinfer.stack import base_reader, stacked
from pyinfer.timeline import BARE, Overlay

CALL, OTHER = (7, 99), (250,)
BEFORE, AFTER = [1, 403, 11, 52], [31, 8]
PROMPT = {"max_tokens": 6, "temperature": 0.0}


def invoked(folder: Path, seed: int, tokens: tuple[int, ...]) -> Adapter:
    config = lw.settings(alora_invocation_tokens=list(tokens))
    return Adapter.load(lw.write(folder, config, lw.tensors(seed)))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    folder = tmp_path_factory.mktemp("invoked")
    return {
        "call": invoked(folder / "call", 1, CALL),
        "other": invoked(folder / "other", 2, OTHER),
        "always": Adapter.load(lw.plain(folder / "always", 3)),
        "twin": Adapter.load(lw.plain(folder / "twin", 1)),
    }


@pytest.fixture
def own(stories_model_bin: Path) -> Iterator[Model]:
    with load(stories_model_bin, threads=1, activations="f32") as model:
        yield model


def plain(adapter: Adapter) -> Adapter:
    """The same adapter as if it applied everywhere."""
    return replace(adapter, source=replace(adapter.source, invocation=()))


def core_logits(model: Model, *parts: tuple[list[int], list[Adapter]]) -> np.ndarray:
    """Logits of all tokens, evaluated in the core part by part with these stacks."""
    file = _core.ModelFile(str(model.path))
    engine = _core.Engine(file, 1, "f32")
    session, found = _core.Session(engine, 64), []
    for tokens, stack in parts:
        made = stacked(tuple((plain(one), 1.0) for one in stack), Spec(**file.spec), base_reader(file))
        session.adapters = made.packed(engine) if stack else None
        found.append(session.eval(np.array(tokens, np.int32), "all"))
    return np.concatenate(found)


def test_it_applies_from_the_last_invocation_on(own: Model, adapters: dict[str, Adapter]) -> None:
    before = [*BEFORE, *CALL, 5]
    text = [*before, *CALL, *AFTER]
    expected = core_logits(own, (before, []), ([*CALL, *AFTER], [adapters["call"]]))
    assert np.array_equal(own.logits(text, adapters=[adapters["call"]]), expected)
    assert not np.allclose(expected[len(before) :], own.logits(text)[len(before) :])
    never = [*BEFORE, *AFTER]
    assert np.array_equal(own.logits(never, adapters=[adapters["call"]]), own.logits(never))


def test_an_answer_goes_on_with_it(own: Model, adapters: dict[str, Adapter]) -> None:
    """The tokens of an answer are picked with the adapter that the prompt invoked, and do not invoke one."""
    text = [*BEFORE, *CALL, *AFTER]
    answer = own.generate(text, adapters=[adapters["call"]], **PROMPT).tokens
    whole = [*text, *answer]
    split = len(BEFORE)
    logits = core_logits(own, (BEFORE, []), (whole[split:], [adapters["call"]]))
    assert list(answer) == [int(row.argmax()) for row in logits[len(text) - 1 : -1]]


def test_what_stands_before_is_shared_with_the_base(own: Model, adapters: dict[str, Adapter]) -> None:
    text = [*BEFORE, *CALL, *AFTER]
    solo = own.generate(text, adapters=[adapters["call"]], **PROMPT)
    with own.session() as session:
        session.generate(text, **PROMPT)  # the base alone
        first = session.generate(text, adapters=[adapters["call"]], **PROMPT)
        again = session.generate(text, adapters=[adapters["call"]], **PROMPT)
        bare = session.generate(text, **PROMPT)
    assert (first.tokens, again.tokens) == (solo.tokens, solo.tokens)
    assert first.timings.cached_tokens == len(BEFORE)
    assert again.timings.cached_tokens == len(text) - 1
    assert bare.timings.cached_tokens == len(BEFORE)
    assert bare.tokens == own.generate(text, **PROMPT).tokens


def test_a_later_invocation_takes_the_place_of_an_earlier(own: Model, adapters: dict[str, Adapter]) -> None:
    """What the first invocation changed is evaluated again without."""
    first = [*BEFORE, *CALL, *AFTER]
    later = [*first, 5, *CALL, 9]
    with own.session() as session:
        session.adapters = [adapters["call"]]
        session.generate(first, **PROMPT)
        answer = session.generate(later, **PROMPT)
    assert answer.timings.cached_tokens == len(BEFORE)
    assert answer.tokens == own.generate(later, adapters=[adapters["call"]], **PROMPT).tokens


def test_appended_tokens_may_invoke(own: Model, adapters: dict[str, Adapter]) -> None:
    text = [*BEFORE, *CALL, *AFTER]
    with own.session() as session:
        session.adapters = [adapters["call"]]
        session.append(text[: len(BEFORE) + 1])  # ends within the invocation
        session.append(text[len(BEFORE) + 1 :])
        answer = session.generate(text, **PROMPT)
        session.append([])
    assert answer.tokens == own.generate(text, adapters=[adapters["call"]], **PROMPT).tokens


def test_a_swap_in_an_answer_looks_at_all_tokens(own: Model, adapters: dict[str, Adapter]) -> None:
    text = [*BEFORE, *CALL, *AFTER]
    for stack, expected in (([adapters["call"]], [adapters["twin"]]), ([adapters["other"]], [])):
        answers = []
        for swapped in (stack, expected):
            with own.session() as session:
                stream = session.stream(text, **PROMPT)
                tokens = list(next(stream).tokens)
                session.adapters = swapped
                answers.append(tokens + [token for chunk in stream for token in chunk.tokens])
        assert answers[0] == answers[1]


def test_each_of_a_stack_waits_for_its_own(own: Model, adapters: dict[str, Adapter]) -> None:
    stack = [adapters["call"], adapters["always"], adapters["other"]]
    parts = (BEFORE, [*OTHER, 5], [*CALL, *AFTER])
    expected = core_logits(
        own,
        (parts[0], [adapters["always"]]),
        (parts[1], [adapters["always"], adapters["other"]]),
        (parts[2], stack),
    )
    found = own.logits([token for part in parts for token in part], adapters=stack)
    assert np.array_equal(found, expected)


def test_spans_begin_where_the_last_invocation_does() -> None:
    overlays: dict[tuple[bool, ...], Overlay] = {}
    course = Invoked(((1, 1), (), (3,)), lambda active: overlays.setdefault(active, Overlay(None)))
    found = course.spans([1, 1, 1, 3, 0])
    assert [mark for mark, _ in found] == [0, 1, 3]
    assert [overlay for _, overlay in found] == [
        overlays[active] for active in ((False, True, False), (True, True, False), (True, True, True))
    ]
    assert [mark for mark, _ in course.spans([0, 1])] == [0]
    assert [mark for mark, _ in course.spans([1, 1])] == [0]
    assert BARE.spans([1, 2]) == ((0, BARE),)


def test_a_gguf_adapter_is_invoked_too(own: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"blk.0.attn_v.weight.lora_a": (2, 64), "blk.0.attn_v.weight.lora_b": (32, 2)}
    tensors = [
        gguf_writer.Tensor(name, "F32", *shape, gguf_writer.float_bytes("F32", rng.normal(0, 1, shape)))
        for name, shape in shapes.items()
    ]
    keys = {
        "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora",
        "adapter.lora.alpha": 8.0, "adapter.alora.invocation_tokens": gguf_writer.Typed("u32", list(CALL)),
    }  # fmt: skip
    path = gguf_writer.write_gguf(tmp_path / "a.gguf", keys, tensors)
    text = [*BEFORE, *CALL, *AFTER]
    found, bare = own.logits(text, adapters=[path]), own.logits(text)
    split = len(BEFORE)
    assert np.array_equal(found[:split], bare[:split])
    assert np.abs(found[split:] - bare[split:]).max() > 0.01


def test_it_is_neither_merged_nor_exported(
    own: Model, adapters: dict[str, Adapter], tmp_path: Path, stories_model_bin: Path
) -> None:
    with pytest.raises(UnsupportedError, match="adapter call: alora_invocation_tokens"):
        merging.convert_merged(stories_model_bin, tmp_path / "made.bin", ((adapters["call"], 1.0),))
    assert not (tmp_path / "made.bin").exists()
    found = agreement(((adapters["call"], 1.0),), own.path, threads=1)
    assert all("alora_invocation_tokens" in one.refused for one in found)


def test_what_does_not_fit_is_refused(own: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="alora_invocation_tokens: expected tokens below 512, found 512"):
        own.logits(BEFORE, adapters=[invoked(tmp_path / "big", 1, (3, 512))])
    many = [invoked(tmp_path / str(i), i, (i,)) for i in range(5)]
    with pytest.raises(RequestError, match="at most 4 with alora_invocation_tokens, found 5"):
        own.logits(BEFORE, adapters=many)
