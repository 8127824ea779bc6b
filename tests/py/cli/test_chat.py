"""The chat: what it keeps, its commands, its keys, and one whole conversation on a terminal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import pyinfer
from pyinfer.cli.chat import COMMANDS, Chat, _prompt_session

GREEDY = {"params": pyinfer.SamplingParams(temperature=0), "max_tokens": 6}


@pytest.fixture
def talk(tiny_chat: pyinfer.Model) -> Iterator[Chat]:
    with tiny_chat.session() as session:
        yield Chat(session, GREEDY)


def roles(talk: Chat) -> list[str]:
    return [message["role"] for message in talk.session.messages]


def test_turns_are_kept_and_answered_like_a_whole_chat(
    talk: Chat, tiny_chat: pyinfer.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.hear("the")
    talk.hear("the the")
    assert roles(talk) == ["user", "assistant"] * 2
    first, second = (talk.session.messages[i]["content"] for i in (1, 3))
    whole = tiny_chat.chat(talk.session.messages[:3], temperature=0, max_tokens=6).text
    assert whole == second
    assert first in capsys.readouterr().out


def test_an_empty_line_asks_nothing(talk: Chat) -> None:
    talk.hear("  \n")
    assert roles(talk) == []


def test_every_command_is_in_the_help(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COMMANDS) == {"help", "clear", "system", "save", "load", "lora", "stats", "exit"}
    talk.hear("/help")
    said = capsys.readouterr().err
    for name in COMMANDS:
        assert f"/{name}" in said


def test_system_message_and_clear(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk.hear("/system")
    assert "no system message" in capsys.readouterr().err
    talk.hear("the")
    talk.hear("/system Be brief.\nBe kind.")
    assert roles(talk) == ["system", "user", "assistant"]
    assert talk.session.messages[0]["content"] == "Be brief.\nBe kind."
    talk.hear("/system Be long.")
    assert roles(talk) == ["system", "user", "assistant"]
    talk.hear("/clear")
    assert roles(talk) == ["system"]
    talk.hear("/system")
    assert "Be long." in capsys.readouterr().err


def test_the_oldest_turns_go_where_the_context_is_full(
    tiny_model_bin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pyinfer.load(tiny_model_bin, threads=1, context=96) as model, model.session() as session:
        talk = Chat(session, GREEDY)
        talk.hear("/system Be brief.")
        for _ in range(12):
            talk.hear("and what then?")
        said = capsys.readouterr().err
        assert "messages are left out, the context is full" in said and "the prompt has" not in said
        assert roles(talk)[:3] == ["system", "user", "assistant"] and len(roles(talk)) < 2 * 12
        talk.hear("word " * 96)
        assert "the prompt has" in capsys.readouterr().err


def test_a_system_message_that_the_format_has_no_place_for(
    tiny_chat: pyinfer.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    with tiny_chat.session() as session:
        talk = Chat(session, GREEDY, {"format": "koala"})
        talk.hear("/system Be brief.")
        assert "expected no system message" in capsys.readouterr().err
        assert session.messages == ()


def test_a_system_message_from_a_file_reaches_no_terminal_raw(
    talk: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "system", "content": "a\x1b]0;title\x07\nb"}]
    (tmp_path / "talk.json").write_text(json.dumps(messages))
    talk.hear(f"/load {tmp_path / 'talk.json'}")
    talk.hear("/system")
    assert "a\\x1b]0;title\\x07\nb\n" in capsys.readouterr().err


def test_a_number_that_is_too_large_for_a_template_is_said(
    talk: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talk.json").write_text(f'[{{"role": "user", "content": "a", "n": {10**2000}}}]')
    talk.hear(f"/load {tmp_path / 'talk.json'}")
    talk.hear("the")
    assert "pyinfer: messages: expected whole numbers of at most 4096 bits" in capsys.readouterr().err
    assert roles(talk) == ["user"]


def test_save_and_load(talk: Chat, tmp_path: Path) -> None:
    talk.hear("the")
    said = talk.session.messages
    talk.hear(f"/save {tmp_path / 'a talk.json'}")
    assert json.loads((tmp_path / "a talk.json").read_text()) == {"messages": list(said)}
    talk.hear("/clear")
    talk.hear(f"/load {tmp_path / 'a talk.json'}")
    assert talk.session.messages == said


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"5",
        b"{}",
        b"[5]",
        b'{"messages": 3}',
        b'{"messages": [{"role": "user"}]}',
        b"\xff",
        b"[" * 9999,
    ],
)
def test_what_save_did_not_write_is_refused(
    content: bytes | None, talk: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.hear("the")
    before, path = talk.session.messages, tmp_path / "talk.json"
    if content is not None:
        path.write_bytes(content)
    capsys.readouterr()
    talk.hear(f"/load {path}")
    said = capsys.readouterr().err
    assert said.startswith("pyinfer: ")
    assert said.count("\n") == 1
    assert talk.session.messages == before


@pytest.mark.parametrize(
    "line",
    [
        "/nonsense",
        "/save",
        "/load",
        "/save /proc/nothing/here",
        "/save ~nobody-at-all/x",
        "/load a\0b",
        "/save /",
        "/save .",
    ],
)
def test_mistakes_are_said_and_the_chat_goes_on(
    line: str, talk: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.hear(line)
    said = capsys.readouterr().err
    assert said.startswith("pyinfer: ")
    assert said.count("\n") == 1
    assert not talk.over


def test_a_path_at_the_beginning_is_no_command(talk: Chat) -> None:
    talk.hear("/usr/bin is what?")
    assert talk.session.messages[0]["content"] == "/usr/bin is what?"


def test_a_conversation_too_long_is_said_and_kept_as_it_was(
    talk: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.hear("the")
    before = talk.session.messages
    talk.hear("x" * 500)
    assert "context holds 128" in capsys.readouterr().err
    assert talk.session.messages == before


def test_ctrl_c_stops_the_answer_and_keeps_what_came(
    talk: Chat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyinfer.cli import answer

    def interrupted(stream: pyinfer.Stream) -> pyinfer.Completion:
        while not next(stream).text:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(answer, "write", interrupted)
    talk.hear("the")
    assert roles(talk) == ["user", "assistant"]
    assert "(stopped)" in capsys.readouterr().err
    assert not talk.over


def test_stats_say_how_full_the_context_is(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk.hear("the")
    talk.hear("/stats")
    said = capsys.readouterr().err
    assert "decode" in said
    assert f"{talk.session.position} of 128 tokens" in said


def test_raw_continues_each_text(stories: pyinfer.Model, capsys: pytest.CaptureFixture[str]) -> None:
    with stories.session() as session:
        talk = Chat(session, GREEDY, raw=True)
        talk.hear("Once upon")
        assert (
            capsys.readouterr().out == stories.generate("Once upon", temperature=0, max_tokens=6).text + "\n"
        )
        talk.hear("/system x")
        assert "chat template" in capsys.readouterr().err


def test_exit_ends_it(talk: Chat) -> None:
    talk.hear("/exit")
    assert talk.over


# Keys


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("one\r", "one"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("a\\b\r", "a\\b"),
        ("\x1b[200~one\ntwo\x1b[201~\r", "one\ntwo"),
    ],
)
def test_keys(keys: str, text: str) -> None:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        assert _prompt_session().prompt("> ") == text


def test_history_is_kept_and_private(own_cache: Path) -> None:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("something\r")
        _prompt_session().prompt("> ")
        pipe.send_text("\x1b[A\r")
        assert _prompt_session().prompt("> ") == "something"
    assert (own_cache / "history").stat().st_mode & 0o777 == 0o600


def test_without_a_cache_folder_the_chat_goes_on(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_cache.write_text("in the way")
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("something\r")
        assert _prompt_session().prompt("> ") == "something"
    assert "history of this chat is not kept" in capsys.readouterr().err


def test_a_history_on_a_full_disk_is_not_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prompt_toolkit.history.FileHistory.store_string", full)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        prompt = _prompt_session()
        for line in ("one", "two"):
            pipe.send_text(f"{line}\r")
            assert prompt.prompt("> ") == line
    assert (own_cache / "history").read_bytes() == b""


def test_what_is_no_utf8_is_not_kept(own_cache: Path) -> None:
    """As from a terminal or a paste in Latin-1."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_bytes(b"caf\xe9 au lait\r")
        assert _prompt_session().prompt("> ") == "caf\udce9 au lait"
    assert (own_cache / "history").read_bytes() == b""


# A terminal


READY = "\x1b[?2004h"
"""What a prompt that waits for input begins with: it turns bracketed paste on."""

NOT_READY = "\x1b[?2004l"


class Terminal:
    """A person at a terminal: waits for what is shown, then types."""

    def __init__(self, *arguments: object) -> None:
        import pty

        self._screen, side = pty.openpty()
        command = [sys.executable, "-m", "pyinfer", *map(str, arguments)]
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
        )
        os.close(side)
        self.seen = ""

    def wait(self, text: str, seconds: float = 30) -> None:
        """Until the text is shown after all that was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self._screen], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come, but {self.seen!r}"
            self.seen += os.read(self._screen, 65536).decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def close(self) -> int:
        with contextlib.suppress(OSError):
            while select.select([self._screen], [], [], 10)[0] and os.read(self._screen, 65536):
                pass
        os.close(self._screen)
        return self.process.wait(30)


def test_a_chat_that_nobody_would_see_is_refused(tiny_model_bin: Path) -> None:
    import pty

    screen, side = pty.openpty()
    command = [sys.executable, "-m", "pyinfer", "run", str(tiny_model_bin)]
    done = subprocess.run(command, stdin=side, capture_output=True, text=True, timeout=30, check=False)
    os.close(screen)
    os.close(side)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyinfer: the prompt is missing: ")
    assert done.stderr.count("\n") == 1


def test_a_conversation_on_a_terminal(tiny_model_bin: Path) -> None:
    terminal = Terminal("run", tiny_model_bin, "--greedy", "-n", 4, "-t", 1, "--system", "Be brief.")
    try:
        terminal.wait("/help lists commands")
        terminal.wait(READY)
        terminal.type("the\r")
        terminal.wait(READY)
        terminal.type("half a line\x03")
        terminal.wait(READY)
        terminal.type("/stats\r")
        terminal.wait("of 128 tokens.")
        terminal.wait(READY)
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()


def test_ctrl_c_on_a_terminal_stops_the_answer_not_the_program(tmp_path: Path) -> None:
    import gguf_writer

    shape = gguf_writer.TinyLlama(n_vocab=300, context=1 << 16)
    path = gguf_writer.write_llama(tmp_path / "m.gguf", shape, tokenizer="spm")
    terminal = Terminal(
        "run", path, "--raw", "--ctx", 1 << 16, "-t", 1, "--logit-bias", "2=-inf", "--seed", 1
    )
    try:
        terminal.wait(READY)
        terminal.type("a\r")
        terminal.wait(NOT_READY)
        time.sleep(0.5)
        os.killpg(terminal.process.pid, signal.SIGINT)
        terminal.wait("(stopped)")
        terminal.wait(READY)
        terminal.type("/exit\r")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
