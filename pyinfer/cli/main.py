"""The entry point: finds the verb, runs it, and turns what went wrong into one line and an exit code.

Exit codes: 0 done; 1 an error that a person can act on; 2 wrong usage; 130 Ctrl-C; 141 the reader of our
output went away; 143 terminated. A bug keeps its traceback. Imports nothing heavy: `--help` must be quick.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pyinfer.cli import terminal
from pyinfer.errors import PyinferError

__all__ = ["VERBS", "main"]

VERBS: dict[str, str] = {
    "run": "answer a prompt, or chat",
    "convert": "write a model.bin from a GGUF file, a Hugging Face folder or a llama2.c file",
    "lora": "look at adapters, check them, write a stack of them as one",
    "info": "say what a model is and what it needs, without converting or loading it",
    "tokenize": "turn text from standard input into tokens",
    "eval": "measure a model on a text",
    "bench": "measure the speed of a model on this machine",
    "pull": "fetch and convert a model, to be ready offline",
    "list": "list the models in the cache",
    "cpu": "say what this CPU can do and what pyinfer uses of it",
}
"""Every verb with its line of help; module `pyinfer.cli.VERB` has `arguments(parser)` and `execute(options)`."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints one line and exits with 2."""
        self.exit(2, f"pyinfer: {message}; see '{self.prog} --help'\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    if argv is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        _open_closed_streams()
        _write_any_text()
    try:
        code = _exit_code(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except (PyinferError, OSError, MemoryError) as error:
        _drop_output(try_first=True)
        sys.stderr.write(f"pyinfer: {terminal.sentence(error)}\n")
        return 1


def _exit_code(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except SystemExit as end:  # help, wrong usage, or terminated
        return int(end.code or 0)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in VERBS:
        parser = _parser()
        parser.parse_args(arguments or ["--help"])
        parser.error("expected a verb first")
    verb, *rest = arguments
    module: Any = importlib.import_module(f"pyinfer.cli.{verb}")
    parser = Parser(prog=f"pyinfer {verb}", description=module.__doc__, formatter_class=_Formatter)
    module.arguments(parser)
    return int(module.execute(parser.parse_intermixed_args(rest)))


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def _parser() -> Parser:
    """The parser of everything that does not begin with a verb: help, version and mistakes."""
    verbs = "\n".join(f"  {verb:10}{line}" for verb, line in VERBS.items())
    parser = Parser(
        prog="pyinfer",
        usage="pyinfer VERB [options]",
        description=f"Runs LLaMA-architecture language models on the CPU.\n\nverbs:\n{verbs}",
        epilog="'pyinfer VERB --help' says more.",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=argparse.SUPPRESS)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"pyinfer {version('pyinfer')}")
        parser.exit()


def _open_closed_streams() -> None:
    """Whoever started us may have closed standard streams: nothing comes in then, and what goes out has no reader."""
    sys.stdin = sys.stdin or os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout = sys.stdout or os.fdopen(_gone(), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _gone() -> int:
    """A pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def _write_any_text() -> None:
    """Where the terminal's encoding lacks a character, a replacement is written instead of a traceback. What goes to a
    file or another program is UTF-8 on Windows too, as what comes in must be.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if sys.platform == "win32" and not sys.stdout.isatty() and "PYTHONIOENCODING" not in os.environ:
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(errors="replace")


def _drop_output(*, try_first: bool = False) -> None:
    """Drops what is still buffered for standard output, so that the interpreter's last flush cannot fail."""
    try:
        if try_first:
            sys.stdout.flush()
            return
    except OSError:
        pass
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
