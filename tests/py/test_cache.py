"""The cache folder: where it is, what it holds, two processes at once, and what cannot be written."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from pyinfer import cache
from pyinfer.errors import PyinferError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_variable_chooses_the_folder(folder: Path) -> None:
    assert cache.folder() == folder
    assert not folder.exists(), "asking where it is makes nothing"


@pytest.mark.skipif(sys.platform == "darwin", reason="the XDG folders are Linux's")
@pytest.mark.parametrize(
    ("xdg", "expected"),
    [("/somewhere", "/somewhere/pyinfer"), ("", "~/.cache/pyinfer"), ("not/absolute", "~/.cache/pyinfer")],
)
def test_the_platform_chooses_without_it(xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYINFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache.folder() == Path(expected).expanduser()


def test_no_home_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYINFER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(PyinferError, match="PYINFER_CACHE"):
        cache.folder()


def test_a_home_that_nobody_has_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYINFER_CACHE", "~no-such-user/cache")
    with pytest.raises(PyinferError, match=r"^PYINFER_CACHE: expected a folder, found '~no-such-user/cache'"):
        cache.folder()


def test_an_entry_is_made_once_and_listed(folder: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"12345")

    path = cache.add("key", "a model", "/a/path", make)
    assert cache.add("key", "another name", "elsewhere", make) == path
    assert len(made) == 1
    [entry] = cache.entries()
    assert (entry.key, entry.name, entry.source, entry.bytes, entry.path) == (
        "key",
        "a model",
        "/a/path",
        5,
        path,
    )
    assert entry.created.startswith(time.strftime("%Y-", time.gmtime()))


def test_a_failed_conversion_leaves_no_entry() -> None:
    def fail(path: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.add("key", "name", "source", fail)
    assert cache.entries() == []


@pytest.mark.parametrize("note", ["", "[]", "{", '{"name": 3}', "\xff"])
def test_a_lost_or_broken_note_loses_only_the_name(note: str) -> None:
    path = cache.add("key", "name", "source", lambda path: path.write_bytes(b"1"))
    path.with_suffix(".json").write_bytes(note.encode("latin-1"))
    [entry] = cache.entries()
    assert (entry.name, entry.source, entry.bytes) == ("key", "", 1)


def test_a_name_is_remembered_as_long_as_its_model_is_there() -> None:
    assert cache.named("alias") is None
    path = cache.add("key", "name", "source", lambda path: path.write_bytes(b"1"))
    cache.remember("alias", "key")
    assert cache.named("alias") == path
    path.unlink()
    assert cache.named("alias") is None


@pytest.mark.parametrize("key", ["", "../up", "a/b", "a\0b", "x" * 201])
def test_keys_cannot_leave_the_folder(key: str) -> None:
    with pytest.raises(PyinferError, match="cache key"):
        cache.add(key, "name", "source", lambda path: None)
    with pytest.raises(PyinferError, match="cache key"):
        cache.remember(key, "key")


def test_a_file_in_place_of_the_folder_is_one_sentence(folder: Path) -> None:
    folder.write_text("in the way")
    with pytest.raises(PyinferError, match=rf"cannot write to the cache folder {folder}.*PYINFER_CACHE"):
        cache.add("key", "name", "source", lambda path: None)
    with pytest.raises(PyinferError, match=rf"^cannot read the cache folder {folder}.*PYINFER_CACHE"):
        cache.entries()


def _locked_out(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a folder of mode 000, which root could read."""
    denied = PermissionError(13, "Permission denied")

    def refuses(name: str) -> None:
        real = getattr(os, name)

        def call(path: object = ".", *rest: object, **more: object) -> object:
            if str(path).startswith(str(where)):
                raise denied
            return real(path, *rest, **more)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "mkdir", "listdir"):
        refuses(name)


def test_a_folder_that_cannot_be_entered_is_told_with_advice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _locked_out(folder, monkeypatch)
    told = "Permission denied; set PYINFER_CACHE"
    with pytest.raises(PyinferError, match=rf"^cannot write to the cache folder {folder}/models: {told}"):
        cache.add("key", "name", "source", lambda path: None)
    with pytest.raises(PyinferError, match=rf"^cannot read the cache folder {folder}/models: {told}"):
        cache.entries()
    assert cache.named("alias") is None


def test_models_that_cannot_be_looked_at_are_not_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder of mode 444: names can be read, nothing else."""
    path = cache.add("key", "name", "source", lambda path: path.write_bytes(b"1"))
    _locked_out(path, monkeypatch)
    with pytest.raises(PyinferError, match=rf"^cannot read the cache folder {folder}/models: Permission"):
        cache.entries()


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    for content, expected in (("naïve\n", "naïve\n".encode()), (b"\r\n\xff", b"\r\n\xff")):
        cache.write_whole(path, content)
        assert path.read_bytes() == expected
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        cache.write_whole(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"\r\n\xff"
    assert sorted(os.listdir(tmp_path)) == ["note", "plain"]


def _add_slowly(log: str) -> None:
    def make(path: Path) -> None:
        with open(log, "a") as file:
            file.write("made\n")
        time.sleep(0.5)
        path.write_bytes(b"1")

    cache.add("key", "name", "source", make)


def test_two_processes_do_not_convert_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_slowly, args=(str(log),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert log.read_text() == "made\n"
