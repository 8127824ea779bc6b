"""The C interface through cffi: the same tokens, bits and exceptions as `_core`, and what it refuses."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyinfer import Adapter, SamplingParams, _core, capi, errors
from pyinfer.convert.checkpoint import Spec
from pyinfer.stack import _module, base_reader, stacked
from pyinfer.tokenizer import Tokenizer
from test_quality import POSITIONS, STORY, prose

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc" / "api" / "pyinfer.h"
EXCITED = ROOT / "examples" / "adapters" / "excited"
PROMPT = [1, 403, 407, 261, 378]
SEEN = {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.97, "seed": 2**63 + 5}
SEEN |= {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1, "penalty_window": 16}
SEEN |= {"logit_bias": {5: 1.5, 7: float("-inf")}}


@pytest.fixture(scope="module")
def model(stories_model_bin: Path) -> Iterator[capi.Model]:
    with capi.Model(stories_model_bin, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(stories_model_bin: Path) -> _core.Engine:
    return _core.Engine(_core.ModelFile(str(stories_model_bin)), 2)


def continued(session: Any, sampler: Any, prompt: list[int], n: int, eos: tuple[int, ...] = ()) -> list[int]:
    """Tokens after a prompt, by either interface."""
    ids = np.array(prompt, np.int32)
    for token in prompt:
        sampler.accept(token)
    logits = session.eval(ids)[0]
    tokens: list[int] = []
    while len(tokens) < n:
        token = sampler.pick(logits)
        if token in eos:
            break
        tokens.append(token)
        sampler.accept(token)
        logits = session.step(token)
    return tokens


# The same results as through pybind11


def test_the_story_is_the_one_that_its_authors_program_tells(model: capi.Model) -> None:
    tokenizer = Tokenizer.open(model)  # type: ignore[arg-type]
    with model.session() as session:
        tokens = continued(session, model.sampler(temperature=0), tokenizer.encode(""), 60)
    assert tokenizer.decode(tokens).strip().startswith(STORY)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, SEEN, {"seed": 3}], ids=["greedy", "all", "seed"])
def test_tokens_are_those_of_the_other_interface(
    model: capi.Model, engine: _core.Engine, params: dict[str, Any]
) -> None:
    ours = continued(model.session(), model.sampler(**params), PROMPT, 100)
    theirs = continued(_core.Session(engine, 512), _core.Sampler(512, params), PROMPT, 100)  # type: ignore[arg-type]
    assert ours == theirs
    assert len(ours) == 100


@pytest.mark.parametrize("kv", ["auto", "f16", "i16", "q8"])
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_logits_are_the_same_bits(stories_model_bin: Path, activations: Any, kv: Any) -> None:
    ids = np.arange(200, dtype=np.int32)
    other = _core.Engine(_core.ModelFile(str(stories_model_bin)), 1, activations)
    with capi.Model(stories_model_bin, threads=2, activations=activations, kv=kv) as opened:
        ours = opened.session().eval(ids, "all", chunk=33)
    assert np.array_equal(ours, _core.Session(other, 512, kv).eval(ids, "all"))


@pytest.mark.model
def test_golden_tokens_of_smollm2(smollm2_bin: Path) -> None:
    """All logits along the golden text, and the tokens that follow it."""
    ids = prose()["ids"][:POSITIONS]
    theirs = _core.Session(_core.Engine(_core.ModelFile(str(smollm2_bin))), 512)
    rows = theirs.eval(np.array(ids, np.int32), "all")
    with capi.Model(smollm2_bin) as opened, opened.session(512) as ours:
        assert np.array_equal(ours.eval(ids, "all"), rows)
        ours.truncate(0)
        theirs.truncate(0)
        greedy = {"temperature": 0.0}
        tokens = continued(ours, opened.sampler(**greedy), ids, 40)
        assert tokens == continued(theirs, _core.Sampler(opened.n_vocab, greedy), ids, 40)  # type: ignore[arg-type]


def test_what_a_model_says_of_itself(
    model: capi.Model, engine: _core.Engine, stories_model_bin: Path
) -> None:
    file = _core.ModelFile(str(stories_model_bin))
    told = model.spec
    assert told == {name: value for name, value in file.spec.items() if name in told} and len(told) == 13
    assert (model.threads, model.file_bytes, model.n_vocab) == (2, file.file_bytes, 512)
    assert (model.metadata(), model.tokenizer()) == (file.metadata(), file.tokenizer())
    for kv in ("auto", "f16", "i16", "q8"):
        assert model.memory(100, kv) == engine.memory(100, kv)  # type: ignore[arg-type]
    keys = ("role", "format", "layer", "rows", "cols", "bytes")
    assert model.tensors == [{key: dict(tensor)[key] for key in keys} for tensor in file.tensors]
    assert all(model.verify(i) for i in range(len(model.tensors)))
    assert (capi.library().version, capi.library().isa) == (_core.__version__, _core.active_isa())


def test_adapters_change_the_same_bits(
    model: capi.Model, engine: _core.Engine, stories_model_bin: Path
) -> None:
    file = _core.ModelFile(str(stories_model_bin))
    stack = stacked([(Adapter.load(EXCITED), 0.7)], Spec(**file.spec), base_reader(file))
    modules = [_module(change) for change in stack.changes]
    norm = {"role": "final_norm", "layer": -1, "values": np.linspace(0.5, 1.5, 64, dtype=np.float32)}
    for replaced in ([], [norm]):
        theirs = _core.Session(engine, 512)
        theirs.adapters = _core.AdapterSet(engine, modules, replaced)  # type: ignore[arg-type]
        with model.session() as ours, model.adapters(modules, replaced) as packed:  # type: ignore[arg-type]
            bare = ours.eval(PROMPT)
            assert packed.bytes == theirs.adapters.bytes
            ours.adapters = packed
            ours.truncate(0)
            changed = ours.eval(PROMPT)
            assert np.array_equal(changed, theirs.eval(np.array(PROMPT, np.int32)))
            assert not np.array_equal(changed, bare)
            ours.adapters = None
            ours.truncate(0)
            assert np.array_equal(ours.eval(PROMPT), bare)


# Errors


def of_both(
    model: capi.Model, engine: _core.Engine, call: Callable[[Any, Any], object]
) -> tuple[Exception, Exception]:
    """What a call raises by either interface, with a session and a sampler of each."""
    found: list[Exception] = []
    sampler = {"temperature": 0.0}
    pairs = (
        (model.session(16), model.sampler(**sampler)),
        (_core.Session(engine, 16), _core.Sampler(512, sampler)),  # type: ignore[arg-type]
    )
    for session, picker in pairs:
        with pytest.raises(errors.PyinferError) as caught:
            call(session, picker)
        found.append(caught.value)
    return found[0], found[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda session, _: session.step(512),
        lambda session, _: session.step(-1),
        lambda session, _: session.eval(np.array([3, 600], np.int32)),
        lambda session, _: session.eval(np.zeros(17, np.int32)),
        lambda session, _: session.eval(np.zeros(1, np.int32), "some"),
        lambda session, _: session.truncate(5),
        lambda session, _: (session.cancel(), session.step(1)),
        lambda session, _: (session.close(), session.step(1)),
        lambda session, _: (session.close(), session.position),
        lambda _, sampler: sampler.pick(np.full(512, np.nan, np.float32)),
        lambda _, sampler: sampler.accept(512),
    ],
)
def test_errors_are_the_same(
    model: capi.Model, engine: _core.Engine, call: Callable[[Any, Any], object]
) -> None:
    ours, theirs = of_both(model, engine, call)
    assert type(ours) is type(theirs)
    closed = "found it closed"
    assert str(ours) == str(theirs) or (closed in str(ours) and closed in str(theirs))


@pytest.mark.parametrize("name", [*SEEN, "nothing"])
def test_sampling_is_refused_in_the_same_words(model: capi.Model, name: str) -> None:
    bad: dict[str, Any] = {name: {5: 2000.0} if name == "logit_bias" else 2**31 if name == "top_k" else 1e9}
    bad |= {"penalty_window": -1} if name == "penalty_window" else {}
    bad |= {"seed": -1} if name == "seed" else {}
    with pytest.raises(errors.RequestError, match=name) as ours:
        model.sampler(**bad)
    with pytest.raises(errors.RequestError, match=name) as theirs:
        _core.Sampler(512, bad)  # type: ignore[arg-type]
    numbers = name in ("top_k", "seed", "penalty_window")  # refused by what carries them over
    assert numbers or str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", ["size", "reserved", "n_logit_bias"])
def test_fields_of_the_struct_are_no_sampling_parameters(model: capi.Model, name: str) -> None:
    with pytest.raises(errors.RequestError) as caught:
        model.sampler(**{name: 8, "temperature": 0})
    assert str(caught.value) == f"sampling: expected a parameter of SamplingParams, found {name}"


@pytest.mark.parametrize(
    "tokens",
    [
        (3, 4),
        range(3, 5),
        (token for token in (3, 4)),
        {3: "keys", 4: "count"},
        b"\3\4",
        [np.int64(3), np.uint8(4)],
        np.array([3, 4]),
        np.array([3, 4], np.uint64),
        np.array([3, 4], ">i4"),
        np.array([3, 0, 4, 0], np.int32)[::2],
    ],
    ids=lambda tokens: type(tokens).__name__,
)
def test_tokens_may_be_any_whole_numbers_in_a_row(model: capi.Model, tokens: Any) -> None:
    with model.session(16) as session:
        expected = session.eval(np.array([3, 4], np.int32), "all")
        session.truncate(0)
        assert np.array_equal(session.eval(tokens, "all"), expected)


@pytest.mark.parametrize("tokens", [[], np.array([]), np.zeros(0, np.int32), iter(())])
def test_no_tokens_are_no_work(model: capi.Model, tokens: Any) -> None:
    with model.session(16) as session:
        assert session.eval(tokens).shape == (0, 512)
        assert session.position == 0


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2], [3, 4]], "tokens: expected one dimension, found 2"),
        (np.zeros((0, 2), np.int32), "tokens: expected one dimension, found 2"),
        (5, "tokens: expected one dimension, found 0"),
        (np.int32(5), "tokens: expected one dimension, found 0"),
        ([[1], [2, 3]], "token: expected 0 to 511, found [1]"),
        ([2**32 + 1], "token: expected 0 to 511, found 4294967297"),
        ([2**63, -1], "token: expected 0 to 511, found 9223372036854775808"),
        ([1, 2**70], "token: expected 0 to 511, found 1180591620717411303424"),
        (np.array([1, 2**32 + 1]), "token: expected 0 to 511, found 4294967297"),
        (np.array([2**64 - 1], np.uint64), "token: expected 0 to 511, found 18446744073709551615"),
        ([1, 512], "token: expected 0 to 511, found 512"),
        ([1, -1], "token: expected 0 to 511, found -1"),
        ([1, 2.0], "token: expected 0 to 511, found 2.0"),
        ([True], "token: expected 0 to 511, found True"),
        (["1"], "token: expected 0 to 511, found '1'"),
        ([None], "token: expected 0 to 511, found None"),
        (np.array([1.0]), "tokens: expected whole numbers, found float64"),
        (np.array([True]), "tokens: expected whole numbers, found bool"),
        (np.array([1], object), "tokens: expected whole numbers, found object"),
    ],
    ids=str,
)
def test_tokens_that_are_none_are_refused(model: capi.Model, tokens: Any, message: str) -> None:
    with model.session(16) as session:
        with pytest.raises(errors.RequestError) as caught:
            session.eval(tokens)
        assert str(caught.value) == message
        assert session.position == 0


@pytest.mark.parametrize("value", [-1, 2**64, 2**70, 1.5, np.float32(1.5), "1", None, True], ids=repr)
@pytest.mark.parametrize(
    ("expected", "call"),
    [
        ("context: expected a whole number in range", lambda model, value: model.memory(value)),
        ("context: expected a whole number in range", lambda model, value: model.session(value)),
        ("tensor: expected 0 to 47", lambda model, value: model.verify(value)),
        ("position: expected 0 to 0", lambda model, value: model.session(16).truncate(value)),
        ("token: expected 0 to 511", lambda model, value: model.session(16).step(value)),
        (
            "chunk: expected a whole number in range",
            lambda model, value: model.session(16).eval([1], chunk=value),
        ),
        ("accepted token: expected 0 to 511", lambda model, value: model.sampler().accept(value)),
        ("seed: expected a whole number in range", lambda model, value: model.sampler(seed=value)),
        (
            "token of logit_bias: expected 0 to 511",
            lambda model, value: model.sampler(logit_bias={value: 1.0}),
        ),
        ("n_vocab: expected a whole number in range", lambda _, value: capi.Sampler(value, {})),
    ],
)
def test_numbers_that_c_cannot_hold_are_refused(
    model: capi.Model, expected: str, call: Callable[[capi.Model, Any], object], value: Any
) -> None:
    with pytest.raises(errors.RequestError) as caught:
        call(model, value)
    assert str(caught.value) == f"{expected}, found {value!r}"


@pytest.mark.parametrize("value", ["hot", None, 10**400, [1.0]], ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_refused(model: capi.Model, value: Any) -> None:
    for name, params in (("min_p", {"min_p": value}), ("logit_bias", {"logit_bias": {5: value}})):
        with pytest.raises(errors.RequestError) as caught:
            model.sampler(**params)
        assert str(caught.value) == f"{name}: expected a number in range, found {value!r}"


def test_the_chunk_has_limits_here(model: capi.Model) -> None:
    with model.session(16) as session:
        for chunk in (0, 513):
            with pytest.raises(errors.RequestError, match=rf"^chunk: expected 1 to 512, found {chunk}$"):
                session.eval([1], chunk=chunk)
        assert session.eval([1], chunk=512).shape == (1, 512)
    assert "`chunk` is from 1 to 512" in str(capi.Session.eval.__doc__)


def test_layers_and_roles_of_adapters_that_c_cannot_hold(model: capi.Model) -> None:
    norm: dict[str, Any] = {"role": "final_norm", "layer": -1, "values": np.ones(64, np.float32)}
    for change, message in (
        ({"layer": 2**63}, "layer: expected a whole number in range, found 9223372036854775808"),
        ({"layer": -1.0}, "layer: expected a whole number in range, found -1.0"),
        ({"role": "final_norm\0junk"}, "role: expected no NUL, found one"),
        ({"format": "f32\0junk"}, "format: expected no NUL, found one"),
    ):
        with pytest.raises(errors.RequestError) as caught:
            model.adapters([], [norm | change])  # type: ignore[list-item]
        assert str(caught.value) == message


@pytest.mark.parametrize("key", ["role", "layer", "values"])
def test_what_adapters_lack_or_have_too_much_is_said(key: str, model: capi.Model) -> None:
    norm: dict[str, Any] = {"role": "final_norm", "layer": -1, "values": np.ones(64, np.float32)}
    del norm[key]
    with pytest.raises(errors.RequestError, match=rf"^replaced: expected the key {key}, found none$"):
        model.adapters([], [norm])  # type: ignore[list-item]
    with pytest.raises(errors.RequestError, match=r"^module: expected keys of _core.pyi, found gian$"):
        model.adapters([{"role": "q", "layer": 0, "gian": None}])  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (1, errors.ModelFileError),
        (2, errors.UnsupportedError),
        (3, errors.RequestError),
        (4, errors.ContextFullError),
        (5, errors.Cancelled),
        (6, errors.MemoryLimitError),
        (7, OSError),
        (8, errors.PyinferError),
    ],
)
def test_every_status_is_an_exception(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        capi.library().check(status)
    assert type(caught.value) is kind
    names = re.findall(r"PYI_\w+ = (\d+),?\s*/\*", HEADER.read_text(encoding="utf-8"))
    assert names[:8] == [str(i) for i in range(1, 9)]


def test_a_path_does_not_end_at_a_nul(stories_model_bin: Path) -> None:
    for path in (f"{stories_model_bin}\0junk", os.fsencode(stories_model_bin) + b"\0"):
        with pytest.raises(errors.RequestError, match=r"^path: expected no NUL, found one$"):
            capi.Model(path)  # type: ignore[arg-type]


def test_files_that_are_no_models(tmp_path: Path, stories_model_bin: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such"):
        capi.Model(tmp_path / "no such.bin")
    odd = tmp_path / "ö.bin"
    odd.write_bytes(stories_model_bin.read_bytes()[:-64])
    with pytest.raises(errors.ModelFileError, match=r"ö\.bin: file_bytes"):
        capi.Model(odd)
    shutil.copyfile(stories_model_bin, odd)
    with capi.Model(odd) as opened, opened.session() as session:
        os.truncate(odd, 4096)
        with pytest.raises(errors.ModelFileError, match="was cut while in use"):
            session.step(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 257}, "threads: expected 1 to 256, found 257"),
        ({"threads": 2**40}, "threads: expected a whole number in range, found 1099511627776"),
        ({"threads": 1.5}, "threads: expected a whole number in range, found 1.5"),
        ({"context_limit": -1}, "context_limit: expected a whole number in range, found -1"),
        ({"context_limit": 513}, "context_limit: expected at most 512"),
        ({"kv": "q4"}, "kv: expected auto, f16, i16 or q8, found q4"),
        ({"activations": "int4"}, "activations: expected int8 or f32, found int4"),
    ],
)
def test_options_outside_their_limits(stories_model_bin: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.RequestError, match=f"^{message}"):
        capi.Model(stories_model_bin, **options)


def test_memory_that_the_system_refuses(stories_model_bin: Path) -> None:
    resource = pytest.importorskip("resource")
    code = (
        "import resource, sys\nfrom pyinfer import capi, errors\n"
        "model = capi.Model(sys.argv[1], threads=1)\nfirst = model.session()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (0, resource.getrlimit(resource.RLIMIT_AS)[1]))\n"
        "try:\n    model.session()\nexcept errors.MemoryLimitError as error:\n"
        "    print(error)\n    first.step(1)\n    print(first.position)\n"
    )
    assert resource is not None
    command = [sys.executable, "-c", code, str(stories_model_bin)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.fullmatch(r"expected \d+ bytes of memory, the system refused them", said[0])
    assert said[1] == "1"


# Closing, threads, forks, signals


def test_handles_may_be_closed_in_any_order_and_twice(stories_model_bin: Path) -> None:
    opened = capi.Model(stories_model_bin)
    session, sampler = opened.session(), opened.sampler(temperature=0)
    opened.close()
    opened.close()
    row = session.eval(PROMPT)
    assert sampler.pick(row) >= 0
    for call in (opened.session, lambda: opened.spec, opened.metadata, lambda: opened.memory(5)):
        with pytest.raises(errors.RequestError, match=r"^model: expected an open one, found it closed$"):
            call()
    session.close()
    sampler.close()
    with pytest.raises(errors.RequestError, match=r"^sampler: expected an open one, found it closed$"):
        sampler.pick(row)


def test_what_is_collected_is_freed(stories_model_bin: Path) -> None:
    """Open files are those of models that are still open."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc/self/fd here")

    def mapped() -> int:
        return sum(os.path.realpath(fd) == str(stories_model_bin.resolve()) for fd in _descriptors())

    gc.collect()
    before = mapped()
    opened = capi.Model(stories_model_bin)
    session = opened.session()
    assert mapped() == before + 1
    del opened
    gc.collect()
    assert mapped() == before + 1
    assert session.eval(PROMPT).shape == (1, 512)
    del session
    gc.collect()
    assert mapped() == before


def _descriptors() -> list[str]:
    return [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]


def test_each_of_16_threads_gets_what_it_gets_alone(model: capi.Model) -> None:
    def answer(seed: int) -> list[int]:
        return continued(model.session(), model.sampler(seed=seed, temperature=1.5), PROMPT, 30)

    alone = [answer(seed) for seed in range(16)]
    together: list[Any] = [None] * 16

    def work(seed: int) -> None:
        together[seed] = answer(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_steps_release_the_interpreter_and_can_be_cancelled(model: capi.Model) -> None:
    with model.session() as session:
        threading.Timer(0.1, session.cancel).start()
        with pytest.raises(errors.Cancelled):
            while True:
                session.truncate(0)
                session.eval(np.zeros(512, np.int32), "none", chunk=1)


def test_what_another_thread_closes_meanwhile(stories_model_bin: Path) -> None:
    """A call that runs gives whole results, the next one an error."""
    with capi.Model(stories_model_bin) as opened:
        expected = opened.session().step(1)
        session = opened.session(16)
        closer = threading.Timer(0.05, session.close)
        closer.start()
        with pytest.raises(errors.RequestError, match="found it closed"):
            while True:
                np.testing.assert_array_equal(session.step(1), expected)
                session.truncate(0)
        closer.join()
    opened, blob = capi.Model(stories_model_bin), None
    closer = threading.Timer(0.05, opened.close)
    closer.start()
    with pytest.raises(errors.RequestError, match="found it closed"):
        while True:
            blob, before = opened.tokenizer(), blob
            assert before in (None, blob)
    closer.join()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")
def test_ctrl_c_ends_a_prefill(model: capi.Model) -> None:
    with model.session() as session:
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            while time.monotonic() - started < 20:
                session.truncate(0)
                session.eval(np.zeros(512, np.int32), "none", chunk=1)
        timer.join()
        session.truncate(0)
        assert session.eval(PROMPT).shape == (1, 512)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_gets_an_error_and_may_open_its_own(model: capi.Model, stories_model_bin: Path) -> None:
    from test_api_process import in_fork

    session = model.session()
    expected = session.eval(PROMPT)

    def work() -> bool:
        try:
            session.step(1)
        except errors.RequestError as error:
            refused = "found a fork" in str(error)
        with capi.Model(stories_model_bin, threads=2) as own:
            return refused and np.array_equal(own.session().eval(PROMPT), expected)

    assert in_fork(work) == 0
    assert session.step(1).shape == (512,)


# The library and its header


def test_the_packaged_header_is_that_of_the_sources() -> None:
    packaged = capi.library().path.with_name("pyinfer.h")
    assert packaged.read_text(encoding="utf-8") == HEADER.read_text(encoding="utf-8")


def test_every_function_is_declared_and_exported() -> None:
    if not shutil.which("nm"):
        pytest.skip("no nm here")
    command = [sys.executable, str(ROOT / "tools" / "check_exports.py"), str(capi.library().path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    of = capi.library()
    for name in re.findall(r"\b(pyi_\w+)\(", capi.declarations(HEADER.read_text(encoding="utf-8"))):
        assert getattr(of.lib, name) is not None


def test_sampling_has_the_fields_and_defaults_of_the_others() -> None:
    of = capi.library()
    made = of.options("pyi_sampling")
    names = {name for name, _ in of.ffi.typeof("pyi_sampling").fields} - {"size", "n_logit_bias", "reserved"}
    assert names == {field.name for field in dataclasses.fields(SamplingParams)}
    assert names == set(_core_sampler_fields())
    for name in names - {"logit_bias", "seed"}:
        assert getattr(made, name) == np.float32(getattr(SamplingParams(), name)), name


def _core_sampler_fields() -> list[str]:
    text = (ROOT / "pyinfer" / "_core.pyi").read_text(encoding="utf-8")
    block = text.split("class SamplerParams", 1)[1].split("\ndef ", 1)[0]
    return re.findall(r"^    (\w+):", block, re.MULTILINE)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_library_may_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    shutil.copyfile(capi.library().path, other)
    code = "from pyinfer import capi; print(capi.library().path)"
    assert run(code, PYINFER_LIBRARY=str(other)).stdout.strip() == str(other)
    for bad in (tmp_path / "none.so", Path(__file__)):
        failed = run(code, PYINFER_LIBRARY=str(bad)).stderr
        assert "PyinferError: expected a libpyinfer that can be loaded, found: " in failed


def test_a_library_of_another_abi_is_refused(tmp_path: Path) -> None:
    header = tmp_path / "pyinfer.h"
    header.write_text(HEADER.read_text(encoding="utf-8").replace("PYI_ABI_VERSION 1", "PYI_ABI_VERSION 2"))
    with pytest.raises(errors.UnsupportedError, match=r"expected ABI version 2, found 1$"):
        capi.Library(capi.library().path, header)


def test_it_needs_no_core_module(stories_model_bin: Path) -> None:
    """An interpreter without `_core` runs a model.bin."""
    code = (
        "import sys; sys.modules['pyinfer._core'] = None\n"
        "from pyinfer import capi\n"
        f"model = capi.Model({str(stories_model_bin)!r}); print(model.session().eval([1, 2]).shape)\n"
    )
    done = run(code)
    assert done.stdout == "(1, 512)\n", done.stderr


def test_without_cffi_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['cffi'] = None\nfrom pyinfer import capi\ncapi.library()"
    assert "PyinferError: pyinfer.capi needs cffi: pip install cffi" in run(code).stderr
