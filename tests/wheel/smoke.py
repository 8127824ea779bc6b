"""What an installed wheel must do, run by the interpreter that it is installed for.

    python tests/wheel/smoke.py

Standard library and pyinfer only. Run it with that interpreter and nothing else: no compiler, no pytest, no sources.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "data" / "stories260K.bin"
PROMPT = "Once upon a time"
STORY = ", there was a little girl named Lily. She loved to play outside in the p"
"""The first 24 tokens of the greedy answer; far enough from ties to be the same on every instruction set."""
SETS = {"x86_64": {"scalar", "avx2", "avxvnni", "avx512vnni", "avx512amx"}, "aarch64": {"scalar", "neon"}}
"""Instruction sets that a wheel of an architecture must have inside, at least."""
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def pyinfer(*arguments: str, **environment: str) -> str:
    """Standard output of the command line, which must succeed."""
    program = shutil.which("pyinfer", path=sysconfig.get_path("scripts"))
    if program is None:
        raise SystemExit("the command pyinfer: expected it beside the interpreter, found none")
    command = [program, *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def expect(what: str, found: object, expected: object) -> None:
    """Ends the program where the two differ."""
    if found != expected:
        raise SystemExit(f"{what}: expected {expected!r}, found {found!r}")
    print(f"ok: {what}")


def check_sets() -> list[str]:
    """Looks for every instruction set of this architecture; returns those that run here."""
    from pyinfer import _core

    machine = platform.machine().lower()
    needed = SETS[ARCHITECTURES.get(machine, machine)]
    inside = dict(_core.isas())
    expect("instruction sets that are missing", needed - inside.keys(), set())
    return [name for name, runs in inside.items() if runs]


def check_package() -> None:
    """The package that runs is the installed one, and it refuses what it should."""
    import pyinfer as package
    from pyinfer.errors import PyinferError

    sources = Path(__file__).resolve().parents[2] / "pyinfer"
    expect("runs from the sources", sources in Path(package.__file__).resolve().parents, False)
    try:
        package.load(__file__)
    except PyinferError as error:
        print(f"ok: a file that is no model: {error}")
    else:
        raise SystemExit("a file that is no model: expected an error, found none")


def check_library() -> None:
    """The library with the C interface can be loaded by itself, with all that it needs."""
    import pyinfer as package

    names = {"Windows": "pyinfer.dll", "Darwin": "libpyinfer.dylib"}
    path = Path(package.__file__).parent / names.get(platform.system(), "libpyinfer.so")
    expect("the version of the C interface", ctypes.CDLL(str(path)).pyi_abi_version(), 1)


def main() -> None:
    """Runs all checks."""
    print(f"{platform.platform()}, Python {platform.python_version()}, {platform.machine()}")
    check_package()
    check_library()
    runs_here = check_sets()
    with tempfile.TemporaryDirectory() as folder:
        cache = {"PYINFER_CACHE": folder}
        print(pyinfer("cpu", **cache))
        for name in runs_here:
            story = pyinfer(
                "run", str(MODEL), PROMPT, "--raw", "--greedy", "-n", "24", PYINFER_ISA=name, **cache
            )
            expect(f"the story with {name}", story.strip(), STORY.strip())
        model = str(Path(folder) / "model.bin")
        pyinfer("convert", str(MODEL), model, "--weights", "q4", **cache)
        pyinfer("convert", str(MODEL), model, "--weights", "q8", **cache)  # over what is there
        pyinfer("info", model, "--verify", **cache)


if __name__ == "__main__":
    main()
