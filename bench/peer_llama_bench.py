"""Drives a llama-bench binary, or any program with its options and its JSON, as one more engine.

    python bench/peer_llama_bench.py PATH serve

llama-bench loads the model and warms up on every run and times only the tokens; it has no batches of sequences and no
way to see logits.
Settings: `repack`, `flash_attn` (0 or 1), `n_ubatch`; those that the binary does not know are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import cases
import driver
from driver import Settings, Unsupported

OPTIONS = {"repack": "--repack", "flash_attn": "--flash-attn", "n_ubatch": "--ubatch-size"}


class LlamaBench(driver.Engine):
    """A llama-bench binary."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._help = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False).stdout
        self._last: dict[str, Any] = {}

    def open(self, model: str, settings: Settings) -> None:
        """Remembers the model; each run loads it."""
        self._model = model
        self._settings = settings

    def about(self) -> dict[str, Any]:
        """The binary and what it was built from."""
        return {"engine": "llama-bench", "version": self._binary, "build": self._last.get("build_commit", "")}

    def run(self, case: cases.Case, threads: int, settings: Settings) -> float:
        """Runs a case once; the seconds of its own tokens."""
        if case.kind == "batch":
            raise Unsupported("llama-bench has no batched decode")
        if "lora" in settings:
            raise Unsupported("llama-bench takes no adapters")
        prompt, generate = (case.tokens, 0) if case.kind == "prefill" else (0, case.tokens)
        command = [self._binary, "-m", self._model, "-t", str(threads), "-r", "1", "-o", "json", "-ngl", "0"]
        command += ["-p", str(prompt), "-n", str(generate), "-d", str(case.depth)]
        for name, value in {**self._settings, **settings}.items():
            if OPTIONS[name] in self._help:
                command += [OPTIONS[name], str(value)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}")
        self._last = json.loads(result.stdout)[0]
        return float(self._last["samples_ns"][0]) / 1e9

    def logits(self, n: int, threads: int, settings: Settings) -> list[float]:
        """Refuses."""
        raise Unsupported("llama-bench does not show logits")

    def forget(self) -> None:
        """Nothing is kept between runs."""


if __name__ == "__main__":
    if sys.argv[2:] != ["serve"]:
        sys.exit("usage: peer_llama_bench.py PATH serve")
    driver.serve(LlamaBench(sys.argv[1]))
