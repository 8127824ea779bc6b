"""Runs probe_logits.py under a chosen instruction set. Knows the probe, nothing of what its answers should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core

THREADS = (1, 2, 3)
CHUNKS = (1, 7, 64, 512, 0)
"""Tokens of a prompt at once; 0 are steps of one."""
ISAS = tuple(name for name, runs_here in _core.isas() if runs_here)


@dataclass(frozen=True)
class Answer:
    """What one probe computed."""

    isa: str
    digests: dict[str, str]
    logits: NDArray[np.float32]  # (n_tokens, n_vocab)


def run_python(*arguments: str, isa: str | None = None, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs Python with PYINFER_ISA set to `isa`, or unset, and `text` on its stdin.

    It does not start in the sources' folder, where Python would find them instead of the installed package.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYINFER_ISA"}
    environment |= {"PYINFER_ISA": isa} if isa is not None else {}
    command = [sys.executable, *arguments]
    here = Path(__file__).parent
    return subprocess.run(
        command, env=environment, cwd=here, input=text, capture_output=True, text=True, check=False
    )


def probe_logits(
    model: Path,
    tokens: list[int],
    folder: Path,
    isa: str,
    activations: str = "int8",
    kv: str = "auto",
    threads: tuple[int, ...] = THREADS,
    chunks: tuple[int, ...] = CHUNKS,
) -> Answer:
    """Logits of `tokens` under `isa`, and the digests of all ways to compute them."""
    np.save(folder / "tokens.npy", np.array(tokens, np.int32))
    script = Path(__file__).with_name("probe_logits.py")
    paths = [str(path) for path in (script, model, folder / "tokens.npy", folder / "logits.npy")]
    ways = (",".join(map(str, chunks)), *map(str, threads))
    done = run_python(*paths, activations, kv, *ways, isa=isa)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    answer = json.loads(done.stdout)
    return Answer(answer["isa"], answer["digests"], np.load(folder / "logits.npy"))
