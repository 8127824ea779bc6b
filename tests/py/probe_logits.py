"""Computes logits in a process of its own, so that PYINFER_ISA can choose the instruction set.

    PYINFER_ISA=avx2 python probe_logits.py MODEL.bin TOKENS.npy LOGITS.npy ACTIVATIONS KV CHUNKS THREADS…

Writes the logits of all positions and prints the instruction set in use and a digest for every way of computing them:
threads, prefill chunks (`1,7,0`; 0 is one token at a time by steps). Equal digests are equal bits.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core


def digest(logits: NDArray[np.float32]) -> str:
    """A name of these bits."""
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def main() -> None:
    """Computes, writes, prints."""
    model, tokens_file, logits_file, activations, kv, chunks = sys.argv[1:7]
    file, tokens = _core.ModelFile(model), np.load(tokens_file).astype(np.int32)
    digests, logits = {}, np.empty((0, 0), np.float32)
    for threads in map(int, sys.argv[7:]):
        engine = _core.Engine(file, threads, activations)  # type: ignore[arg-type]
        for chunk in map(int, chunks.split(",")):
            session = _core.Session(engine, len(tokens), kv)  # type: ignore[arg-type]
            if chunk:
                logits = session.eval(tokens, "all", chunk)
            else:  # each step overwrites the last
                logits = np.array([session.step(int(token)).copy() for token in tokens])
            digests[f"{threads} threads, chunks of {chunk}"] = digest(logits)
    np.save(logits_file, logits)
    print(json.dumps({"isa": _core.active_isa(), "digests": digests}))


if __name__ == "__main__":
    main()
