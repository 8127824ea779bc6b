"""Builds the library of kernels that test_kernels.py times, and declares its functions."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = "pyinfer_kernel_bench"


class BuildError(RuntimeError):
    """CMake or the compiler failed; the message ends with what they said."""


def build(folder: Path) -> Path:
    """Builds the library in a folder of its own, which is kept, and returns the library's path."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DPYINFER_BENCH=ON", "-DPYINFER_PYTHON=OFF"]
    for command in (configure, ["cmake", "--build", str(folder), "--target", TARGET, "-j2"]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"{' '.join(command)} failed: {(result.stdout + result.stderr)[-1500:]}")
    return next(path for path in folder.rglob(f"lib{TARGET}.*") if path.suffix in (".so", ".dylib"))


def load() -> ctypes.CDLL:
    """The library that PYINFER_KERNEL_BENCH names, or else one built in build/bench."""
    named = os.environ.get("PYINFER_KERNEL_BENCH")
    library = ctypes.CDLL(named or str(build(ROOT / "build" / "bench")))
    library.pyinfer_bench_name.restype = ctypes.c_char_p
    library.pyinfer_bench_open.restype = ctypes.c_void_p
    for function in (library.pyinfer_bench_bytes, library.pyinfer_bench_macs):
        function.restype = ctypes.c_double
        function.argtypes = [ctypes.c_void_p]
    for function in (library.pyinfer_bench_run, library.pyinfer_bench_close):
        function.argtypes = [ctypes.c_void_p]
    return library
