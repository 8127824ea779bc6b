"""Drives a llama-bench binary, or any program with its options and its JSON, as one more engine.

    python bench/peer_llama_bench.py PATH serve

llama-bench loads the model and warms up on every run and times only the tokens; it has no batches of sequences and no
way to see logits.
Settings: `repack`, `flash_attn` (0 or 1), `n_ubatch`. A binary without an option for one has only what it does anyway.
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
USUAL = {"repack": 1, "flash_attn": 0, "n_ubatch": 512}


class LlamaBench(driver.Engine):
    """A llama-bench binary."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._help = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False).stdout
        self._build = ""

    def open(self, model: str, settings: Settings) -> None:
        """Remembers the model, which each run loads; asks the binary for its build by a run of one token."""
        self._model = model
        self._settings = settings
        self._build = str(self._run(["-p", "1", "-n", "0"]).get("build_commit", ""))

    def about(self) -> dict[str, Any]:
        """The binary and what it was built from."""
        return {"engine": "llama-bench", "version": self._binary, "build": self._build}

    def run(self, case: cases.Case, threads: int, settings: Settings) -> float:
        """Runs a case once; the seconds of its own tokens."""
        if case.kind == "batch":
            raise Unsupported("llama-bench has no batched decode")
        if "lora" in settings:
            raise Unsupported("llama-bench takes no adapters")
        prompt, generate = (case.tokens, 0) if case.kind == "prefill" else (0, case.tokens)
        options = ["-t", str(threads), "-p", str(prompt), "-n", str(generate), "-d", str(case.depth)]
        for name, value in {**self._settings, **settings}.items():
            if OPTIONS[name] in self._help:
                options += [OPTIONS[name], str(value)]
            elif int(value) != USUAL[name]:
                raise Unsupported(f"this binary has no {OPTIONS[name]}")
        return float(self._run(options)["samples_ns"][0]) / 1e9

    def _run(self, options: list[str]) -> dict[str, Any]:
        """What the binary says of one run."""
        command = [self._binary, "-m", self._model, "-r", "1", "-o", "json", "-ngl", "0", *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}")
        found: dict[str, Any] = json.loads(result.stdout)[0]
        return found

    def logits(self, n: int, threads: int, settings: Settings) -> list[float]:
        """Refuses."""
        raise Unsupported("llama-bench does not show logits")

    def forget(self) -> None:
        """Nothing is kept between runs."""


if __name__ == "__main__":
    if sys.argv[2:] != ["serve"]:
        sys.exit("usage: peer_llama_bench.py PATH serve")
    driver.serve(LlamaBench(sys.argv[1]))
