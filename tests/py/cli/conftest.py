"""What the tests of the command line share: a cache of their own, and a way to run `pyinfer` as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

Done: TypeAlias = "subprocess.CompletedProcess[str]"
Run: TypeAlias = Callable[..., Done]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the cache of the person who runs it, nor of another test."""
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run() -> Run:
    """Runs `pyinfer` in a process of its own; the keyword `stdin` is what comes through the pipe."""

    def call(*arguments: object, stdin: str | bytes = "", **environment: str) -> Done:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        command = [sys.executable, "-m", "pyinfer", *map(str, arguments)]
        done = subprocess.run(
            command, input=raw, capture_output=True, timeout=120, env={**os.environ, **environment}
        )
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return call
