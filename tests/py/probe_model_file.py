"""Opens variants of a model.bin in a process of its own, so that a crash is an answer and not the end of the tests.

    python probe_model_file.py BASE.bin < variants

Each line of stdin is a JSON object: "patch" is a list of [offset, bytes in hex] over the bytes of BASE, "bytes" the
length to cut or extend to with zeros, or null. Each line of stdout answers one: "refused MESSAGE", "opened", or the
name of another exception. What opens is also run for three tokens: a number that passed the checks shows what it does.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

from pyinfer import _core
from pyinfer.errors import ModelFileError

MEMORY = 4 << 30  # a hostile size must be refused, not tried


def variant(base: bytes, patch: list[tuple[int, str]], size: int | None) -> bytes:
    """The bytes of one variant."""
    data = bytearray(base)
    for offset, new in patch:
        data[offset : offset + len(new) // 2] = bytes.fromhex(new)
    return bytes(data if size is None else data[:size].ljust(size, b"\0"))


def outcome(path: Path) -> str:
    """What happens when the file is opened and run."""
    try:
        file = _core.ModelFile(str(path))
    except ModelFileError as error:
        return f"refused {error}"
    except Exception as error:
        return f"{type(error).__name__} {error}"
    engine = _core.Engine(file, threads=1)
    session = _core.Session(engine, min(file.spec["context"], 8))
    session.eval(np.zeros(min(session.context, 3), np.int32))
    return "opened"


def main() -> None:
    """Answers every line of stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    base = Path(sys.argv[1]).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "variant.bin")
        for line in sys.stdin:
            asked = json.loads(line)
            path.write_bytes(variant(base, asked["patch"], asked["bytes"]))
            print(outcome(path).replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
