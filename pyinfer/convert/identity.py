"""What a source is, told by its content: full checksums for the record, and a quick key for the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from pyinfer.convert.checkpoint import open_regular, read_exactly
from pyinfer.convert.metadata import CONVERTER_VERSION, SourceFile, told
from pyinfer.errors import ModelFileError

_WHOLE = 32 << 20  # files up to this size, and the front of larger ones, are hashed whole
_SAMPLES = 256
_SAMPLE_BYTES = 4096
_CHUNK = 256 << 10  # stays in a core's cache from reading to hashing


def sampled_digest(path: Path) -> str:
    """Size, the first 32 MiB (all headers, vocabularies and tensor tables) and 256 blocks spread evenly
    over the rest. A file with a rest counts its time of change too: an edit between the blocks must not
    be missed, and a copy that is converted once more is the lesser evil.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        front = min(size, _WHOLE)
        digest = hashlib.sha256(f"{size}:".encode() + read_exactly(descriptor, 0, front).tobytes())
        rest = size - front
        if rest:
            digest.update(f"{status.st_mtime_ns}:".encode())
        block = min(_SAMPLE_BYTES, rest)
        for i in range(_SAMPLES if rest else 0):
            at = front + (rest - block) * i // (_SAMPLES - 1)
            digest.update(read_exactly(descriptor, at, block).tobytes())
        return digest.hexdigest()
    finally:
        os.close(descriptor)


def key_of(files: Iterable[Path], weights: str | None) -> str:
    """A key of 32 hex digits from sampled contents, the option and the converter's version; folder and
    file names do not count.
    """
    parts = [CONVERTER_VERSION, weights, sorted(sampled_digest(path) for path in files)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class SourceChecksums:
    """Names, sizes and SHA-256 of files, read on a thread of their own; the rest is given up at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._stop = Event()
        self._begun: dict[Path, Future[SourceFile]] = {}

    def __enter__(self) -> SourceChecksums:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def begin(self, files: Iterable[Path]) -> None:
        """Has these files read, one after the other, if they are not yet."""
        for path in files:
            if path not in self._begun:
                self._begun[path] = self._pool.submit(_checksum, path, self._stop.is_set)

    def of(self, files: Iterable[Path]) -> tuple[SourceFile, ...]:
        """Waits for files that were begun; raises ModelFileError or OSError where one cannot be read."""
        return tuple(self._begun[path].result() for path in files)


def _checksum(path: Path, stopped: Callable[[], bool]) -> SourceFile:
    """Name, size and SHA-256 of a file; gives up when `stopped()` says so."""
    descriptor = open_regular(path)
    try:
        size, digest, at = os.fstat(descriptor).st_size, hashlib.sha256(), 0
        while at < size:
            if stopped():
                raise ModelFileError(f"{path}: stopped")
            step = min(_CHUNK, size - at)
            digest.update(read_exactly(descriptor, at, step).data)
            at += step
        return SourceFile(told(path.name), size, digest.hexdigest())
    finally:
        os.close(descriptor)
