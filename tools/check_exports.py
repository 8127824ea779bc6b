"""Checks with `nm` that libpyinfer exports the functions that csrc/api/pyinfer.h declares, all and nothing else.

Why: a symbol of the core or of the C++ library that leaks out may be taken for, or be replaced by, one of the program
that loads it; a function that is declared and not exported is found by the first user.

    python tools/check_exports.py LIBRARY
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "api" / "pyinfer.h"
DECLARED = re.compile(r"^PYI_API [^(;]*?\b(pyi_\w+)\(", re.MULTILINE)


def declared() -> set[str]:
    """Functions of the header."""
    return set(DECLARED.findall(HEADER.read_text(encoding="utf-8")))


def exported(library: Path) -> set[str]:
    """Symbols that a library offers to others."""
    flags = ["-gU"] if sys.platform == "darwin" else ["-D", "--defined-only"]
    listing = subprocess.run(["nm", *flags, str(library)], check=True, capture_output=True, text=True).stdout
    names = (line.split()[-1] for line in listing.splitlines() if line.strip())
    return {name.removeprefix("_") if sys.platform == "darwin" else name for name in names}


def main() -> int:
    """Prints every breach; 1 if there is one."""
    header, library = declared(), exported(Path(sys.argv[1]))
    found = [f"exports {name}, which pyinfer.h does not declare" for name in sorted(library - header)]
    found += [f"does not export {name}, which pyinfer.h declares" for name in sorted(header - library)]
    for what in found:
        print(f"{sys.argv[1]}: {what}")
    print(f"exports: {len(library)} symbols of {sys.argv[1]}, {len(found)} breaches")
    return 1 if found or not header else 0


if __name__ == "__main__":
    sys.exit(main())
