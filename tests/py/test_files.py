"""Locks, positional reads and replacement: this system's, and Windows' with stand-ins for what only Windows has."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pyinfer import files


def fake_msvcrt() -> ModuleType:
    """`msvcrt` with a lock that, as Windows' does, belongs to a descriptor and fails with EACCES."""
    import fcntl

    def locking(descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0x7FFFFFFE
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EACCES, "Permission denied") from None

    module = ModuleType("msvcrt")
    module.LK_NBLCK = 2  # type: ignore[attr-defined]
    module.locking = locking  # type: ignore[attr-defined]
    return module


@pytest.fixture(params=["this system", "windows"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if request.param == "this system" or sys.platform == "win32":
        yield files
        return
    with monkeypatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        windows.setitem(sys.modules, "msvcrt", fake_msvcrt())
        windows.setattr(os, "O_BINARY", 0, raising=False)
        windows.setattr(os, "O_NOINHERIT", 0, raising=False)
        windows.delitem(sys.modules, "pyinfer.files.windows", raising=False)
        loaded = importlib.import_module("pyinfer.files.windows")
        windows.setattr(sys, "platform", "linux")
        yield loaded
    sys.modules.pop("pyinfer.files.windows", None)


def test_reads_and_writes_at_a_place_from_many_threads(module: ModuleType, tmp_path: Path) -> None:
    descriptor = module.open_locked(tmp_path / "a")
    blocks = [bytes([number]) * 1000 for number in range(50)]

    def write(number: int) -> None:
        assert module.write_at(descriptor, [memoryview(blocks[number])], number * 1000) == 1000

    in_threads(write)
    os.close(descriptor)
    reading = module.open_to_read(tmp_path / "a")
    found: dict[int, bytes] = {}

    def read(number: int) -> None:
        data = bytearray(1000)
        assert module.read_at(reading, memoryview(data), number * 1000) == 1000
        found[number] = bytes(data)

    in_threads(read)
    assert [found[number] for number in range(50)] == blocks
    assert module.read_at(reading, memoryview(bytearray(10)), 50_000) == 0
    assert module.read_at(reading, memoryview(bytearray(10)), 49_996) == 4
    os.close(reading)


def in_threads(work: object) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_at_a_time_writes_a_file(module: ModuleType, tmp_path: Path) -> None:
    first = module.open_locked(tmp_path / "a")
    with pytest.raises(BlockingIOError, match="another conversion is writing this file"):
        module.open_locked(tmp_path / "a")
    os.close(first)
    os.close(module.open_locked(tmp_path / "a"))


def test_a_lock_is_waited_for(module: ModuleType, tmp_path: Path) -> None:
    held = module.open_locked(tmp_path / "a")
    got = threading.Event()

    def wait() -> None:
        with open(tmp_path / "a", "a+b") as file:
            module.lock(file.fileno())
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.wait(0.2)
    os.close(held)
    waiting.join(5)
    assert got.is_set()


def test_views_are_written_one_behind_the_other(module: ModuleType, tmp_path: Path) -> None:
    """As many as a call takes: at least the first."""
    views = [memoryview(bytes([number % 251]) * (1 + number % 3)) for number in range(3000)]
    descriptor = module.open_locked(tmp_path / "a")
    done = module.write_at(descriptor, views, 7)
    os.close(descriptor)
    assert len(views[0]) <= done
    assert (tmp_path / "a").read_bytes() == bytes(7) + b"".join(views)[:done]


def test_publish_replaces_and_discard_removes(module: ModuleType, tmp_path: Path) -> None:
    output, temporary = tmp_path / "a", tmp_path / ".a.partial"
    output.write_bytes(b"old")
    module.discard(module.open_locked(temporary), temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and output.read_bytes() == b"old"
    descriptor = module.open_locked(temporary)
    module.write_at(descriptor, [memoryview(b"new")], 0)
    module.publish(descriptor, temporary, output)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and output.read_bytes() == b"new"
    with pytest.raises(OSError, match=r"[Bb]ad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.skipif(sys.platform == "win32", reason="these are POSIX")
def test_file_systems_without_locks_and_folders_that_cannot_be_synchronised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre without its option, NFS without its daemon; CIFS, and folders that may be written but not read."""
    import fcntl

    def refused(code: int) -> Callable[..., None]:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        return refuse

    with monkeypatch.context() as odd:
        odd.setattr(os, "fsync", refused(errno.EINVAL))
        descriptor = files.open_locked(tmp_path / ".a.partial")
        files.publish(descriptor, tmp_path / ".a.partial", tmp_path / "a")
        assert os.listdir(tmp_path) == ["a"]
    before = len(os.listdir("/dev/fd"))
    for code in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EIO):
        monkeypatch.setattr(fcntl, "flock", refused(code))
        said = "Input/output error" if code == errno.EIO else "the file system has no locks"
        with pytest.raises(OSError, match=said):
            files.open_locked(tmp_path / "a")
        assert len(os.listdir("/dev/fd")) == before


def test_a_replacement_waits_for_whoever_has_the_file_open(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is files:
        pytest.skip("of Windows")
    tries, replace = [0], os.replace

    def busy(old: Path, new: Path) -> None:
        tries[0] += 1
        if tries[0] < 3:
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(old, new)

    monkeypatch.setattr(os, "replace", busy)
    (tmp_path / "new").write_bytes(b"new")
    module.replace(tmp_path / "new", tmp_path / "a")
    assert (tries[0], (tmp_path / "a").read_bytes()) == (3, b"new")


def test_a_failed_replacement_leaves_nothing_behind(module: ModuleType, tmp_path: Path) -> None:
    output, temporary = tmp_path / "folder", tmp_path / ".a.partial"
    (output / "in it").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        module.publish(module.open_locked(temporary), temporary, output)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_is_not_read(module: ModuleType, tmp_path: Path) -> None:
    if module is files and sys.platform != "win32":
        pytest.skip("a folder can be opened here, and open_regular tells it apart")
    with pytest.raises(IsADirectoryError, match="found a folder"):
        module.open_to_read(tmp_path)
