"""Measures what the machine can do at most: integer multiply-accumulates a second and bytes a second from memory.

Compiles limits.cpp for this machine once (kept in the temporary folder) and runs it. Knows nothing of models.

    python bench/limits.py [--threads 1,2] [--seconds 0.3] [--json]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("limits.cpp")
FLAGS = ("-std=c++20", "-O3", "-pthread")

# The probe whose rate bounds the int8 kernels of an instruction set, by the names in cmake/isas.cmake.
PEAKS: dict[str, tuple[str, ...]] = {
    "avx512amx": ("tdpbssd",),
    "avx512vnni": ("vpdpbusd-512",),
    "avxvnni": ("vpdpbusd-256",),
    "avx2": ("vpmaddubsw-256",),
    "neon": ("smlal-128",),
    "neon_dotprod": ("sdot-128",),
    "neon_i8mm": ("smmla-128",),
}


@dataclass(frozen=True)
class Limit:
    """One measured limit: `value` in GMAC/s or GB/s (10^9) with `threads` threads at once."""

    probe: str
    threads: int
    unit: str
    value: float


class LimitError(RuntimeError):
    """The probe cannot be built or run here."""


def compiler() -> str:
    """The C++ compiler: `CXX` or the first of c++, g++, clang++ on the path."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise LimitError("no C++ compiler found: expected c++, g++ or clang++ on PATH, or CXX set")


def processor() -> str:
    """What the system says of the first processor, whose program another may not run."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0] if path.exists() else ""
    return "\n".join(
        line for line in text.splitlines() if line.startswith(("model name", "flags", "Features"))
    )


def build() -> Path:
    """Compiles the probe for this machine unless it is there already, and returns the program's path."""
    cxx = compiler()
    native = "-mcpu=native" if os.uname().machine in ("aarch64", "arm64") else "-march=native"
    what = f"{cxx} {native} {FLAGS} {os.uname()} {processor()}"
    key = hashlib.sha256(SOURCE.read_bytes() + what.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pyinfer-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    program = folder / f"limits-{key}"
    if not program.exists():
        part = program.with_suffix(f".{os.getpid()}")
        command = [cxx, *FLAGS, native, str(SOURCE), "-o", str(part)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise LimitError(f"{' '.join(command)} failed: {result.stderr.strip()[-500:]}")
        part.rename(program)
    return program


def probe(
    kind: Literal["compute", "memory"], threads: int, seconds: float = 0.3, mib: int = 512
) -> list[Limit]:
    """Runs the probes of one kind with `threads` threads, each for about `seconds`."""
    command = [str(build()), kind, str(threads), str(seconds), str(mib)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LimitError(f"the probe of {kind} limits failed: {result.stderr.strip()}")
    return [Limit(**json.loads(line)) for line in result.stdout.splitlines()]


def int8_peak(limits: list[Limit], isa: str, threads: int) -> float:
    """The integer multiply-accumulate limit of an instruction set in GMAC/s."""
    names = PEAKS.get(isa, ())
    found = [limit.value for limit in limits if limit.probe in names and limit.threads == threads]
    if not found:
        raise LimitError(f"no int8 limit was measured for instruction set {isa} with {threads} threads")
    return max(found)


def read_peak(limits: list[Limit], threads: int) -> float:
    """The best memory read bandwidth measured with this many threads, in GB/s."""
    found = [limit.value for limit in limits if limit.probe.startswith("read") and limit.threads == threads]
    if not found:
        raise LimitError(f"no read bandwidth was measured with {threads} threads")
    return max(found)


def main() -> int:
    """Prints the limits of this machine as a table or as JSON."""
    parser = argparse.ArgumentParser(description="Measure the limits of this machine.")
    parser.add_argument("--threads", default=f"1,{os.cpu_count()}", help="thread counts, comma separated")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each probe")
    parser.add_argument("--mib", type=int, default=512, help="memory that the bandwidth probes read")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    counts = sorted({int(text) for text in args.threads.split(",")})
    found: list[Limit] = []
    for threads in counts:
        found += probe("compute", threads, args.seconds, args.mib)
        found += probe("memory", threads, args.seconds, args.mib)
    if args.json:
        print(json.dumps([asdict(limit) for limit in found], indent=1))
        return 0
    for limit in found:
        print(f"{limit.probe:<18} {limit.threads:>2} threads {limit.value:>9.1f} {limit.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
