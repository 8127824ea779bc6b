"""Write a model.bin from a GGUF file, a Hugging Face folder or a llama2.c file.

The output is written whole or not at all. Peak memory stays near one tensor, whatever the size of the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyinfer.cli import options as common
from pyinfer.cli import terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    parser.add_argument("source", metavar="SRC", help=common.SOURCE_HELP)
    parser.add_argument("output", metavar="OUT.bin", type=Path, help="the file to write")
    common.add_weights(parser)


def execute(options: argparse.Namespace) -> int:
    """Converts and says what came of it."""
    from pyinfer import convert, hub

    with terminal.progress() as progress, hub.published(options.source, progress=progress) as source:
        convert.convert(source, options.output, weights=options.weights, progress=progress)
    terminal.note(f"wrote {options.output}, {terminal.size(options.output.stat().st_size)}")
    return 0
