"""Measures what it takes to attach an adapter to a model: seconds, and memory that the process has for itself.

    python bench/attach.py MODEL [--rank 16] [--repeats 5] [--peft] [--json]

MODEL is what `pyinfer.load` takes; `python bench/make_model.py` makes one of any shape. Each repeat writes an adapter
of random halves for all seven linears of every layer, opens it and puts it on the model, which answers before and
after. Private memory is what nobody else can see: the base, being mapped from its file, is not in it, unless something
copied or wrote to it. `base_private_mb` is that part of the base's own mapping.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import make_adapter
import pyinfer
from shapes import Shape

MB = 1e6


def shape_of(model: pyinfer.Model) -> Shape:
    """The shape of a model, as the makers of files know it."""
    spec = model.spec
    return Shape(
        dim=spec["dim"],
        n_layers=spec["n_layers"],
        n_heads=spec["n_heads"],
        n_kv_heads=spec["n_kv_heads"],
        n_ff=spec["n_ff"],
        n_vocab=spec["n_vocab"],
    )


def private_bytes() -> int:
    """Resident bytes of this process alone."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


def base_private_bytes(path: Path) -> tuple[int, int]:
    """(mapped, written) bytes of a file's mappings."""
    mapped = written = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = line.endswith(str(path.resolve()))
        elif inside and words[0] == "Size:":
            mapped += int(words[1]) * 1024
        elif inside and words[0] == "Private_Dirty:":
            written += int(words[1]) * 1024
    return mapped, written


def attach_once(model: pyinfer.Model, path: Path) -> dict[str, float]:
    """Attaches the adapter of a path under a name of its own, asks for a token with it, and takes it off."""
    bare = model.logits([1], adapters=[])
    before = private_bytes()
    start = time.perf_counter()
    adapter = pyinfer.Adapter.load(path)
    read = time.perf_counter()
    model.add_adapter(adapter, "measured")
    packed = time.perf_counter()
    after = private_bytes()
    shown = float(np.abs(model.logits([1], adapters=["measured"]) - bare).max())
    mapped, written = base_private_bytes(model.path)
    model.remove_adapter("measured")
    return {
        "read_s": read - start,
        "pack_s": packed - read,
        "attach_s": packed - start,
        "private_before_mb": before / MB,
        "private_after_mb": after / MB,
        "adapter_mb": adapter.bytes / MB,
        "base_mapped_mb": mapped / MB,
        "base_private_mb": written / MB,
        "logits_differ_by": shown,
    }


def measure(model: pyinfer.Model, rank: int, repeats: int, peft: bool) -> list[dict[str, float]]:
    """All repeats, each with an adapter of its own."""
    found = []
    with tempfile.TemporaryDirectory(prefix="attach-") as folder:
        for seed in range(repeats):
            name = f"{seed}" if peft else f"{seed}.gguf"
            write = make_adapter.write_peft if peft else make_adapter.write
            found.append(attach_once(model, write(shape_of(model), rank, Path(folder) / name, seed)))
    return found


def main() -> None:
    """Prints medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peft", action="store_true", help="a PEFT folder instead of a GGUF file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with pyinfer.load(options.model, context=64) as model:
        found = measure(model, options.rank, options.repeats, options.peft)
    medians: dict[str, Any] = {name: statistics.median(one[name] for one in found) for name in found[0]}
    if options.json:
        print(json.dumps(medians))
        return
    for name, value in medians.items():
        print(f"{name:20} {value:12.3f}")


if __name__ == "__main__":
    main()
