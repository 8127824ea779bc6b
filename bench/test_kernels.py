"""Times every kernel on every instruction set, format and size, and says what share of the machine's limit it reaches.

Usage:

    python -m pytest bench/test_kernels.py [-k avx2] [--benchmark-json=kernels.json]
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

import kernel_library
import limits


@cache
def library() -> ctypes.CDLL:
    return kernel_library.load()


@cache
def compute_limits() -> list[limits.Limit]:
    return limits.probe("compute", 1, 0.2)


def shares(name: str, gbytes: float, gmacs: float) -> dict[str, float]:
    """Shares of the limits that bound a kernel of this name; bandwidth drifts, so it is probed for each kernel."""
    isa = name.split("/")[0]
    found = {}
    if "memory" in name:
        found["of_read_limit"] = gbytes / limits.read_peak(limits.probe("memory", 1, 0.1), 1)
    if "/int8/" in name and isa in limits.PEAKS:
        found["of_int8_limit"] = gmacs / limits.int8_peak(compute_limits(), isa, 1)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    lib = library()
    names = [lib.pyinfer_bench_name(i).decode() for i in range(lib.pyinfer_bench_count())]
    metafunc.parametrize(("index", "name"), list(enumerate(names)), ids=names)


@pytest.fixture
def operands(index: int) -> Iterator[int]:
    lib = library()
    handle = lib.pyinfer_bench_open(index)
    assert handle, "not enough memory for the operands"
    yield handle
    lib.pyinfer_bench_close(handle)


def test_kernel(
    benchmark: Any, operands: int, name: str, record_property: Callable[[str, object], None]
) -> None:
    lib = library()
    benchmark.group = name.split("/", 1)[1]
    lib.pyinfer_bench_run(operands)
    benchmark(lib.pyinfer_bench_run, operands)
    seconds = benchmark.stats.stats.median
    gbytes = lib.pyinfer_bench_bytes(operands) / seconds / 1e9
    gmacs = lib.pyinfer_bench_macs(operands) / seconds / 1e9
    rates = {"GB/s": gbytes, "GMAC/s": gmacs, **shares(name, gbytes, gmacs)}
    benchmark.extra_info.update(rates)
    record_property("rates", {"name": name, **rates})
    assert gbytes > 0
