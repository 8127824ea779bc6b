"""Builds the source archive, from it the wheel, and gives the wheel the lowest tag that its symbols allow.

    python tools/build_wheel.py FOLDER     (in an environment with the extra `wheel`)

The C++ library stays a shared one: linked in, Debian 12's asks for a newer C library than all else here does, and
nearly doubles the core. Wheels for all platforms are built by cibuildwheel, see pyproject.toml; this is the same on one
machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = re.compile(r"/kernels_(\w+)\.dir/.*\.(o|obj)$")


def environment() -> dict[str, str]:
    """This one, the tools of this interpreter's environment first."""
    found = dict(os.environ)
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", "")])
    return found


def run(*command: str) -> None:
    """Runs a command; ends the program if it fails."""
    print("+", *command, flush=True)
    code = subprocess.run(command, env=environment(), cwd=ROOT, check=False).returncode
    if code != 0:
        raise SystemExit(f"{command[0]}: exit code {code}")


def build(folder: Path, unpacked: Path) -> Path:
    """The source archive into `folder`, and the wheel that is built from what it holds; returns the wheel.

    The objects lie where they lie in a checkout, so that a compiler cache knows them.
    """
    run(sys.executable, "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT))
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, unpacked)
    [source] = unpacked.iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source))
    [wheel] = folder.glob("*.whl")
    return wheel


def repair(wheel: Path, folder: Path) -> None:
    """Replaces the wheel by one with a tag that package indexes take."""
    run("auditwheel", "show", str(wheel))
    run("auditwheel", "repair", "--wheel-dir", str(folder), str(wheel))
    if len(list(folder.glob("*.whl"))) > 1:
        wheel.unlink()


def print_kernel_sizes(objects: Path) -> None:
    """Bytes of code and tables of each instruction set, as `size` counts them."""
    for path in sorted(objects.rglob("*")):
        if found := KERNELS.search(path.as_posix()):
            said = subprocess.run(["size", str(path)], check=True, capture_output=True, text=True).stdout
            text, data, *_ = map(int, said.splitlines()[1].split()[:3])
            print(f"kernels {found.group(1):16}{(text + data) / 1e3:8.1f} kB")


def main() -> int:
    """Builds into the folder that was asked for, and checks what came out."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/build_wheel.py FOLDER")
    folder = Path(sys.argv[1]).resolve()
    if folder.exists() and any(path.suffix in (".whl", ".gz") for path in folder.iterdir()):
        raise SystemExit(f"{folder}: expected a folder without wheels and archives, found some")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as unpacked:
        wheel = build(folder, Path(unpacked))
        print(f"built in {time.monotonic() - start:.0f} s")
        print_kernel_sizes(Path(unpacked))
    if sys.platform == "linux":
        repair(wheel, folder)
    run(sys.executable, str(ROOT / "tools/check_wheel.py"), str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
