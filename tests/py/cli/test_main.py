"""The entry point: help, usage, exit codes, one line for what goes wrong, a traceback for a bug."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pyinfer.cli.main as cli
from pyinfer.errors import DownloadError, MemoryLimitError, ModelFileError

HEAVY = {
    "numpy",
    "rich",
    "prompt_toolkit",
    "jinja2",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "huggingface_hub",
    "asyncio",
    "http",
    "logging",
    "multiprocessing",
    "ssl",
    "subprocess",
    "pyinfer.model",
    "pyinfer.convert",
}
"""What takes longer to import than to print a page of help, the standard library's and our own among it."""


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyinfer", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )


def test_help_lists_every_verb() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb, line in cli.VERBS.items():
        assert verb in done.stdout
        assert line in done.stdout
    assert run().stdout == done.stdout, "no argument at all asks for help"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: pyinfer {verb}")


def test_verbs_are_the_modules_of_the_folder() -> None:
    helpers = {"__init__", "answer", "chat", "conversation", "main", "opened", "options", "terminal"}
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules - helpers == set(cli.VERBS)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, pyinfer.cli.main as m\n"
        f"try: m.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not HEAVY & set(done.stderr.split())


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"pyinfer {version('pyinfer')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["run"],
        ["run", "m", "p", "--threads", "0"],
        ["run", "m", "p", "--threads", "two"],
        ["run", "m", "p", "--threads", "999999999999"],
        ["run", "m", "p", "-n", "-1"],
        ["run", "m", "p", "--logit-bias", "5"],
        ["run", "m", "p", "--nonsense"],
        ["bench", "m", "-t", "1,0"],
        ["eval", "m"],
        ["convert", "m"],
        ["--", "list"],
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pyinfer: ")
    assert done.stderr.count("\n") == 1
    assert "--help'" in done.stderr


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> object:
    """A verb `fail` that raises what the test puts in."""
    module = types.ModuleType("pyinfer.cli.fail", "Fail.")
    module.arguments = lambda parser: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyinfer.cli.fail", module)
    monkeypatch.setitem(cli.VERBS, "fail", "fail")

    def arrange(error: BaseException) -> None:
        def execute(options: argparse.Namespace) -> int:
            raise error

        module.execute = execute  # type: ignore[attr-defined]

    return arrange


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelFileError("x.gguf: cut at 3"), 1, "pyinfer: x.gguf: cut at 3\n"),
        (DownloadError("no network"), 1, "pyinfer: no network\n"),
        (MemoryLimitError("needs 2, has 1"), 1, "pyinfer: needs 2, has 1\n"),
        (MemoryError(), 1, "pyinfer: out of memory\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/a/b"),
            1,
            "pyinfer: /a/b: No such file or directory\n",
        ),
        (OSError(28, "No space left on device"), 1, "pyinfer: No space left on device\n"),
        (ModelFileError("two\nlines and \x1b[31mred"), 1, "pyinfer: two lines and \\x1b[31mred\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    failing: types.FunctionType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    assert cli.main(["fail"]) == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback(failing: types.FunctionType) -> None:
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


@pytest.mark.parametrize(("argument", "codes"), [("list", {141}), ("--help", {0, 141})])
def test_a_reader_that_goes_away_is_quiet(argument: str, codes: set[int]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "pyinfer", argument]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert done.returncode in codes
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    [
        (("list",), ">&-", 141),
        (("cpu",), "<&-", 0),
        (("run", "no-such-model", "hi"), "<&- 2>&-", 1),
        (("run", "no-such-model"), "<&-", 1),
        (("tokenize", "no-such-model"), "<&-", 1),
    ],
)
def test_closed_standard_streams_are_no_bug(arguments: tuple[str, ...], closed: str, code: int) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "pyinfer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pyinfer", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "pyinfer: No space left on device\n")
