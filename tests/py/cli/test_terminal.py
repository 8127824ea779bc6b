"""What is printed: sizes, columns, one-line errors, and bars that come late and on terminals only."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys

import pytest

from pyinfer.cli import terminal

COLOUR = re.compile(r"\x1b\[[39]\d")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(what: str = "converting a tensor") -> str:
    """What a terminal gets to see of some work."""
    screen = Screen()
    with contextlib.redirect_stderr(screen), terminal.progress() as progress:
        for done in range(0, 101, 10):
            progress(done << 20, 100 << 20, what)
    return screen.getvalue()


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE_SECONDS", 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (98_358_656, "93.8 MiB"),
        (5 << 30, "5.00 GiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert terminal.size(count) == text


def test_columns() -> None:
    assert terminal.table([("a", "b", "c"), ("long", "", "x\x1b[2J")]) == "a     b  c\nlong     x\\x1b[2J"


def test_work_of_less_than_a_second_shows_nothing() -> None:
    assert shown() == ""


@pytest.mark.usefixtures("impatient")
def test_longer_work_shows_a_bar() -> None:
    seen = shown()
    assert "converting a tensor" in seen
    assert "/100.0 MiB" in seen
    assert COLOUR.search(seen)


@pytest.mark.usefixtures("impatient")
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    seen = shown()
    assert "converting a tensor" in seen
    assert not COLOUR.search(seen)


@pytest.mark.usefixtures("impatient")
def test_a_pipe_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress() as progress:
        progress(1, 2, "converting a tensor")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("impatient")
def test_a_name_is_shown_as_it_is() -> None:
    assert "[bold]name[/bold]" in shown("[bold]name[/bold]")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_whole_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, errors="replace"))
    terminal.print_json({"text": "\u65e5 caf\u00e9"})
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"text": "\u65e5 caf\u00e9"}
    assert (b"\\u" in raw.getvalue()) == (encoding != "utf-8")
