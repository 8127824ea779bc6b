"""Says how large wheels are, and checks what they hold.

    python tools/check_wheel.py WHEEL_OR_FOLDER…

Checks that each holds one extension module of less than 5 MB, no sources but the header that pyinfer.capi reads, a
tag that a package index takes, and few dependencies. Knows archives; neither builds nor installs anything.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 5_000_000
"""Of the extension module as it is installed."""
DEPENDENCIES = {
    "numpy", "jinja2", "prompt-toolkit", "rich", "safetensors", "sentencepiece", "tokenizers",
}  # fmt: skip
"""Of the base install; each must have wheels for all platforms of docs/install.md."""
PLATFORM = re.compile(
    r"^(manylinux_2_\d+|musllinux_1_\d+|macosx_\d+_\d+)_(x86_64|aarch64|arm64)$|^win_amd64$"
)
MODULE = re.compile(r"^pyinfer/_core\.[^/]*(so|pyd)$")
NEEDLESS = re.compile(r"\.(cpp|h|inc|o|obj|lib|a|cmake)$|^(tests|csrc|bench)/")
HEADER = "pyinfer/pyinfer.h"
"""Of the C interface; pyinfer.capi declares its functions from it."""
LIBRARY = re.compile(r"^(pyinfer/\.dylibs|pyinfer\.libs)/")


def breaches(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """What is wrong with one wheel."""
    names = archive.namelist()
    modules = [info for info in archive.infolist() if MODULE.match(info.filename)]
    if len(modules) != 1:
        yield f"expected one extension module, found {len(modules)}"
    for info in modules:
        if info.file_size >= MOST_BYTES:
            yield f"{info.filename}: expected less than {MOST_BYTES} bytes, found {info.file_size}"
    for needed in ("pyinfer/py.typed", "pyinfer/_core.pyi", "pyinfer/__init__.py", HEADER):
        if needed not in names:
            yield f"expected {needed}, found none"
    yield from (
        f"expected no sources, found {name}" for name in names if name != HEADER and NEEDLESS.search(name)
    )
    for tag in path.stem.split("-")[-1].split("."):
        if not PLATFORM.match(tag):
            yield f"expected the tag of a platform that package indexes take, found {tag}"
    if (found := dependencies(archive)) != DEPENDENCIES:
        yield f"expected the dependencies {sorted(DEPENDENCIES)}, found {sorted(found)}"


def dependencies(archive: zipfile.ZipFile) -> set[str]:
    """Names of what the base install needs."""
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    lines = archive.read(name).decode().splitlines()
    needs = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    base = (line for line in needs if "extra ==" not in line)
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in base}


def describe(path: Path, archive: zipfile.ZipFile) -> str:
    """Sizes on one line."""
    parts = archive.infolist()
    core = sum(info.file_size for info in parts if MODULE.match(info.filename))
    libraries = sum(info.file_size for info in parts if LIBRARY.match(info.filename))
    whole = sum(info.file_size for info in parts)
    return (
        f"{path.name}: {path.stat().st_size / 1e6:.2f} MB to download, {whole / 1e6:.2f} MB installed, "
        f"{core / 1e6:.2f} MB of it the core, {libraries / 1e6:.2f} MB libraries"
    )


def main() -> int:
    """Prints sizes and every breach; 1 if there is one, or if no wheel was found."""
    given = [Path(name) for name in sys.argv[1:]]
    wheels = [found for path in given for found in (sorted(path.glob("*.whl")) if path.is_dir() else [path])]
    wrong = 0
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            print(describe(path, archive))
            for what in breaches(path, archive):
                print(f"{path.name}: {what}")
                wrong += 1
    print(f"wheels: {len(wheels)}, {wrong} breaches")
    return 1 if wrong or not wheels else 0


if __name__ == "__main__":
    sys.exit(main())
