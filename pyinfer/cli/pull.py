"""Fetch and convert a model, so that it runs at once and offline from then on.

Prints the path of its model.bin. A path is converted into the cache too.
"""

from __future__ import annotations

import argparse

from pyinfer.cli import options as common
from pyinfer.cli import terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    parser.add_argument("name", metavar="NAME", help=common.MODEL_HELP)
    common.add_weights(parser)


def execute(options: argparse.Namespace) -> int:
    """Brings the model into the cache."""
    from pyinfer import hub

    with terminal.progress() as progress:
        path = hub.resolve(options.name, fresh=True, weights=options.weights, progress=progress)
    print(path)
    return 0
