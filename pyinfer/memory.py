"""How much memory this process may still take, and the check that a model or session fits into it. Knows no models."""

from __future__ import annotations

from pathlib import Path

from pyinfer import _core
from pyinfer.errors import MemoryLimitError

__all__ = ["available_bytes", "require"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP_OF_SELF = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def require(needed: int, what: str) -> None:
    """Raises MemoryLimitError with both figures when `needed` bytes are more than there are."""
    free = available_bytes()
    if free is not None and needed > free:
        raise MemoryLimitError(f"{what} needs {_mib(needed)} of memory, but only {_mib(free)} are free")


def available_bytes() -> int | None:
    """Bytes that can be had without swapping, page cache included; None where the system does not say."""
    known = [bytes_ for bytes_ in (_of_machine(), _of_cgroups()) if bytes_ is not None]
    return min(known, default=None)


def _mib(bytes_: int) -> str:
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
