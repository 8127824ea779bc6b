"""Fetching models: what every source shares. Must not know any one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

__all__ = ["POLL_SECONDS", "Progress", "watch"]

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all (0 when unknown) and what is being done."""

POLL_SECONDS = 0.2


def watch(ended: Callable[[], bool], folder: Path, total: int, what: str, progress: Progress) -> None:
    """Until `ended()`, which waits a moment itself, reports the bytes that have appeared in `folder`."""
    before = _folder_bytes(folder)
    while not ended():
        progress(min(max(0, _folder_bytes(folder) - before), total), total, what)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # moved or removed since it was listed
                continue
    return total
