"""Counts instructions and cycles of a running process with `perf stat`, and only while asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable

EVENTS = "instructions:u,cycles:u"


def reason_unavailable() -> str | None:
    """Why counting is impossible here, in one sentence; None if it works."""
    if shutil.which("perf") is None:
        return "perf is not installed"
    command = ["perf", "stat", "-x,", "-e", EVENTS, "true"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or "<not" in result.stderr:
        return f"perf cannot count {EVENTS} on this machine"
    return None


def count(pid: int, work: Callable[[], object]) -> dict[str, float]:
    """Events of all threads of a process while `work` runs, by name."""
    control_read, control_write = os.pipe()
    ack_read, ack_write = os.pipe()
    control = f"fd:{control_read},{ack_write}"
    perf = subprocess.Popen(
        ["perf", "stat", "-x,", "-e", EVENTS, "--delay=-1", f"--control={control}", "-p", str(pid)],
        pass_fds=(control_read, ack_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(control_read)
    os.close(ack_write)
    try:
        _command(control_write, ack_read, b"enable\n")
        work()
        _command(control_write, ack_read, b"disable\n")
    finally:
        perf.send_signal(signal.SIGINT)
        _, output = perf.communicate()
        os.close(control_write)
        os.close(ack_read)
    return _parse(output)


def _command(control: int, ack: int, text: bytes) -> None:
    os.write(control, text)
    if not os.read(ack, 16).startswith(b"ack"):
        raise RuntimeError("perf stat did not take a command")


def _parse(output: str) -> dict[str, float]:
    rows = [line.split(",") for line in output.splitlines() if line.count(",") >= 3]
    return {row[2].split(":")[0]: float(row[0]) for row in rows if row[0][:1].isdigit()}
