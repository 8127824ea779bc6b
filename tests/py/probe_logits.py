"""Computes logits in a process of its own, so that PYINFER_ISA can choose the instruction set.

    PYINFER_ISA=avx2 python probe_logits.py MODEL.bin TOKENS.npy LOGITS.npy ACTIVATIONS KV THREADS…

Writes the logits of all positions and prints the instruction set in use and a digest for every way of computing them:
threads, prefill chunks, one token at a time. Equal digests are equal bits.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core

CHUNKS = (1, 7, 64, 512)


def digest(logits: NDArray[np.float32]) -> str:
    """A name of these bits."""
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def main() -> None:
    """Computes, writes, prints."""
    model, tokens_file, logits_file, activations, kv = sys.argv[1:6]
    file, tokens = _core.ModelFile(model), np.load(tokens_file).astype(np.int32)
    digests, logits = {}, np.empty((0, 0), np.float32)
    for threads in map(int, sys.argv[6:]):
        engine = _core.Engine(file, threads, activations)  # type: ignore[arg-type]
        for chunk in CHUNKS:
            logits = _core.Session(engine, len(tokens), kv).eval(tokens, "all", chunk)  # type: ignore[arg-type]
            digests[f"{threads} threads, chunks of {chunk}"] = digest(logits)
        session = _core.Session(engine, len(tokens), kv)  # type: ignore[arg-type]
        stepped = np.array(
            [session.step(int(token)).copy() for token in tokens]
        )  # each step overwrites the last
        digests[f"{threads} threads, steps"] = digest(stepped)
    np.save(logits_file, logits)
    print(json.dumps({"isa": _core.active_isa(), "digests": digests}))


if __name__ == "__main__":
    main()
