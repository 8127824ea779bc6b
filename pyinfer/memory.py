"""How much memory this process may still take, and the check that a model or session fits into it. Knows no models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyinfer import _core
from pyinfer.errors import MemoryLimitError

__all__ = ["available_bytes", "fits", "largest", "mib", "require"]

ROOM = 16
"""What is made as large as fits leaves one part in so many of the free memory to others."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP_OF_SELF = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def require(needed: int, what: str, parts: str = "", advice: Callable[[], str] = str) -> None:
    """Raises MemoryLimitError with both figures when `needed` bytes are more than there are.

    `parts` says what the bytes are made of; `advice`, asked only then, what would help.
    """
    free = available_bytes()
    if free is not None and needed > free:
        told = f"{what} needs {mib(needed)} of memory{parts}, but only {mib(free)} are free"
        raise MemoryLimitError(told + advice())


def fits(needed: int) -> bool:
    """Whether so many bytes can be had."""
    free = available_bytes()
    return free is None or needed <= free


def largest(needed: Callable[[int], int], most: int, step: int) -> int:
    """The largest multiple of `step` up to `most`, or `most` itself, whose bytes fit with room left; 0 if none does.

    `needed(size)` grows with the size.
    """
    free = available_bytes()
    if free is None or needed(most) <= free - free // ROOM:
        return most
    low, high = 0, most // step  # in steps: low fits or is 0, what is above high does not
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle * step) <= free - free // ROOM else (low, middle - 1)
    return low * step


def available_bytes() -> int | None:
    """Bytes that can be had without swapping, page cache included; None where the system does not say."""
    known = [bytes_ for bytes_ in (_of_machine(), _of_cgroups()) if bytes_ is not None]
    return min(known, default=None)


def mib(bytes_: int) -> str:
    """Bytes for people: `1,024.0 MiB`."""
    return f"{bytes_ / 2**20:,.1f} MiB"


def _of_machine() -> int | None:
    told = _core.available_memory()
    return _fields(_MEMINFO, scale=1024).get("MemAvailable:") if told is None else told


def _of_cgroups() -> int | None:
    """The tightest limit among this process's control group and those above it."""
    try:
        lines = _CGROUP_OF_SELF.read_text().splitlines()
    except OSError:
        return None
    known = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            known += _up_from(_CGROUP_ROOT, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            known += _up_from(_CGROUP_ROOT / "memory", path, *names)
    return min(known, default=None)


def _up_from(root: Path, path: str, limit: str, usage: str, prefix: str) -> list[int]:
    """What each group from `path` up to the root leaves; inside a container the path may not be visible."""
    inner = root / path.lstrip("/")
    groups = [inner, *inner.parents] if inner.is_dir() else [root]
    groups = [group for group in groups if group == root or root in group.parents]
    left = (_left(group, limit, usage, prefix) for group in groups)
    return [bytes_ for bytes_ in left if bytes_ is not None]


def _left(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    most, used = _number(group / limit), _number(group / usage)
    if most is None or used is None:
        return None
    stat = _fields(group / "memory.stat")
    cached = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(0, most - used + min(cached, used))


def _number(path: Path) -> int | None:
    """The number in a file; None for `max` or where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path, scale: int = 1) -> dict[str, int]:
    """First and second word of every line."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * scale for line in words if len(line) > 1 and line[1].isdecimal()}
