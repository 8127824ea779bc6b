"""Streams a model.bin: a temporary file in the output's folder, then fsync, rename, fsync of the folder.
Whatever happens on the way, the final name holds either what it held before or the whole new file.

Must not know readers or families. The layout is docs/model-file.md. Weights are packed in ranges of rows
on a few threads and written in order, so memory stays at a few ranges whatever the size of the model. Checksums and the
disk have a thread each.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core, files
from pyinfer.convert.checkpoint import NO_LAYER, Checkpoint, Spec, Tensor, describe
from pyinfer.convert.identity import SourceChecksums
from pyinfer.convert.landing import VECTOR, Placement, aligned, chosen_weights, groups, place
from pyinfer.convert.metadata import Landing, Metadata, Source, SourceFile, told
from pyinfer.errors import ModelFileError

Progress = Callable[[int, int, str], None]
"""progress(bytes done, bytes in all, what)."""

MAGIC = b"PYINFER\0"
VERSION = 1
HEADER_BYTES = SPEC_BYTES = 128
RECORD_BYTES = 64
PAGE = 4096
TILE_ROWS = 16
MAX_BLOB = {"metadata": 64 << 20, "tokenizer": 256 << 20}
ROLES = {
    "embedding": 0, "final_norm": 1, "head": 2, "rope_freqs": 3, "rope_freqs_local": 4, "rope_freqs_long": 5,
    "attn_norm": 16, "q": 17, "k": 18, "v": 19, "o": 20, "ffn_norm": 21, "gate": 22, "up": 23, "down": 24,
    "q_bias": 25, "k_bias": 26, "v_bias": 27, "o_bias": 28, "q_norm": 29, "k_norm": 30,
    "post_attn_norm": 31, "post_ffn_norm": 32,
}  # fmt: skip

FLAGS = ("tied_head", "qkv_bias", "o_bias", "qk_norm", "post_norms", "gelu", "local_rope", "norm_offset")
"""Fields of `Spec` by the number of their bit."""

_CHUNK_VALUES = 2 << 20  # values packed at once, 8 MiB as floats
_HUGE_PAGE = 2 << 20  # bytes; what is written in such pieces is kept in such pages by Linux, and read faster
_ZEROS = memoryview(bytes(_HUGE_PAGE))
_MAX_WORKERS = 16  # each holds a range of rows
_AHEAD = 8  # ranges at least that are packed or begun while a write keeps the writer waiting
_MOST_UNSUMMED = 4  # ranges that wait for their checksum, at most
_BEHIND = 64 << 20  # bytes written before the disk gets them; the rest waits for the end


@dataclass(frozen=True)
class _Job:
    """A range of rows of one tensor; `last` closes the tensor."""

    place: Placement
    start: int
    stop: int
    last: bool


@dataclass(frozen=True)
class _Packed:
    """A packed range and, where values change, the sums of squares of differences and of values on its
    first rows.
    """

    data: NDArray[np.uint8]
    squared_error: float = 0.0
    squared_value: float = 0.0


def _jobs(places: tuple[Placement, ...]) -> Iterator[_Job]:
    for item in places:
        rows = item.tensor.rows
        step = max(_CHUNK_VALUES // item.tensor.cols // TILE_ROWS, 1) * TILE_ROWS
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield _Job(item, start, stop, stop == rows)


def _run(job: _Job) -> _Packed:
    tensor, rows = job.place.tensor, job.stop - job.start
    try:
        data = tensor.read(job.start, job.stop)
        if job.place.format == VECTOR:
            return _Packed(_vector(tensor, data))
        if tensor.packed:
            return _Packed(data)
        packed = _core.repack(tensor.source, job.place.format, data, rows, tensor.cols)
        return _Packed(packed) if job.place.exact else _measured(job, data, packed)
    except ValueError as error:
        raise ModelFileError(f"{tensor.name}, rows from {job.start}: {error}") from None


def _vector(tensor: Tensor, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    values = _core.dequantize(tensor.source, data, 1, tensor.cols)
    if not np.isfinite(values).all():
        raise ModelFileError("expected finite values, found others")
    return values.reshape(-1).view(np.uint8)


def _measured(job: _Job, data: NDArray[np.uint8], packed: NDArray[np.uint8]) -> _Packed:
    """Compares the first rows of a range with what was stored of them."""
    tensor, kind = job.place.tensor, job.place.format
    rows = min(TILE_ROWS, job.stop - job.start)
    size = len(data) // (job.stop - job.start) * rows
    wanted = _core.dequantize(tensor.source, data[:size], rows, tensor.cols).astype(np.float64)
    stored = _core.unpack(kind, packed[: _core.packed_bytes(kind, rows, tensor.cols)], rows, tensor.cols)
    return _Packed(packed, float(np.square(stored - wanted).sum()), float(np.square(wanted).sum()))


def _in_order(jobs: Iterator[_Job], pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[_Job, _Packed]]:
    """Runs jobs on the pool, at most `ahead` of them started and not taken, and gives their results in
    order.
    """
    waiting: deque[tuple[_Job, Future[_Packed]]] = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(_run, job)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


class _Sums:
    """Measured errors by (source type, format)."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[float, float]] = {}

    def add(self, item: Placement, packed: _Packed) -> None:
        key = (item.tensor.source, item.format)
        error, value = self._sums.get(key, (0.0, 0.0))
        self._sums[key] = (error + packed.squared_error, value + packed.squared_value)

    def landings(self, places: tuple[Placement, ...]) -> tuple[Landing, ...]:
        found = []
        for group in groups(places):
            error, value = self._sums.get((group.source, group.format), (0.0, 0.0))
            rms = float(f"{math.sqrt(error / value):.4g}") if value else 0.0
            found.append(
                Landing(group.source, group.format, group.tensors, group.bytes_in, group.bytes_out, rms)
            )
        return tuple(found)


@contextmanager
def _temporary(output: Path) -> Iterator[_File]:
    """A locked file beside the output that becomes the output when all goes well, and is removed when not.

    Its name is fixed, so a later run takes over what a killed one left; the lock keeps two runs apart.
    """
    path = output.with_name(f".{output.name}.partial")
    descriptor = files.open_locked(path)
    try:
        os.ftruncate(descriptor, 0)
        file = _File(descriptor, output)
        yield file
        file.sync()
    except BaseException:
        files.discard(descriptor, path)
        raise
    files.publish(descriptor, path, output)


@dataclass(frozen=True)
class _File:
    """What is written to, and the name that it will have, for errors."""

    descriptor: int
    output: Path

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        left = deque(view for view in views if view)
        with self._named():
            while left:
                done = files.write_at(self.descriptor, left, offset)
                offset += done
                while left and done >= len(left[0]):
                    done -= len(left.popleft())
                if done:
                    left[0] = left[0][done:]

    def sync(self) -> None:
        with self._named():
            os.fsync(self.descriptor)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.output)) from None


class _Stream:
    """Writes a file from its beginning to its end in whole pieces of _HUGE_PAGE bytes; what is left out is zero."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self._piece: list[memoryview] = []
        self._start = 0  # where the piece lies in the file
        self._filled = 0

    def write(self, data: memoryview, offset: int) -> None:
        """Puts bytes at an offset that is not below the end of what was written; they must stay as they are until their
        piece is full.
        """
        while (gap := offset - self._start - self._filled) > 0:
            self._add(_ZEROS[:gap])
        self._add(data)

    def finish(self) -> None:
        """Writes what stands in the last piece."""
        self._file.write(self._piece, self._start)
        self._start, self._filled, self._piece = self._start + self._filled, 0, []

    def _add(self, data: memoryview) -> None:
        while data:
            n = min(len(data), _HUGE_PAGE - self._filled)
            self._piece.append(data[:n])
            self._filled += n
            data = data[n:]
            if self._filled == _HUGE_PAGE:
                self.finish()


class _Disk:
    """Has the system put on the disk what was written while more is made, so that little is left for the end."""

    def __init__(self, file: _File, pool: ThreadPoolExecutor) -> None:
        self._file = file
        self._pool = pool
        self._asked = 0
        self._running: Future[None] | None = None

    def wrote(self, offset: int) -> None:
        """Tells how far the file has come."""
        if offset - self._asked < _BEHIND or (self._running and not self._running.done()):
            return
        self.finish()
        self._asked, self._running = offset, self._pool.submit(self._file.sync)

    def finish(self) -> None:
        """Waits, and raises what the disk said: the system says it once."""
        if self._running:
            self._running.result()


class _Checksums:
    """CRC-32 of tensors that come in ranges, on a thread of their own."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._ranges: deque[Future[int]] = deque()
        self._crc = 0

    def add(self, data: memoryview) -> None:
        """Takes the next range of the tensor; waits where many are not done yet, since they take memory."""
        self._ranges.append(self._pool.submit(self._summed, data))
        while len(self._ranges) > _MOST_UNSUMMED:
            self._ranges.popleft().result()

    def finished(self) -> int:
        """The checksum of the tensor; the next range is of another."""
        while self._ranges:
            self._ranges.popleft().result()
        crc, self._crc = self._crc, 0
        return crc

    def _summed(self, data: memoryview) -> int:
        self._crc = zlib.crc32(data, self._crc)
        return self._crc


@dataclass(frozen=True)
class _Layout:
    """Where the sections lie; `metadata_bytes` is what was set aside for it."""

    n_tensors: int
    metadata_bytes: int
    tokenizer: bytes
    weights_bytes: int

    @property
    def metadata_offset(self) -> int:
        return HEADER_BYTES + SPEC_BYTES + RECORD_BYTES * self.n_tensors

    @property
    def tokenizer_offset(self) -> int:
        return self.metadata_offset + self.metadata_bytes

    @property
    def weights_offset(self) -> int:
        return aligned(self.tokenizer_offset + len(self.tokenizer), PAGE)

    @property
    def file_bytes(self) -> int:
        return self.weights_offset + self.weights_bytes


def _spec_bytes(spec: Spec) -> bytes:
    """The specification in the lowest version that can say it: older programs read what they can run."""
    counts = (
        spec.n_layers,
        spec.dim,
        spec.n_heads,
        spec.n_kv_heads,
        spec.head_dim,
        spec.n_ff,
        spec.n_vocab,
        spec.context,
    )
    factors = (spec.norm_eps, spec.rope_magnitude, spec.attention_scale)
    flags = sum(1 << bit for bit, name in enumerate(FLAGS) if getattr(spec, name))
    more = struct.pack(
        "<3f2I16s16s",
        *(spec.embedding_scale, spec.attn_softcap, spec.logit_softcap, spec.window, spec.long_context),
        *(sum(1 << i for i in layers).to_bytes(16, "little") for layers in (spec.windowed, spec.unrotated)),
    )
    version = 2 if flags > 1 or any(more) else 1
    return struct.pack("<10I3fI52s20x", version, *counts, spec.rope_dim, *factors, flags, more)


def _record(item: Placement, crc: int, weights_offset: int) -> bytes:
    layer = 0xFFFFFFFF if item.tensor.layer == NO_LAYER else item.tensor.layer
    number = 0 if item.format == VECTOR else _core.FORMATS.index(item.format) + 1
    head = struct.pack("<4I", ROLES[item.tensor.role], layer, number, 0)
    place = (item.tensor.rows, item.tensor.cols, weights_offset + item.offset, item.bytes)
    return head + struct.pack("<4QI12x", *place, crc)


def _head(layout: _Layout, spec: Spec, table: bytes, metadata: bytes) -> bytes:
    """Header, specification and tensor table."""
    sections = (
        layout.file_bytes, HEADER_BYTES, SPEC_BYTES, HEADER_BYTES + SPEC_BYTES, len(table),
        layout.metadata_offset, len(metadata), layout.tokenizer_offset, len(layout.tokenizer),
        layout.weights_offset, layout.weights_bytes,
    )  # fmt: skip
    crcs = (zlib.crc32(metadata), zlib.crc32(layout.tokenizer))
    header = struct.pack("<8s2I11Q2I12x", MAGIC, VERSION, HEADER_BYTES, *sections, *crcs)
    rest = _spec_bytes(spec) + table
    return header + struct.pack("<I", zlib.crc32(header + rest)) + rest


def _first_metadata(checkpoint: Checkpoint, places: tuple[Placement, ...], weights: str | None) -> Metadata:
    """The metadata with placeholders, as long as the final ones can get, for checksums and errors that are
    known at the end.
    """
    longest = tuple(replace(item, rms_error=-1.2345e-300) for item in _Sums().landings(places))
    files = tuple(SourceFile(told(path.name), path.stat().st_size, "0" * 64) for path in checkpoint.files)
    chosen = chosen_weights(checkpoint.kind, weights)
    options = {**checkpoint.options, **({"weights": chosen} if chosen else {})}
    return replace(
        describe(checkpoint), source=Source(checkpoint.kind, files), landed=longest, options=options
    )


def _final_metadata(first: Metadata, files: tuple[SourceFile, ...], landed: tuple[Landing, ...]) -> Metadata:
    """The same with what is known now."""
    for before, after in zip(first.source.files, files, strict=True):
        if before.bytes != after.bytes:
            raise ModelFileError(
                f"{after.name}: expected {before.bytes} bytes as when the conversion began, found {after.bytes}"
            )
    return replace(first, source=Source(first.source.kind, files), landed=landed)


def _check_blobs(layout: _Layout) -> None:
    sizes = {"metadata": layout.metadata_bytes, "tokenizer": len(layout.tokenizer)}
    for what, size in sizes.items():
        if size > MAX_BLOB[what]:
            raise ModelFileError(f"{what}: expected at most {MAX_BLOB[what]} bytes, found {size}")


def _check_output(checkpoint: Checkpoint, output: Path, needed: int) -> None:
    """Refuses an output that is a source, a folder or a device, and a disk that is too small."""
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, found a folder", str(output))
    if output.exists() and not output.is_file():  # a rename would put a file in the place of the device
        raise OSError(errno.EINVAL, "expected a regular file or none, found something else", str(output))
    if output.exists() and any(os.path.samefile(output, path) for path in checkpoint.files):
        raise ModelFileError(f"{output}: expected another file than the source, found the same")
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        text = f"expected {needed / 1e6:.1f} MB of free disk, found {free / 1e6:.1f} MB"
        raise OSError(errno.ENOSPC, text, str(output.parent))


def write_model(
    checkpoint: Checkpoint,
    output: Path,
    sources: SourceChecksums,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Metadata:
    """Converts an opened checkpoint into `output` and returns the metadata that was stored. Checksums of its files are
    taken from `sources`, where they may have begun before.

    Raises ModelFileError for bad sources, RequestError for a `weights` that cannot be honoured, OSError
    where the system refuses.
    """
    places = place(checkpoint, weights)
    first = _first_metadata(checkpoint, places, weights)
    end = places[-1].offset + places[-1].bytes
    layout = _Layout(len(places), len(first.to_json()), checkpoint.tokenizer.blob, end)
    _check_blobs(layout)
    _check_output(checkpoint, output, layout.file_bytes)
    workers = min(_MAX_WORKERS, _core.default_threads())
    with (
        ThreadPoolExecutor(workers) as pool,
        ThreadPoolExecutor(1) as summing,
        ThreadPoolExecutor(1) as flushing,
        _temporary(output) as file,
    ):
        sources.begin(checkpoint.files)
        sums, records = _Sums(), []
        results = _in_order(_jobs(places), pool, max(workers + 1, _AHEAD))
        disk, crcs = _Disk(file, flushing), _Checksums(summing)
        for item, crc in _write_weights(file, results, layout, sums, crcs, disk, progress):
            records.append(_record(item, crc, layout.weights_offset))
        disk.finish()
        metadata = _final_metadata(first, sources.of(checkpoint.files), sums.landings(places))
        _write_front(file, layout, checkpoint.spec, b"".join(records), metadata)
    return metadata


def _write_weights(
    file: _File,
    results: Iterator[tuple[_Job, _Packed]],
    layout: _Layout,
    sums: _Sums,
    crcs: _Checksums,
    disk: _Disk,
    progress: Progress | None,
) -> Iterator[tuple[Placement, int]]:
    """Writes ranges as they come; gives each finished tensor with its checksum."""
    at = 0
    stream = _Stream(file)
    for job, packed in results:
        data = packed.data.data
        crcs.add(data)
        offset = layout.weights_offset + job.place.offset + at
        stream.write(data, offset)
        disk.wrote(offset)
        at += len(data)
        sums.add(job.place, packed)
        if progress:
            progress(job.place.offset + at, layout.weights_bytes, job.place.tensor.name)
        if job.last:
            yield job.place, crcs.finished()
            at = 0
    stream.finish()


def _write_front(file: _File, layout: _Layout, spec: Spec, table: bytes, metadata: Metadata) -> None:
    """Everything before the weights; the metadata fills what was set aside with spaces, which JSON allows."""
    blob = metadata.to_json().ljust(layout.metadata_bytes)
    head = _head(layout, spec, table, blob)
    file.write([memoryview(part) for part in (head, blob, layout.tokenizer)], 0)
