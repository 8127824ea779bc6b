"""Linux and macOS. What the functions do is said in `pyinfer/files/__init__.py`."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

assert sys.platform != "win32"

import fcntl  # noqa: E402 (type checkers must know the system first)

_MOST_VIEWS = 1024  # IOV_MAX of Linux and macOS
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def open_to_read(path: Path) -> int:
    """Opens a file to read."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Reads into `view` from `offset` on."""
    return os.preadv(descriptor, [view], offset)


def write_at(descriptor: int, views: Iterable[memoryview], offset: int) -> int:
    """Writes as many of `views` as a call takes."""
    return os.pwritev(descriptor, list(islice(views, _MOST_VIEWS)), offset)


def lock(descriptor: int) -> None:
    """Waits for the lock."""
    _flock(descriptor, fcntl.LOCK_EX)


def _flock(descriptor: int, how: int) -> None:
    """Locks; those file systems of clusters that have no locks are named as such."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        text = (
            "the file system has no locks, which keep programs apart; choose another folder (PYINFER_CACHE)"
        )
        raise OSError(error.errno, text) from None


def open_locked(path: Path) -> int:
    """Opens and locks; starts over if another process renamed or removed the file in between."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(
                errno.EAGAIN, "another conversion is writing this file", str(path)
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def publish(descriptor: int, temporary: Path, output: Path) -> None:
    """Renames while the lock is held."""
    try:
        replace(temporary, output)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _sync_folder(output.parent)


def replace(temporary: Path, output: Path) -> None:
    """Renames."""
    os.replace(temporary, output)


def _sync_folder(path: Path) -> None:
    """Makes the rename outlast a power cut, where the folder may be read and the file system can: the file is there."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def discard(descriptor: int, temporary: Path) -> None:
    """Removes while the lock is held."""
    temporary.unlink(missing_ok=True)
    os.close(descriptor)
