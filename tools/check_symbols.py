"""Checks with `nm` that each instruction set's kernels export one symbol, no weak one, and need no C++.

Why: those objects are compiled with the flags of one instruction set. A weak symbol in them (an inline function of a
standard header) may be chosen by the linker for the whole program, which then dies on a CPU without that set.

    python tools/check_symbols.py [BUILD_FOLDER]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OBJECT = re.compile(r"/(kernels_\w+)\.dir/.*\.(o|obj)$")
WEAK, UNDEFINED = set("WwVvu"), "U"


def symbols(path: Path) -> list[tuple[str, str]]:
    """(type, name) of every symbol of an object, by `nm`."""
    listing = subprocess.run(["nm", "-P", str(path)], check=True, capture_output=True, text=True).stdout
    return [(kind, name) for name, kind, *_ in (line.split() for line in listing.splitlines())]


def breaches(path: Path) -> list[str]:
    """What is wrong with one object."""
    table = symbols(path)
    wrong = [f"weak symbol {name}" for kind, name in table if kind in WEAK]
    wrong += [f"needs {name} of C++" for kind, name in table if kind == UNDEFINED and name.startswith("_Z")]
    exported = [name for kind, name in table if kind.isupper() and kind not in WEAK and kind != UNDEFINED]
    if len(exported) != 1:
        wrong.append(f"expected one exported symbol, found {len(exported)}: {', '.join(exported) or 'none'}")
    return wrong


def main() -> int:
    """Prints every breach; 1 if there is one, or if no object was found to check."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build"
    objects = [path for path in sorted(folder.rglob("*")) if OBJECT.search(path.as_posix())]
    found = [(path, what) for path in objects for what in breaches(path)]
    for path, what in found:
        print(f"{path}: {what}")
    print(f"symbols: {len(objects)} kernel objects under {folder}, {len(found)} breaches")
    return 1 if found or not objects else 0


if __name__ == "__main__":
    sys.exit(main())
