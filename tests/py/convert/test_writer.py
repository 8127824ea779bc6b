"""Whatever happens while a model.bin is written, the final name holds the old file or the whole new one."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pytest

from gguf_writer import TinyLlama, write_llama
from pyinfer import _core, convert, files
from pyinfer.convert import writer
from pyinfer.errors import ModelFileError

SHAPE = TinyLlama(n_layers=2, dim=256, n_heads=4, n_kv_heads=2, n_ff=512, n_vocab=2000)
CONVERT = (
    "import sys; from pyinfer import convert; print('ready', flush=True); convert.convert(*sys.argv[1:3])"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("source") / "a.gguf", SHAPE, tokenizer="spm")


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.bin"
    convert.convert(source, path)
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_at_any_point_leaves_old_or_whole(source: Path, whole: bytes, tmp_path: Path) -> None:
    output, rng = tmp_path / "a.bin", np.random.default_rng(7)
    outcomes = set()
    for attempt in range(12):
        output.write_bytes(b"old")
        child = subprocess.Popen([sys.executable, "-c", CONVERT, source, output], stdout=subprocess.PIPE)
        assert child.stdout and child.stdout.readline() == b"ready\n"
        time.sleep(0.0 if attempt == 0 else rng.uniform(0.0, 0.06))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = output.read_bytes()
        assert found in (b"old", whole)
        outcomes.add(found)
        assert set(names(tmp_path)) <= {"a.bin", ".a.bin.partial"}
    assert b"old" in outcomes
    convert.convert(source, output)
    assert output.read_bytes() == whole and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("failing", [1, 2, 7, -1])
def test_full_disk_leaves_nothing(
    failing: int, source: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever piece it is that finds no room, or what stands before the weights and is written last."""
    calls, real = [0], files.write_at

    def write_at(descriptor: int, views: Collection[memoryview], offset: int) -> int:
        calls[0] += 1
        if calls[0] == (failing if failing > 0 else 10**9) or (failing < 0 and offset == 0 and calls[0] > 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, views, offset)

    monkeypatch.setattr(writer, "_HUGE_PAGE", len(whole) // 8)
    monkeypatch.setattr(files, "write_at", write_at)
    with pytest.raises(OSError, match="No space left") as caught:
        convert.convert(source, tmp_path / "a.bin")
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert names(tmp_path) == []
    (tmp_path / "a.bin").write_bytes(b"old")
    calls[0] = 0
    with pytest.raises(OSError, match="No space left"):
        convert.convert(source, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_file_size_limit_of_the_system(source: Path, whole: bytes, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, len(whole) // 2))

    child = subprocess.run(
        [sys.executable, "-c", CONVERT, source, tmp_path / "a.bin"],
        preexec_fn=limit,
        capture_output=True,
        check=False,
    )
    assert child.returncode == 1 and b"File too large" in child.stderr
    assert names(tmp_path) == []


def test_space_is_checked_before_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(OSError, match=r"expected \d+\.\d MB of free disk, found 0\.0 MB") as caught:
        convert.convert(source, tmp_path / "a.bin")
    assert caught.value.errno == errno.ENOSPC and names(tmp_path) == []


@pytest.mark.parametrize("what", ["metadata", "tokenizer"])
def test_blobs_beyond_the_format_are_refused(
    what: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(writer.MAX_BLOB, what, 100)
    with pytest.raises(ModelFileError, match=f"{what}: expected at most 100 bytes"):
        convert.convert(source, tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_output_must_not_be_the_source(link: object, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.gguf"
    shutil.copyfile(source, copy)
    output = copy
    if callable(link):
        output = tmp_path / "b.bin"
        link(copy, output)
    with pytest.raises(ModelFileError, match="expected another file than the source"):
        convert.convert(copy, output)
    assert copy.read_bytes() == source.read_bytes()


def test_unwritable_places_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        convert.convert(source, tmp_path / "no-such-folder" / "a.bin")
    with pytest.raises(IsADirectoryError, match="found a folder"):
        convert.convert(source, tmp_path)
    with pytest.raises(OSError, match="proc"):
        convert.convert(source, "/proc/a.bin")


def test_a_device_is_not_replaced_by_a_file(source: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "a.bin"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="expected a regular file or none"):
        convert.convert(source, pipe)
    assert pipe.is_fifo() and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("piece", [1000, 4096, 1 << 24])
def test_weights_are_written_in_whole_pieces(
    piece: int, source: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, whatever the sizes of tensors; only the last may be shorter."""
    monkeypatch.setattr(writer, "_HUGE_PAGE", piece)
    written: list[tuple[int, int]] = []
    write_at = files.write_at

    def watched(descriptor: int, views: Collection[memoryview], offset: int) -> int:
        written.append((offset, sum(map(len, views))))
        return write_at(descriptor, views, offset)

    monkeypatch.setattr(files, "write_at", watched)
    convert.convert(source, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == whole
    pieces = written[:-1]  # then what stands before the weights
    assert [offset for offset, _ in pieces] == [i * piece for i in range(len(pieces))]
    assert {size for _, size in pieces[:-1]} <= {piece} and sum(size for _, size in pieces) == len(whole)


@pytest.mark.parametrize("most", [1, 1000, 12345])
def test_what_a_call_leaves_is_written_by_the_next(
    most: int, source: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems write less than they are asked to, in the middle of a view or between two."""

    def short(descriptor: int, views: Iterable[memoryview], offset: int) -> int:
        return os.pwrite(descriptor, b"".join(views)[:most], offset)

    path = tmp_path / "a"
    blocks = [os.urandom(size) for size in (1000, 1, 0, 999, 3000, 20000)]
    monkeypatch.setattr(files, "write_at", short)
    with open(path, "wb") as file:
        writer._File(file.fileno(), path).write([memoryview(block) for block in blocks], 5)
    assert path.read_bytes() == bytes(5) + b"".join(blocks)
    if most > 1:
        convert.convert(source, tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == whole


def test_leftover_of_a_killed_run_is_taken_over(source: Path, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / ".a.bin.partial").write_bytes(b"\xff" * (len(whole) + 12345))
    convert.convert(source, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == whole and names(tmp_path) == ["a.bin"]


def test_two_conversions_of_one_output_do_not_mix(source: Path, tmp_path: Path) -> None:
    with open(tmp_path / ".a.bin.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another conversion is writing this file"):
            convert.convert(source, tmp_path / "a.bin")
        assert names(tmp_path) == [".a.bin.partial"]


def test_interruption_removes_the_temporary_file(source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        if what == "blk.1.attn_q.weight":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(source, tmp_path / "a.bin", progress=interrupt)
    assert names(tmp_path) == []


def test_source_that_is_cut_meanwhile_is_an_error(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.gguf"
    shutil.copyfile(source, copy)

    def cut(done: int, total: int, what: str) -> None:
        if what == "token_embd.weight":
            os.truncate(copy, copy.stat().st_size // 2)

    with pytest.raises(ModelFileError, match=r"a\.gguf: .*end of the file"):
        convert.convert(copy, tmp_path / "a.bin", progress=cut)
    assert names(tmp_path) == ["a.gguf"]


def test_mode_follows_the_umask(source: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        convert.convert(source, tmp_path / "a.bin")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640
    assert _core.ModelFile(str(tmp_path / "a.bin")).spec["n_vocab"] == 2000
