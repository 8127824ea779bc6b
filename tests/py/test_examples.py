"""The examples run as they stand, with the tiny model."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyinfer import Model, load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=120, check=False)


def test_the_list_is_whole() -> None:
    listed = set(re.findall(r"\]\((?!\.\.)([^)]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")} | {"embed/README.md"}


# The assistant


def test_the_assistant_converses_within_its_budget(tiny_model_bin: Path) -> None:
    budget = ("--budget", "8", "--max-tokens", "8", "--seed", "3")
    done = run("assistant.py", str(tiny_model_bin), *budget, said="ab\n\ncd\n" + "ef\n" * 6)
    assert done.returncode == 0, done.stderr
    assert re.search(r", 128 tokens of context$", done.stderr.strip())
    assert done.stdout.count("\n") >= 8
    with load(tiny_model_bin, kv="q8") as model:
        first = model.chat("ab", max_tokens=8, seed=3).text
    assert run("assistant.py", str(tiny_model_bin), *budget, said="ab\n").stdout == first + "\n"


def test_the_assistant_says_what_budget_it_would_need(tiny_model_bin: Path) -> None:
    done = run("assistant.py", str(tiny_model_bin), "--budget", "1", said="hello\n")
    least = int(re.search(r"at least (\d+) MiB for \S+, found 1\n$", done.stderr).group(1))  # type: ignore[union-attr]
    assert done.returncode == 1 and done.stdout == ""
    assert (
        run("assistant.py", str(tiny_model_bin), "--budget", str(least), "--max-tokens", "4").returncode == 0
    )


def test_the_assistant_forgets_the_oldest_turns(tiny_model_bin: Path) -> None:
    """128 tokens hold a few turns of 20 and more; the tenth is answered none the less, one too long is not."""
    lines = "".join(f"turn number {i}\n" for i in range(10)) + "x" * 500 + "\nshort\n"
    done = run("assistant.py", str(tiny_model_bin), "--max-tokens", "8", "--seed", "1", said=lines)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("expected a turn that fits into 128 tokens with its answer of 8") == 1


# The service


@contextlib.contextmanager
def serving(model: Path) -> Iterator[int]:
    """The port of a service, which is then stopped as by Ctrl-C and must end well."""
    command = [
        sys.executable,
        str(EXAMPLES / "service.py"),
        str(model),
        "--port",
        "0",
        "--users",
        "3",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        yield int(process.stdout.readline().rsplit(" ", 1)[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.fixture
def port(tiny_model_bin: Path) -> Iterator[int]:
    with serving(tiny_model_bin) as port:
        yield port


class Client:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._lines = self._socket.makefile("rwb")

    def send(self, raw: bytes) -> None:
        self._lines.write(raw + b"\n")
        self._lines.flush()

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """All that comes back for a request."""
        self.send(json.dumps(request).encode())
        return self.answer()

    def answer(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        while not lines or "text" in lines[-1]:
            lines.append(json.loads(self._lines.readline()))
        return lines

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def text(lines: list[dict[str, Any]]) -> str:
    return "".join(line.get("text", "") for line in lines)


@pytest.mark.skipif(sys.platform == "win32", reason="ends by a signal that is POSIX")
def test_the_service_answers_several_users_at_once(port: int, tiny_chat: Model) -> None:
    words = ("ab", "cd", "ef")
    alone = [tiny_chat.chat(word, max_tokens=30, seed=5).text for word in words]
    found: list[list[dict[str, Any]]] = [[], [], []]
    clients = [Client(port) for _ in words]

    def talk(i: int) -> None:
        found[i] = clients[i].ask(say=words[i], max_tokens=30, seed=5)

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text(lines) for lines in found] == alone
    assert all(lines[-1]["done"] in ("stop", "length") for lines in found)

    with contextlib.closing(Client(port)) as fourth:
        assert fourth.answer() == [{"error": "expected a free place, found none: come back later"}]
    second_turn = clients[0].ask(say="more", max_tokens=5, seed=5)
    assert "done" in second_turn[-1]
    for client in clients:
        client.close()


@pytest.mark.skipif(sys.platform == "win32", reason="ends by a signal that is POSIX")
def test_the_service_refuses_and_lives_on(port: int) -> None:
    client = Client(port)
    for raw, part in (
        (b"nonsense", "Expecting value"),
        (b"[1]", 'expected {"say": TEXT}'),
        (
            b'{"say": "a", "adapters": ["/etc"]}',
            "expected options among max_tokens, seed, temperature, found adapters",
        ),
        (b'{"say": "a", "temperature": 1e9}', "temperature: expected a number from 0 to 100"),
        (b'{"say": "' + b"x" * 1000 + b'"}', "the context holds 128"),
        (b"[" * 60_000, "recursion"),
    ):
        client.send(raw)
        [answer] = client.answer()
        assert part in answer["error"]
    assert "done" in client.ask(say="ab", max_tokens=3)[-1]
    client.close()
    gone = [Client(port) for _ in range(3)]
    for one in gone:  # leave in the middle of an answer
        one.send(b'{"say": "ab", "max_tokens": 100}')
        one.close()
    long = Client(port)
    with contextlib.suppress(ConnectionError, json.JSONDecodeError):
        long.send(b"x" * 100_000)
        long.answer()
    long.close()
    for _ in range(50):  # until their places are free again
        last = Client(port)
        lines = last.ask(say="ab", max_tokens=3)
        last.close()
        if "done" in lines[-1]:
            return
    raise AssertionError("expected a free place after all have gone")


@pytest.mark.skipif(sys.platform == "win32", reason="ends by a signal that is POSIX")
def test_the_service_stops_while_somebody_is_connected(tiny_model_bin: Path) -> None:
    with serving(tiny_model_bin) as port:
        idle, asking = Client(port), Client(port)
        assert "done" in idle.ask(say="ab", max_tokens=3)[-1]
        asking.send(b'{"say": "ab", "max_tokens": 100}')
    idle.close()
    asking.close()


# The batch


def test_the_batch_answers_every_row_and_goes_on(
    tiny_model_bin: Path, tiny_chat: Model, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('name,thing\nAda,"a, b"\nBob,c\nEve,"d ""e"""\n', encoding="utf-8")
    options = ("--prompt", "{name} has {thing}", "--max-tokens", "6", "--column", "says")
    done = run("batch.py", str(tiny_model_bin), str(source), str(target), *options)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["Ada", "Bob", "Eve"]
    prompts = ["Ada has a, b", "Bob has c", 'Eve has d "e"']
    answers = [tiny_chat.chat(prompt, max_tokens=6, temperature=0).text.strip() for prompt in prompts]
    assert [row["says"] for row in rows] == answers

    whole = target.read_bytes()
    lines = whole.splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:2]))
    assert run("batch.py", str(tiny_model_bin), str(source), str(target), *options).returncode == 0
    assert target.read_bytes() == whole
    target.write_bytes(lines[0])  # stopped before the first answer
    assert run("batch.py", str(tiny_model_bin), str(source), str(target), *options).returncode == 0
    assert target.read_bytes() == whole
    for prompt, said in (
        ("{nobody}", "--prompt: expected columns among name, thing, found 'nobody'"),
        ("{}", "--prompt: expected names of columns in braces, found '{}'"),
        ("{name.x}", "--prompt: expected names of columns in braces"),
    ):
        done = run("batch.py", str(tiny_model_bin), str(source), str(tmp_path / "x.csv"), "--prompt", prompt)
        assert said in done.stderr and done.stderr.count("\n") == 1
    source.write_text("name,thing\nAda,a,b\n", encoding="utf-8")
    done = run("batch.py", str(tiny_model_bin), str(source), str(tmp_path / "x.csv"), "--prompt", "{name}")
    assert "in.csv: expected at most 2 cells in line 2, found more" in done.stderr
    assert not (tmp_path / "x.csv").exists()
