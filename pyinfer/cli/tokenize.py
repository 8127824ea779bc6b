"""Turn text from standard input into tokens.

The text is taken as it is, UTF-8, a newline at its end included. Without --ids, one line a token: its id, a
tab, its text as a JSON string.
"""

from __future__ import annotations

import argparse
import json
import sys

from pyinfer.cli import opened, terminal
from pyinfer.cli import options as common


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the verb takes."""
    common.add_model(parser)
    parser.add_argument("--ids", action="store_true", help="print the ids as one JSON array")
    parser.add_argument(
        "--no-special", action="store_true", help="do not add the tokens that open and close a text"
    )
    parser.add_argument(
        "--parse-special", action="store_true", help="read the names of control tokens as those tokens"
    )
    common.add_cache(parser)


def execute(options: argparse.Namespace) -> int:
    """Prints the tokens."""
    from pyinfer.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(opened.model_file(options))
    text = opened.text(sys.stdin.buffer, "standard input")
    ids = tokenizer.encode(text, not options.no_special, options.parse_special)
    if options.ids:
        print(json.dumps(ids))
        return 0
    for token in ids:
        spelled = tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
        print(f"{token}\t{json.dumps(spelled, ensure_ascii=terminal.plain_ascii())}")
    return 0
