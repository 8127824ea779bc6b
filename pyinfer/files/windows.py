"""Windows. What the functions do is said in `pyinfer/files/__init__.py`.

An open file is neither renamed nor removed there, so it is closed first; and descriptors read and write only where they
stand, so that threads take turns. Renames have no call that makes them outlast a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

assert sys.platform == "win32"

import msvcrt  # noqa: E402 (type checkers must know the system first)

_LOCK_SECONDS = 0.05  # between two tries: the system's own wait gives up after ten
_LOCKED_BYTE = (
    0x7FFFFFFE  # locks are of ranges, and keep readers out too: the last byte that the C library can lock
)
_MOST = 1 << 24  # bytes a call
_REPLACE_SECONDS = 2.0
_place = Lock()


def open_to_read(path: Path) -> int:
    """Opens a file to read."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file, found a folder", str(path))
    return os.open(path, os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Reads into `view` from `offset` on."""
    with _place:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, min(len(view), _MOST))
    view[: len(data)] = data
    return len(data)


def write_at(descriptor: int, views: Iterable[memoryview], offset: int) -> int:
    """Writes the first of `views`."""
    with _place:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, next(iter(views))[:_MOST])


def lock(descriptor: int) -> None:
    """Waits for the lock."""
    while not _try_lock(descriptor):
        time.sleep(_LOCK_SECONDS)


def _try_lock(descriptor: int) -> bool:
    try:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK):
            raise
        return False
    return True


def open_locked(path: Path) -> int:
    """Opens and locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT, 0o666)
    if _try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    raise BlockingIOError(errno.EAGAIN, "another conversion is writing this file", str(path))


def publish(descriptor: int, temporary: Path, output: Path) -> None:
    """Closes, then renames. If another takes the lock in between, the rename fails: the other has the file open."""
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    try:
        replace(temporary, output, size)
    except OSError as error:
        _remove(temporary)
        text = "cannot be replaced: a program has it open, or it is write-protected"
        raise OSError(error.errno, text, str(output)) from None


def replace(temporary: Path, output: Path, size: int | None = None) -> None:
    """Renames; tries again for a while, since indexers and scanners of viruses open what is new for a moment, but not
    what another has begun anew meanwhile: it has no longer its `size`.
    """
    until = time.monotonic() + _REPLACE_SECONDS
    while True:
        try:
            return os.replace(temporary, output)
        except PermissionError:
            if time.monotonic() > until or size not in (None, temporary.stat().st_size):
                raise
        time.sleep(_LOCK_SECONDS)


def discard(descriptor: int, temporary: Path) -> None:
    """Closes, then removes."""
    os.close(descriptor)
    _remove(temporary)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(PermissionError):  # another has taken it over
        temporary.unlink(missing_ok=True)
