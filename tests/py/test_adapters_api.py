"""Adapters on a model: stacks by request, session and model, swaps between tokens, merging, export."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_writer as lw
import pyinfer
from lora_golden import FOLDER, base_folder, named
from pyinfer import Adapter, Model, convert, hub, load, merging
from pyinfer.checking import agreement, look
from pyinfer.convert.checkpoint import Spec
from pyinfer.errors import MemoryLimitError, ModelFileError, RequestError, UnsupportedError
from pyinfer.export import export, norm
from pyinfer.shelf import MOST_READ
from pyinfer.stack import Stack, base_reader, stacked
from reference.llama import kl

STORIES = Path(__file__).parents[1] / "data" / "stories260K.bin"
TOKENS = [1, 403, 7, 99, 250, 31]
PROMPT = {"max_tokens": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return Adapter.load(lw.plain(folder / "sql", 1)), Adapter.load(lw.plain(folder / "tone", 2))


@pytest.fixture
def own(stories_model_bin: Path) -> Iterator[Model]:
    """A model that a test may change."""
    with load(stories_model_bin, threads=1, activations="f32") as model:
        yield model


def stack_on(model: Model, *weighted: tuple[Adapter, float]) -> Stack:
    file = pyinfer._core.ModelFile(str(model.path))
    return stacked(weighted, Spec(**file.spec), base_reader(file))


# Stacks


def test_an_adapter_shows_and_none_does_not(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    sql, tone = adapters
    bare = own.logits(TOKENS)
    assert np.array_equal(own.logits(TOKENS, adapters=[]), bare)
    assert np.array_equal(own.logits(TOKENS, adapters=[(sql, 0.0)]), bare)
    assert np.array_equal(own.logits(TOKENS, adapters=[(sql, 0.5), (tone, 0), (sql, -0.5)]), bare)
    assert np.abs(own.logits(TOKENS, adapters=[sql]) - bare).max() > 0.1


def test_one_twice_is_one_of_twice_the_weight(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    sql, _ = adapters
    twice = own.logits(TOKENS, adapters=[(sql, 0.5), (sql, 0.25)])
    assert np.array_equal(twice, own.logits(TOKENS, adapters=[(sql, 0.75)]))


def test_packed_stacks_make_room_for_another(
    own: Model, adapters: tuple[Adapter, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for requests to come never stands in the way of one that is there."""
    sql, _ = adapters
    kept = own.shelf._packed
    for weight in (0.1, 0.2, 0.3):
        own.logits(TOKENS, adapters=[(sql, weight)])
    assert len(kept) == 3
    needed = stack_on(own, (sql, 0.4)).packing_bytes
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: needed if len(kept) < 2 else needed - 1)
    own.shelf.stack([(sql, 0.4)])
    assert [pairs[0][1] for pairs, _ in kept.values()] == [0.3, 0.4]
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: needed - 1)
    with pytest.raises(MemoryLimitError, match="a stack of adapters needs"):
        own.shelf.stack([(sql, 0.5)])


def test_adapters_named_by_their_paths_do_not_pile_up(own: Model, tmp_path: Path) -> None:
    given = own.add_adapter(lw.plain(tmp_path / "given", 1))
    for i in range(MOST_READ + 5):
        own.shelf.stack([lw.plain(tmp_path / str(i) / "adapter", i)])
    assert len(own.shelf._by_path) == MOST_READ
    assert list(own.adapters) == ["given", "adapter"]
    for i in range(MOST_READ + 5):
        own.shelf.stack([lw.plain(tmp_path / f"adapter {i}", i)])
    assert list(own.adapters) == ["given", *(f"adapter {i}" for i in range(5, MOST_READ + 5))]
    assert own.adapters["given"] is given


def test_a_relative_path_is_not_what_has_its_name(
    own: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that nobody gave came from a path: what is there now counts, and another folder is another adapter."""
    for folder, seed in (("here", 1), ("there", 2)):
        lw.plain(tmp_path / folder / "mine", seed)
    expected = {}
    for folder in ("there", "here"):
        expected[folder] = own.logits(TOKENS, adapters=[tmp_path / folder / "mine"])
        monkeypatch.chdir(tmp_path / folder)
        assert np.array_equal(own.logits(TOKENS, adapters=["mine"]), expected[folder])
    assert not np.array_equal(expected["here"], expected["there"])
    anew = lw.plain(tmp_path / "anew", 3) / "adapter_model.safetensors"
    anew.replace(tmp_path / "here" / "mine" / anew.name)
    assert not np.array_equal(own.logits(TOKENS, adapters=["mine"]), expected["here"])
    monkeypatch.chdir(tmp_path)  # where no path has the name, it is the first one's
    assert np.array_equal(own.logits(TOKENS, adapters=["mine"]), expected["there"])


def test_adapters_of_the_model_keep_their_names(stories_model_bin: Path, tmp_path: Path) -> None:
    first = lw.plain(tmp_path / "first", 1)
    with load(stories_model_bin, threads=1, adapters=[first]) as model:
        for i in range(MOST_READ + 5):
            model.shelf.stack([lw.plain(tmp_path / f"adapter {i}", i)])
        assert model.shelf.stack(["first"]).weighted[0][0] is model.shelf.default.weighted[0][0]


def test_a_stack_that_nobody_uses_is_freed(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    """Though the cache of an answer with it is kept."""
    own.generate(TOKENS, adapters=[adapters[0]], **PROMPT)
    (overlay,) = (weakref.ref(packed) for _, packed in own.shelf._packed.values())
    own.shelf._packed.clear()
    gc.collect()
    assert overlay() is None
    assert own.generate(TOKENS, **PROMPT).timings.cached_tokens == 0  # of another overlay


def test_names_paths_and_adapters_are_the_same(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    sql, _ = adapters
    own.add_adapter(sql.path, "mine")
    expected = own.logits(TOKENS, adapters=[(sql, 0.5)])
    assert np.array_equal(own.logits(TOKENS, adapters=[("mine", 0.5)]), expected)
    assert np.array_equal(own.logits(TOKENS, adapters=[(str(sql.path), 0.5)]), expected)
    assert own.adapters["sql"].path.resolve() == sql.path.resolve()
    own.remove_adapter("mine")
    with pytest.raises(RequestError, match="'sql' or a path, found 'mine'"):
        own.logits(TOKENS, adapters=["mine"])
    with pytest.raises(RequestError, match="found 'mine'"):
        own.remove_adapter("mine")


def test_an_adapter_that_was_added_is_the_one_at_its_path(own: Model, tmp_path: Path) -> None:
    folder = lw.plain(tmp_path / "a", 1)
    own.logits(TOKENS, adapters=[folder])
    assert own.add_adapter(folder) is own.adapters["a"]
    own.logits(TOKENS, adapters=[str(folder), "a"])
    assert list(own.adapters) == ["a"]


def _rewrite(folder: Path, seed: int) -> None:
    """Puts other tensors of the same size in the folder, at a later time."""
    file, other = (
        folder / "adapter_model.safetensors",
        lw.plain(folder.parent / f"{folder.name}-{seed}", seed),
    )
    later = file.stat().st_mtime_ns + 10**9
    file.write_bytes((other / file.name).read_bytes())
    os.utime(file, ns=(later, later))


def test_a_path_whose_files_changed_is_read_again(own: Model, tmp_path: Path) -> None:
    folder = lw.plain(tmp_path / "a", 1)
    before = own.logits(TOKENS, adapters=[folder])
    _rewrite(folder, 2)
    expected = own.logits(TOKENS, adapters=[Adapter.load(folder, "fresh")])
    assert np.array_equal(own.logits(TOKENS, adapters=[folder]), expected)
    assert np.array_equal(own.logits(TOKENS, adapters=["a"]), expected)
    assert not np.array_equal(before, expected)
    _rewrite(folder, 3)
    assert own.add_adapter(folder) is own.adapters["a"]
    assert not np.array_equal(own.logits(TOKENS, adapters=["a"]), expected)


def test_what_changed_since_it_was_read_is_not_merged(tmp_path: Path, stories_model_bin: Path) -> None:
    """Else the result would be known by the new files and hold the old ones."""
    folder = lw.plain(tmp_path / "a", 1)
    adapter = Adapter.load(folder)
    _rewrite(folder, 2)
    with pytest.raises(ModelFileError, match="found it changed; load the adapter again"):
        merging.merged(stories_model_bin, ((adapter, 1.0),))
    with pytest.raises(ModelFileError, match="found it changed; load the adapter again"):
        merging.convert_merged(stories_model_bin, tmp_path / "out.bin", ((adapter, 1.0),))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelFileError, match="found it changed"):
        merging.convert_merged(stories_model_bin, tmp_path / "out.bin", ((adapter, 1.0),))


def test_a_name_stands_for_one_adapter(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    sql, tone = adapters
    own.add_adapter(sql)
    own.add_adapter(sql)
    with pytest.raises(RequestError, match="'sql' taken"):
        own.add_adapter(tone, "sql")


@pytest.mark.parametrize(
    "wrong",
    [
        "sql",
        [("sql", float("nan"))],
        [("sql", "1")],
        [("sql", True)],
        [3],
        [("sql", 1, 2)],
        {"sql": 1},
        [("sql", 1e9)],
        np.array(["sql", "tone"]),
        ["x" * 300],
        ["a\0b"],
        [Path("a\0b")],
        ["\ud800"],
    ],
)
def test_what_is_no_stack_is_refused(own: Model, adapters: tuple[Adapter, Adapter], wrong: object) -> None:
    own.add_adapter(adapters[0])
    with pytest.raises(RequestError, match="adapters: expected"):
        own.generate([1], adapters=wrong, max_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1, None, b"x", "x" * 300, "a\0b", Path("a\0b"), "\ud800"], ids=repr)
def test_what_is_no_path_is_refused(own: Model, wrong: Any) -> None:
    for read in (Adapter.load, own.add_adapter):
        with pytest.raises(RequestError, match=r"^adapters: expected the path of an adapter, found "):
            read(wrong)


def test_links_in_a_circle_are_refused(own: Model, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(RequestError, match=r"^adapters: expected the path of an adapter, found "):
        own.logits([1], adapters=[loop])


def test_what_does_not_fit_is_not_added(own: Model, tmp_path: Path) -> None:
    big, fits = lw.plain(tmp_path / "big", layers=9), lw.plain(tmp_path / "fits")
    with pytest.raises(ModelFileError, match="layer"):
        own.add_adapter(big)
    with pytest.raises(ModelFileError, match="layer"):
        own.generate([1], adapters=[fits, big], max_tokens=1)
    assert dict(own.adapters) == {}
    own.generate([1], adapters=[fits], max_tokens=1)
    assert list(own.adapters) == ["fits"]


def test_the_models_own_stack(stories_model_bin: Path, own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    sql, tone = adapters
    with load(stories_model_bin, threads=1, activations="f32", adapters=[sql.path, (tone, -0.3)]) as model:
        expected = own.logits(TOKENS, adapters=[sql, (tone, -0.3)])
        assert np.array_equal(model.logits(TOKENS), expected)
        assert np.array_equal(model.logits(TOKENS, adapters=[]), own.logits(TOKENS))
        answer = own.generate(TOKENS, adapters=[sql, (tone, -0.3)], **PROMPT).tokens
        assert model.generate(TOKENS, **PROMPT).tokens == answer
        with model.session() as session:
            assert [weight for _, weight in session.adapters] == [1.0, -0.3]
            assert session.generate(TOKENS, **PROMPT).tokens == answer


def test_a_closed_model_takes_no_adapter(stories_model_bin: Path, adapters: tuple[Adapter, Adapter]) -> None:
    model = load(stories_model_bin, threads=1, adapters=[adapters[0]])
    model.close()
    with pytest.raises(RequestError, match="closed"):
        model.add_adapter(adapters[1])


def test_a_bad_adapter_leaves_no_model_open(stories_model_bin: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        load(stories_model_bin, threads=1, adapters=[tmp_path / "nowhere"])


# Sessions


def test_a_swap_evaluates_again_what_the_old_stack_did(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    sql, tone = adapters
    with own.session() as session:
        session.adapters = [sql]
        first = session.generate(TOKENS, **PROMPT)
        assert first.tokens == own.generate(TOKENS, adapters=[sql], **PROMPT).tokens
        again = session.generate(TOKENS, **PROMPT)
        assert again.timings.cached_tokens == len(TOKENS) - 1
        session.adapters = [tone]
        other = session.generate(TOKENS, **PROMPT)
        assert other.timings.cached_tokens == 0
        assert other.tokens == own.generate(TOKENS, adapters=[tone], **PROMPT).tokens
        bare = session.generate(TOKENS, adapters=[], **PROMPT)
        assert bare.tokens == own.generate(TOKENS, **PROMPT).tokens
        assert [adapter.name for adapter, _ in session.adapters] == ["tone"]
        assert session.generate(TOKENS, **PROMPT).tokens == other.tokens


def test_a_swap_in_an_answer_takes_effect_at_the_next_token(
    own: Model, adapters: tuple[Adapter, Adapter]
) -> None:
    plain = own.generate(TOKENS, **PROMPT).tokens
    with own.session() as session:
        stream = session.stream(TOKENS, **PROMPT)
        got = list(next(stream).tokens)
        n_before = len(got)
        session.adapters = [adapters[0]]
        got += [token for chunk in stream for token in chunk.tokens]
    assert got == _greedy(own, adapters, n_before)
    assert tuple(got) != plain


def test_a_swap_before_the_first_token_is_for_the_whole_answer(
    own: Model, adapters: tuple[Adapter, Adapter]
) -> None:
    with own.session() as session:
        stream = session.stream(TOKENS, **PROMPT)
        session.adapters = [adapters[0]]
        assert stream.finish().tokens == own.generate(TOKENS, adapters=[adapters[0]], **PROMPT).tokens


def _greedy(model: Model, adapters: tuple[Adapter, Adapter], plain_steps: int) -> list[int]:
    """The answer whose first tokens were picked without and the others with the first adapter, in the core alone."""
    core = pyinfer._core
    engine = core.Engine(core.ModelFile(str(model.path)), 1, "f32")
    session, found = core.Session(engine, 64), []
    logits = session.eval(np.array(TOKENS, np.int32))[-1]
    for i in range(8):
        found.append(int(logits.argmax()))
        if i + 1 == plain_steps:
            session.adapters = stack_on(model, (adapters[0], 1.0)).packed(engine)
        logits = session.step(found[-1])
    return found


def test_prefixes_of_a_mixed_timeline_are_not_taken_for_pure_ones(
    own: Model, adapters: tuple[Adapter, Adapter]
) -> None:
    sql, _ = adapters
    with own.session() as session:
        session.append(TOKENS[:3])
        session.adapters = [sql]
        session.append(TOKENS[3:])
        mixed = session.generate(TOKENS, **PROMPT)
        assert mixed.timings.cached_tokens == 0
        assert mixed.tokens == own.generate(TOKENS, adapters=[sql], **PROMPT).tokens
        session.adapters = []
        assert session.generate(TOKENS, **PROMPT).tokens == own.generate(TOKENS, **PROMPT).tokens


def test_requests_of_many_threads_keep_their_own_stacks(
    own: Model, adapters: tuple[Adapter, Adapter]
) -> None:
    sql, tone = adapters
    stacks = ([], [sql], [tone], [sql, (tone, -0.3)])
    expected = [own.generate(TOKENS, adapters=stack, **PROMPT).tokens for stack in stacks]
    wrong: list[int] = []

    def ask(which: int) -> None:
        for _ in range(5):
            if own.generate(TOKENS, adapters=stacks[which], **PROMPT).tokens != expected[which]:
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_session_swapped_under_load_ends_as_it_should(
    own: Model, adapters: tuple[Adapter, Adapter]
) -> None:
    stop = threading.Event()
    with own.session() as session:

        def swap() -> None:
            while not stop.is_set():
                for stack in ([], [adapters[0]], [adapters[1]]):
                    session.adapters = stack

        thread = threading.Thread(target=swap)
        thread.start()
        for _ in range(10):
            session.generate(TOKENS, **PROMPT)
        stop.set()
        thread.join()
        session.adapters = [adapters[0]]
        assert (
            session.generate(TOKENS, **PROMPT).tokens
            == own.generate(TOKENS, adapters=[adapters[0]], **PROMPT).tokens
        )


# Merging and export


def test_merged_at_load_is_attached(
    stories_model_bin: Path,
    own: Model,
    adapters: tuple[Adapter, Adapter],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path))
    stack = [adapters[0], (adapters[1], -0.3)]
    expected = own.logits(TOKENS, adapters=stack)
    for _ in range(2):
        with load(stories_model_bin, threads=1, activations="f32", adapters=stack, merge=True) as model:
            assert kl(expected.astype(np.float64), model.logits(TOKENS)).max() < 1e-6
            assert model.metadata.options["adapters"] == "sql:1+tone:-0.3"
    assert len(list((tmp_path / "models").glob("*.bin"))) == 1


def test_a_name_is_merged_once_without_asking_again(
    adapters: tuple[Adapter, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path))
    asked = []

    @contextlib.contextmanager
    def published(name: str, **_: object) -> Iterator[Path]:
        asked.append(name)
        yield STORIES

    monkeypatch.setattr(hub, "published", published)
    first = merging.merged("hf:tiny/stories", ((adapters[0], 1.0),))
    assert merging.merged("hf:tiny/stories", ((adapters[0], 1.0),)) == first and len(asked) == 1
    assert merging.merged("hf:tiny/stories", ((adapters[0], 0.5),)) != first and len(asked) == 2
    assert merging.merged("hf:tiny/other", ((adapters[0], 1.0),)) == first and len(asked) == 3


def test_a_model_file_keeps_its_formats(
    stories_model_bin: Path, adapters: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    with pytest.raises(
        RequestError, match=r"is f32, packed already; 'q4' needs a source that is no model\.bin"
    ):
        merging.convert_merged(stories_model_bin, tmp_path / "out.bin", ((adapters[0], 1.0),), weights="q4")


def test_there_is_something_to_merge(stories_model_bin: Path) -> None:
    with pytest.raises(RequestError, match="expected adapters to merge"):
        load(stories_model_bin, merge=True)


@pytest.mark.parametrize("kind", ["dora", "embedding", "saved_norms", "tied_tokens", "tied_head", "stack"])
def test_merging_from_floats_and_from_a_model_file(kind: str, tmp_path: Path) -> None:
    case = named(kind)
    source = base_folder(tmp_path / "base", case.tied)
    convert.convert(source, tmp_path / "base.bin", weights="f32")
    weighted = merging.loaded(case.paths)
    for origin in (source, tmp_path / "base.bin"):
        weights = "f32" if origin is source else None
        merging.convert_merged(origin, tmp_path / "made.bin", weighted, weights=weights)
        with load(tmp_path / "made.bin", threads=1, activations="f32") as model:
            assert kl(case.peft.astype(np.float64), model.logits(list(case.tokens))).max() < 2e-5


@pytest.mark.parametrize(("weights", "lands"), [("q4", "q8"), ("q8", "q8"), ("bf16", "bf16")])
def test_what_is_quantised_is_promoted(weights: str, lands: str, tmp_path: Path) -> None:
    source = base_folder(tmp_path / "base", False)
    convert.convert(source, tmp_path / "base.bin", weights=weights)
    before = pyinfer._core.ModelFile(str(tmp_path / "base.bin"))
    weighted = merging.loaded([FOLDER / "one_rank"])
    made = merging.convert_merged(tmp_path / "base.bin", tmp_path / "made.bin", weighted)
    after = pyinfer._core.ModelFile(str(tmp_path / "made.bin"))
    assert made.added_bytes == sum(t["bytes"] for t in after.tensors) - sum(
        t["bytes"] for t in before.tensors
    )
    for i, (old, new) in enumerate(zip(before.tensors, after.tensors, strict=True)):
        touched = old["role"] in ("q", "down")
        assert new["format"] == (lands if touched else old["format"])
        assert np.array_equal(before.read(i), after.read(i)) != touched
    assert made.touched == 4 and made.retention > 0.9
    assert all(after.verify(i) for i in range(len(after.tensors)))


def test_four_bits_round_small_changes_away_and_say_so(tmp_path: Path, stories_model_bin: Path) -> None:
    with load(stories_model_bin, threads=1) as model:
        four = tmp_path / "four.bin"
        convert.convert(Path(__file__).parents[1] / "data" / "stories260K.bin", four, weights="q4")
        assert model.n_vocab == 512
    weighted = merging.loaded([lw.plain(tmp_path / "small", spread=0.02)])
    made = merging.convert_merged(four, tmp_path / "made.bin", weighted, into="int4")
    kept = merging.convert_merged(four, tmp_path / "made.bin", weighted)
    assert made.retention < 0.5 < 0.9 < kept.retention
    assert made.added_bytes == 0 < kept.added_bytes


def test_a_bias_cannot_be_merged(tmp_path: Path) -> None:
    source = base_folder(tmp_path / "base", False)
    with pytest.raises(UnsupportedError, match="bias cannot be merged"):
        merging.convert_merged(source, tmp_path / "made.bin", merging.loaded([FOLDER / "lora_bias"]))
    assert not (tmp_path / "made.bin").exists()


def test_an_exported_stack_is_the_stack(
    own: Model, adapters: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    sql, tone = adapters
    made = export(stack_on(own, (sql, 1.0), (tone, -0.3)), tmp_path / "both")
    assert (made.modules, made.rank, made.error) == (15, 8, 0.0)
    expected = own.logits(TOKENS, adapters=[sql, (tone, -0.3)])
    found = own.logits(TOKENS, adapters=[tmp_path / "both"])
    assert np.abs(found - expected).max() < 1e-3
    with pytest.raises(RequestError, match="new or empty folder"):
        export(stack_on(own, (sql, 1.0)), tmp_path / "both")


def test_a_cut_export_says_what_it_lost(
    own: Model, adapters: tuple[Adapter, Adapter], tmp_path: Path
) -> None:
    whole = stack_on(own, (adapters[0], 1.0))
    for rank, expected in ((4, None), (2, "some"), (1, "more")):
        made = export(whole, tmp_path / str(rank), rank=rank)
        cut = stack_on(own, (Adapter.load(tmp_path / str(rank)), 1.0))
        lost = sum(
            np.square(w.outer[0] @ w.outer[1] - c.outer[0] @ c.outer[1]).sum()
            for w, c in zip(whole.changes, sorted(cut.changes, key=_order(whole)), strict=True)
        )
        size = sum(np.square(w.outer[0] @ w.outer[1]).sum() for w in whole.changes)
        assert made.error == pytest.approx(np.sqrt(lost / size), abs=1e-6)
        assert (made.error > 0.05) == (expected is not None)


def test_an_export_of_more_ranks_than_a_matrix_has_keeps_all(own: Model, tmp_path: Path) -> None:
    values = {
        f"{lw.module(layer, 'v_proj')}.lora_{letter}.weight": np.random.default_rng(layer)
        .normal(0, 0.1, shape)
        .astype(np.float32)
        for layer in range(5)
        for letter, shape in (("A", (64, 64)), ("B", (32, 64)))
    }
    whole = Adapter.load(lw.write(tmp_path / "a", lw.settings(r=64, target_modules=["v_proj"]), values))
    made = export(stack_on(own, (whole, 1.0)), tmp_path / "made", rank=48)
    assert (made.rank, made.error) == (32, 0.0)
    expected = own.logits(TOKENS, adapters=[whole])
    assert np.abs(own.logits(TOKENS, adapters=[tmp_path / "made"]) - expected).max() < 1e-3


def test_a_norm_is_the_norm(own: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for rank in (3, 48, 200):  # of q, 64 by 64, from small products while they are small
        a, b = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((rank, 64), (64, rank)))
        named = {f"{lw.module(0, 'q_proj')}.lora_A.weight": a, f"{lw.module(0, 'q_proj')}.lora_B.weight": b}
        folder = lw.write(tmp_path / str(rank), lw.settings(r=rank, target_modules="x"), named)
        (change,) = stack_on(own, (Adapter.load(folder), 1.0)).changes
        assert norm(change) == pytest.approx(np.linalg.norm(b.astype(float) @ a) * 8 / rank, rel=1e-6)


def _order(stack: Stack):  # type: ignore[no-untyped-def]
    places = [(change.role, change.layer) for change in stack.changes]
    return lambda change: places.index((change.role, change.layer))


@pytest.mark.parametrize(
    ("kind", "words"), [("dora", "DoRA"), ("saved_head", "replaced"), ("bias_all", "bias")]
)
def test_what_one_lora_cannot_say_is_not_exported(kind: str, words: str, tmp_path: Path) -> None:
    convert.convert(base_folder(tmp_path / "base", False), tmp_path / "base.bin", weights="f32")
    file = pyinfer._core.ModelFile(str(tmp_path / "base.bin"))
    stack = stacked(merging.loaded([FOLDER / kind]), Spec(**file.spec), base_reader(file))
    if kind == "bias_all":
        stack = Stack(tuple(change for change in stack.changes if not len(change.a)), ())
    with pytest.raises(UnsupportedError, match=words):
        export(stack, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_embedding_beside_biases_is_not_exported(tmp_path: Path) -> None:
    """PEFT has no bias for a change of an embedding, and asks for one in every module or none."""
    convert.convert(base_folder(tmp_path / "base", False), tmp_path / "base.bin", weights="f32")
    file = pyinfer._core.ModelFile(str(tmp_path / "base.bin"))
    stack = stacked(
        merging.loaded([FOLDER / "embedding", FOLDER / "lora_bias"]), Spec(**file.spec), base_reader(file)
    )
    with pytest.raises(UnsupportedError, match="beside biases"):
        export(stack, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stack_that_changes_nothing_cannot_be_exported_and_can_be_merged(
    own: Model, adapters: tuple[Adapter, Adapter]
) -> None:
    merged, exported = agreement(((adapters[0], 0.0),), own.path, threads=1)
    assert merged.kl == 0.0 and "found none" in exported.refused


def test_the_ways_to_apply_agree(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    found = agreement(((adapters[0], 1.0), (adapters[1], -0.3)), own.path, threads=1)
    assert [one.way for one in found] == ["merged", "exported"]
    assert all(one.good and not one.refused for one in found)


def test_a_look_tells_the_size_of_changes(own: Model, adapters: tuple[Adapter, Adapter]) -> None:
    one = {(found.role, found.layer): found for found in look(((adapters[0], 1.0),), own.path)}
    half = {(found.role, found.layer): found for found in look(((adapters[0], 0.5),), own.path)}
    base = base_reader(pyinfer._core.ModelFile(str(own.path)))
    for change in stack_on(own, (adapters[0], 1.0)).changes:
        place = (change.role, change.layer)
        expected = np.linalg.norm(change.outer[0] @ change.outer[1]) / np.linalg.norm(base(*place))
        assert one[place].relative == pytest.approx(expected, rel=1e-6)
        assert half[place].relative == pytest.approx(expected / 2, rel=1e-6)
        assert one[place].int4 < 1.2 and one[place].int8 == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("weight", [10**400, float("nan"), float("-inf"), 1.1e6, True, "1", None, 1j])
def test_weights_outside_their_limits(stories: Model, adapters: tuple[Adapter, Adapter], weight: Any) -> None:
    with pytest.raises(RequestError, match=r"^adapters: expected a weight from -1e6 to 1e6, found "):
        stories.logits([1], adapters=[(adapters[0], weight)])


def test_weights_of_numpy_are_numbers(stories: Model, adapters: tuple[Adapter, Adapter]) -> None:
    expected = stories.logits([1, 2], adapters=[(adapters[0], 0.5)])
    for weight in (np.float32(0.5), np.float64(0.5)):
        assert np.array_equal(stories.logits([1, 2], adapters=[(adapters[0], weight)]), expected)


def test_factors_beyond_float32_are_refused_where_they_are_multiplied(tmp_path: Path, stories: Model) -> None:
    large = Adapter.load(lw.plain(tmp_path / "large", spread=1e36))
    file = pyinfer._core.ModelFile(str(stories.path))
    stack = stack_on(stories, (large, 1e6))
    with pytest.raises(RequestError, match=r"_proj: expected factors within float32 once weighted"):
        export(stack, tmp_path / "one")
    (change, *_) = stack.changes
    with pytest.raises(ModelFileError, match="expected finite weights with the adapters in them"):
        change.merged(0, base_reader(file)(change.role, change.layer))
