"""What one comparison found: samples, medians, ratios, shares of the machine's limits, and the machine itself."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
ROOT = Path(__file__).parent.parent
X86_FLAGS = ("avx", "amx", "fma", "f16c")


@dataclass
class Series:
    """Tokens a second of one engine with one choice of settings in one case; sample i belongs to round i."""

    case: str
    threads: int
    engine: str
    settings: Settings
    samples: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    first_round_only: bool = False

    @property
    def median(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)

    def to_json(self) -> dict[str, Any]:
        """All fields and the median."""
        return {
            "case": self.case,
            "threads": self.threads,
            "engine": self.engine,
            "settings": self.settings,
            "unit": "tokens/s",
            "samples": self.samples,
            "median": self.median,
            "share_of_limit": statistics.median(self.shares) if self.shares else None,
            "first_round_only": self.first_round_only,
        }


def best(series: list[Series], engine: str) -> Series | None:
    """The settings with which an engine is fastest; those dropped after the first round do not count."""
    own = [s for s in series if s.engine == engine and s.samples and not s.first_round_only]
    return max(own, key=lambda s: s.median, default=None)


def ratio(ours: Series, theirs: Series) -> dict[str, Any]:
    """Ours over theirs, round by round."""
    ratios = [a / b for a, b in zip(ours.samples, theirs.samples, strict=False)]
    return {
        "case": ours.case,
        "threads": ours.threads,
        "engine": ours.engine,
        "peer": theirs.engine,
        "peer_settings": theirs.settings,
        "median": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "rounds": len(ratios),
    }


def _first_line(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line[len(key) :].lstrip("\t :") for line in lines if line.startswith(key)), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _caches() -> dict[str, str]:
    """Cache sizes of the first processor, such as {"L2 Unified": "1024K"}."""
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return {f"L{_read(f'{f}/level')} {_read(f'{f}/type')}": _read(f"{f}/size") for f in folders}


def last_level_bytes() -> int:
    """The sum of all third-level caches, each counted once; 0 where the system does not tell."""
    found: dict[str, int] = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        size = _read(f"{index}/size")
        if _read(f"{index}/level") == "3" and size.endswith("K"):
            found[_read(f"{index}/shared_cpu_list")] = int(size[:-1]) << 10
    return sum(found.values())


def machine() -> dict[str, Any]:
    """Processor, memory and system."""
    return {
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor(),
        "family": _first_line("/proc/cpuinfo", "cpu family"),
        "model": _first_line("/proc/cpuinfo", "model\t\t"),
        "flags": [
            *(f for f in _first_line("/proc/cpuinfo", "flags").split() if f.startswith(X86_FLAGS)),
            *_first_line("/proc/cpuinfo", "Features").split(),  # as Arm calls them
        ],
        "processors": os.cpu_count(),
        "caches": _caches(),
        "memory": _first_line("/proc/meminfo", "MemTotal"),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _git(*command: str) -> str:
    return subprocess.check_output(["git", *command], cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()


def commit() -> str:
    """The commit of this working copy, with `+` if its files differ from it; empty without git."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def busy(seconds: float = 0.5) -> float | None:
    """The share of all processors' time that others use now; None where the system does not tell."""

    def times() -> list[int]:
        return [int(text) for text in _first_line("/proc/stat", "cpu ").split()]

    before = times()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, times(), strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent) if sum(spent) > 0 else None


def header() -> dict[str, Any]:
    """What every result file begins with."""
    return {
        "schema": 1,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": machine(),
        "busy_before": busy(),
    }
