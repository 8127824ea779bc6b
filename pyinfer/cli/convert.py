"""Write a model.bin from a GGUF file, a Hugging Face or Meta folder or a llama2.c file.

The output is written whole or not at all. Peak memory is some ranges of rows, whatever the size of the model. With
--lora, adapters are put into the weights; SRC may then be a model.bin too. With --base and --delta, and no SRC, the
difference of weights that a model was published as is added to its base.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyinfer.cli import options as common
from pyinfer.cli import terminal
from pyinfer.fetch import Progress


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    parser.add_argument("source", metavar="SRC", nargs="?", help=common.SOURCE_HELP)
    parser.add_argument("output", metavar="OUT.bin", type=Path, help="the file to write")
    parser.add_argument("--base", metavar="BASE", help="the model that --delta is added to, in floats")
    parser.add_argument("--delta", metavar="DELTA", help="weights as differences to --base")
    parser.add_argument(
        "--new-rows",
        choices=("zero", "mean"),
        help="what the base has for tokens that only the delta has: zero for Vicuna v0, mean for Stanford Alpaca",
    )
    parser.set_defaults(refuse=parser.error)
    common.add_weights(parser)
    common.add_lora(parser)
    parser.add_argument(
        "--merge-into",
        choices=("int8", "int4"),
        help="format of what adapters change (default: as the base where it has floats, else int8); "
        "int4 rounds small changes away",
    )


def execute(options: argparse.Namespace) -> int:
    """Converts and says what came of it."""
    from pyinfer import convert, hub
    from pyinfer.errors import RequestError

    if options.merge_into and not options.lora:
        raise RequestError("--merge-into needs --lora")
    if options.base or options.delta or options.new_rows:
        _add(options)
        return 0
    if options.source is None:
        options.refuse("expected SRC and OUT.bin, found one of them")
    with terminal.progress() as progress, hub.published(options.source, progress=progress) as source:
        if options.lora:
            _merge(options, source, progress)
        else:
            convert.convert(source, options.output, weights=options.weights, progress=progress)
    terminal.note(f"wrote {options.output}, {terminal.size(options.output.stat().st_size)}")
    return 0


def _add(options: argparse.Namespace) -> None:
    """Adds a delta to its base."""
    from pyinfer import convert, hub

    if options.source is not None or options.lora or not (options.base and options.delta):
        options.refuse("expected --base BASE --delta DELTA OUT.bin and no SRC or --lora")
    with (
        terminal.progress() as progress,
        hub.published(options.base, progress=progress) as base,
        hub.published(options.delta, progress=progress) as delta,
    ):
        convert.convert_delta(
            base,
            delta,
            options.output,
            new_rows=options.new_rows,
            weights=options.weights,
            progress=progress,
        )
    terminal.note(f"wrote {options.output}, {terminal.size(options.output.stat().st_size)}")


def _merge(options: argparse.Namespace, source: Path, progress: Progress) -> None:
    from pyinfer import merging

    made = merging.convert_merged(
        source,
        options.output,
        merging.loaded(options.lora),
        weights=options.weights,
        into=options.merge_into,
        progress=progress,
    )
    terminal.note_merged(made.touched, made.added_bytes, made.retention)
