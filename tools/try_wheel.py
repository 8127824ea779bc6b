"""Installs a wheel into an empty environment and runs it there without a compiler.

    python tools/try_wheel.py WHEEL [CPU…]

The wheel must answer as tests/wheel/smoke.py demands. For each CPU named, such as Nehalem, it must tell its story on
that CPU of qemu-x86_64 too: an instruction that the CPU has not ends the program there. Dependencies come as wheels
only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORY = (
    "import pyinfer; model = pyinfer.load({model!r}); "
    "print(model.generate('Once upon a time', max_tokens=24, temperature=0).text); print(model.isa)"
)
EXPECTED = ", there was a little girl named Lily. She loved to play outside in the p"


def run(*command: str, **environment: str) -> str:
    """Standard output of a command that must succeed, run with nothing in PATH."""
    environment |= {"PATH": "", "HOME": "/"}
    done = subprocess.run(command, env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def install(wheel: Path, folder: Path) -> str:
    """A new environment with the wheel in it; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = str(folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
    command = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", str(wheel)]
    subprocess.run(command, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return python


def try_on(cpu: str, python: str, cache: str) -> None:
    """Greedy generation on an emulated CPU."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        raise SystemExit("qemu-x86_64: expected it in PATH (Debian: apt install qemu-user), found none")
    code = STORY.format(model=str(ROOT / "tests/data/stories260K.bin"))
    environment = {"PYINFER_CACHE": cache, "OPENBLAS_NUM_THREADS": "1"}
    said, isa = run(emulator, "-cpu", cpu, python, "-c", code, **environment).rstrip().rsplit("\n", 1)
    if said.strip() != EXPECTED.strip():
        raise SystemExit(f"on {cpu}: expected {EXPECTED!r}, found {said!r}")
    print(f"ok: the story on {cpu} with {isa}")


def main() -> int:
    """Tries the wheel here, then on each CPU."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python tools/try_wheel.py WHEEL [CPU…]")
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(sys.argv[1]).resolve(), Path(folder) / "venv")
        print(run(python, str(ROOT / "tests/wheel/smoke.py")))
        for cpu in sys.argv[2:]:
            try_on(cpu, python, str(Path(folder) / "cache"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
