"""What several verbs print: bars, sizes, notes. Knows terminals; must not know models."""

from __future__ import annotations

import codecs
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pyinfer.errors import plain
from pyinfer.fetch import Progress

__all__ = ["note", "note_merged", "print_json", "progress", "sentence", "size", "table"]

PATIENCE_SECONDS = 1.0
"""Work shorter than this shows no bar."""


def note(text: str) -> None:
    """A line for the person, not for the pipe."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_json(value: object) -> None:
    """One JSON document on standard output, with escapes where it takes no UTF-8."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=plain_ascii(), allow_nan=False) + "\n")


def plain_ascii() -> bool:
    """Whether standard output takes no UTF-8."""
    return codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"


def size(count: float) -> str:
    """Bytes for people, in powers of 1024: `98.4 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def note_merged(touched: int, added_bytes: int, retention: float) -> None:
    """What putting adapters into weights cost: tensors changed, bytes more than before, share of the change kept."""
    more = "larger" if added_bytes >= 0 else "smaller"
    note(
        f"{touched} tensors changed, the weights are {size(abs(added_bytes))} {more} than the base's; "
        f"of the change, {retention:.1%} is left in the matrix that keeps least"
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [tuple(map(plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError) and not text:
        text = "out of memory"
    return plain(" ".join(text.split()))


@contextlib.contextmanager
def progress(unit: Literal["bytes", "tokens"] = "bytes") -> Iterator[Progress]:
    """A callback that shows a bar on standard error: on a terminal, for what takes more than a second."""
    bar = _Bar(unit)
    try:
        yield bar.update if sys.stderr.isatty() else _nothing
    finally:
        bar.stop()


def _nothing(done: int, total: int, what: str) -> None:
    pass


class _Bar:
    """A rich bar that is made when the wait has become long enough to deserve one."""

    def __init__(self, unit: Literal["bytes", "tokens"]) -> None:
        self._unit = unit
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def update(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self._start < PATIENCE_SECONDS:
            return
        if self._bar is None:
            self._bar = _rich_bar(self._unit)
            self._bar.start()
            self._task = self._bar.add_task(what)
        self._bar.update(self._task, completed=done, total=total or None, description=what)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _rich_bar(unit: Literal["bytes", "tokens"]) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    count = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
    text = TextColumn("{task.description}", markup=False)
    return Progress(
        text, BarColumn(), count, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
