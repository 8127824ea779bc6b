"""List the models in the cache and the space they take. To remove one, delete its file."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pyinfer import cache
from pyinfer.cli import terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> int:
    """Prints the entries and their sum."""
    entries = cache.entries()
    total = sum(entry.bytes for entry in entries)
    if options.json:
        listed = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
        terminal.print_json({"folder": str(cache.folder()), "bytes": total, "models": listed})
        return 0
    if entries:
        print(terminal.table([("NAME", "SIZE", "CREATED", "SOURCE", "FILE"), *map(_row, entries)]))
    models = "1 model" if len(entries) == 1 else f"{len(entries)} models"
    print(f"{models}, {terminal.size(total)} in {cache.folder() / 'models'}")
    return 0


def _row(entry: cache.Entry) -> tuple[str, ...]:
    return (
        entry.name,
        terminal.size(entry.bytes),
        entry.created[:10],
        entry.source or "unknown",
        entry.path.name,
    )
