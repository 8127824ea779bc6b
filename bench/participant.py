"""An engine in a process of its own: starts the driver, asks, and reads the answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Settings = dict[str, Any]


@dataclass(frozen=True)
class Participant:
    """How to run one engine: settings of the model make a process each, settings of a run do not."""

    engine: str
    command: tuple[str, ...]
    model: Path
    open_settings: Settings = field(default_factory=dict)
    run_settings: tuple[Settings, ...] = ({},)
    batch_settings: tuple[Settings, ...] = ({},)
    environment: dict[str, str] = field(default_factory=dict)
    can_start: bool = True

    def variable_environment(self) -> dict[str, str]:
        """The environment of the driver."""
        return {**os.environ, **self.environment}


class ParticipantError(RuntimeError):
    """The driver failed or went away."""


class Skipped(Exception):
    """The engine cannot do this; the message says why."""


class Process:
    """A running driver with its model loaded."""

    def __init__(self, participant: Participant) -> None:
        self.participant = participant
        self._process = subprocess.Popen(
            [*participant.command, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=participant.variable_environment(),
        )
        opened = self.ask(op="open", model=str(participant.model), settings=participant.open_settings)
        self.about: dict[str, Any] = opened["about"]

    @property
    def pid(self) -> int:
        """The process that counters attach to."""
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ParticipantError(f"{self.participant.engine} ended with code {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ParticipantError(f"{self.participant.engine}: {reply['error']}")
        if "skip" in reply:
            raise Skipped(reply["skip"])
        return reply

    def run(self, case: str, threads: int, settings: Settings) -> float:
        """Tokens a second of one run of a case."""
        reply = self.ask(op="run", case=case, threads=threads, settings=settings)
        return float(reply["tokens"] / reply["seconds"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # what was asked of a process that had ended
            self._process.stdin.close()
        self._process.wait()


def measure_start(participant: Participant, threads: int) -> dict[str, Any]:
    """Seconds of one start in a fresh process up to its first token, and the memory it needs."""
    settings = {**participant.open_settings, **participant.run_settings[-1]}
    command = [*participant.command, "start", "--model", str(participant.model), "--threads", str(threads)]
    command += ["--settings", json.dumps(settings), "--spawned", str(time.monotonic())]
    result = subprocess.run(
        command, capture_output=True, text=True, env=participant.variable_environment(), check=False
    )
    if result.returncode != 0:
        raise ParticipantError(f"{participant.engine} cannot start: {result.stderr.strip()[-300:]}")
    reply: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return reply


def script(name: str, python: str = sys.executable) -> tuple[str, ...]:
    """The command that runs a driver of this folder."""
    return (python, str(HERE / name))
