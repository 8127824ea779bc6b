"""What the bindings themselves must catch: arrays that are not what they seem, None, numbers that would wrap."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyinfer import _core
from pyinfer.errors import ModelFileError, RequestError


@pytest.fixture(scope="module")
def engine(stories_model_bin: Path) -> _core.Engine:
    return _core.Engine(_core.ModelFile(str(stories_model_bin)), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([1.7]),
        np.array([True]),
        np.array([2**32 + 5]),
        np.array([2**63 + 5], np.uint64),
        np.array([-1]),
        np.array(["5"]),
        np.array([[1]]),
        np.array(5),
    ],
)
def test_tokens_are_integers_and_do_not_wrap(engine: _core.Engine, wrong: Any) -> None:
    session = _core.Session(engine, 64)
    with pytest.raises(RequestError, match="token"):
        session.eval(wrong)
    with pytest.raises(RequestError, match="token"):
        _core.forward(engine, [(session, wrong, "last")])
    assert session.position == 0


def test_what_is_no_array_is_told_as_numpy_tells_it(engine: _core.Engine) -> None:
    class Broken:
        def __array__(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    session = _core.Session(engine, 64)
    with pytest.raises(ValueError, match="inhomogeneous"):
        session.eval([[1], [2, 3]])  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        session.eval(Broken())  # type: ignore[arg-type]
    assert session.position == 0


def test_a_batch_that_is_made_as_it_goes(engine: _core.Engine) -> None:
    """Nobody else holds its sessions."""
    ids = np.array([1, 403, 7], np.int32)
    expected = _core.Session(engine, 64).eval(ids)
    found = _core.forward(engine, ((_core.Session(engine, 64), ids, "last") for _ in range(3)))  # type: ignore[arg-type]
    assert all(np.array_equal(logits, expected) for logits in found)
    for wrong in (None, 5):
        with pytest.raises(RequestError, match="batch: expected a session in every item, found "):
            _core.forward(engine, [(wrong, ids, "last")])  # type: ignore[list-item]


def test_any_integers_are_tokens(engine: _core.Engine) -> None:
    ids = [1, 403, 7]
    expected = _core.Session(engine, 64).eval(np.array(ids, np.int32))
    unaligned = np.frombuffer(b"\0" + np.array(ids, np.int32).tobytes(), np.int32, offset=1)
    for kind in (np.array(ids, np.int64), np.array(ids, np.uint16), np.array(ids, ">i4"), unaligned, ids):
        assert np.array_equal(_core.Session(engine, 64).eval(kind), expected)  # type: ignore[arg-type]
    assert _core.Session(engine, 64).eval([], "all").shape == (0, 512)  # type: ignore[arg-type]


def test_what_is_done_to_the_logits_of_a_step_is_nothing_to_the_next(engine: _core.Engine) -> None:
    session = _core.Session(engine, 64)
    logits = session.step(1)
    with pytest.raises(ValueError, match="resize"):
        logits.resize(1, refcheck=False)
    logits.flags.writeable = False
    again = session.step(403)
    assert again.shape == (512,) and again.flags.writeable
    expected = _core.Session(engine, 64).eval(np.array([1, 403], np.int32))[0]
    assert np.array_equal(again, expected)
    session.close()
    del session
    assert np.array_equal(again, expected)


def test_none_is_no_file_and_no_engine() -> None:
    with pytest.raises(TypeError):
        _core.Engine(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.Session(None, 64)  # type: ignore[arg-type]


def test_sizes_do_not_wrap(engine: _core.Engine) -> None:
    with pytest.raises(RequestError, match="context: expected at most"):
        engine.memory(2**64 - 1)
    with pytest.raises(RequestError, match="shape: expected at most"):
        _core.packed_bytes("q4", 2**31, 2**31)
    with pytest.raises(RequestError, match="shape: expected at most"):
        _core.dequantize("F32", np.zeros(0, np.uint8), 2**31, 2**31)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode here")
def test_names_of_files_need_not_be_utf8(stories_model_bin: Path, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/q\xff.bin")
    with pytest.raises(FileNotFoundError):
        _core.ModelFile(name)
    Path(name).write_bytes(stories_model_bin.read_bytes())
    assert _core.ModelFile(name).spec["n_vocab"] == 512
    Path(name).write_bytes(b"nothing")
    with pytest.raises(ModelFileError) as caught:
        _core.ModelFile(name)
    assert name in str(caught.value)
