"""A prompt for every row of a CSV file, with a progress bar; the answers become a column.

    python examples/batch.py smollm2 in.csv out.csv --prompt "Is this review kind? {review}"

Names in braces are columns. What the prompts begin with is evaluated once: the session keeps it. Rows that are in the
output already are kept, so that a run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

import pyinfer
from pyinfer.errors import PyinferError, RequestError


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; RequestError where a row has more cells than there are columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        rows = []
        for row in reader:
            if None in row:
                raise RequestError(
                    f"{path}: expected at most {len(row) - 1} cells in line {reader.line_num}, found more"
                )
            rows.append(row)
    return list(reader.fieldnames or ()), rows


def filled(prompt: str, row: dict[str, str]) -> str:
    """The prompt for a row; RequestError where it names a column that is not there."""
    try:
        return prompt.format_map(row)
    except KeyError as error:
        raise RequestError(f"--prompt: expected columns among {', '.join(row)}, found {error}") from None
    except (ValueError, LookupError, AttributeError) as error:
        raise RequestError(
            f"--prompt: expected names of columns in braces, found {prompt!r}: {error}"
        ) from None


def answered(session: pyinfer.Session, prompt: str, most: int) -> str:
    """The likeliest answer to a prompt alone, whatever was asked before."""
    session.messages = ()
    return session.chat(prompt, max_tokens=most, temperature=0).text.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the rows and writes them with their answers, one at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name such as smollm2, or a path")
    parser.add_argument("input", type=Path, help="a CSV file whose first line names the columns")
    parser.add_argument("output", type=Path, help="the CSV file to write")
    parser.add_argument("--prompt", required=True, help="with names of columns in braces")
    parser.add_argument("--column", default="answer", help="the column of the answers (answer)")
    parser.add_argument("--max-tokens", type=int, default=40, metavar="N", help="tokens an answer (40)")
    options = parser.parse_args(arguments)
    columns, rows = read(options.input)
    prompts = [filled(options.prompt, row) for row in rows]
    known, before = read(options.output) if options.output.exists() else ([], [])
    done = len(before)
    with (
        pyinfer.load(options.model) as model,
        model.session() as session,
        options.output.open("a", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, [*columns, options.column])
        if not known:
            writer.writeheader()
            file.flush()
        left = list(zip(rows, prompts, strict=True))[done:]
        for row, prompt in track(left, "answering", console=Console(stderr=True)):
            writer.writerow({**row, options.column: answered(session, prompt, options.max_tokens)})
            file.flush()


if __name__ == "__main__":
    try:
        main()
    except PyinferError as error:
        sys.exit(f"batch: {error}")
