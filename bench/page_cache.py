"""Puts a file out of the page cache and tells how much of it is there."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def resident_share(path: Path) -> float:
    """The share of a file's pages that are in memory."""
    data = np.memmap(path, np.uint8, "r")
    pages = (data.size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    flags = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    if libc.mincore(data.ctypes.data, data.size, ctypes.addressof(flags)) != 0:
        raise OSError(ctypes.get_errno(), "mincore failed", str(path))
    return float(np.mean(np.frombuffer(bytes(flags), np.uint8) & 1))


def drop(path: Path) -> None:
    """Asks the system to forget a file's pages; pages that some process maps stay."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    """Reads a file once."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass
