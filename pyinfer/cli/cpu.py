"""Say what this CPU can do and what pyinfer uses of it. PYINFER_ISA chooses another instruction set."""

from __future__ import annotations

import argparse

from pyinfer.cli import terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> int:
    """Prints the instruction sets and the number of threads."""
    from pyinfer import _core

    isas, active, threads = _core.isas(), _core.active_isa(), _core.default_threads()
    if options.json:
        known = [{"name": name, "runs_here": runs} for name, runs in isas]
        terminal.print_json({"isa": active, "isas": known, "threads": threads})
        return 0
    for name, runs in isas:
        state = "in use" if name == active else "runs here" if runs else "not on this CPU"
        print(f"{name:14}{state}")
    print(f"{'threads':14}{threads}")
    return 0
