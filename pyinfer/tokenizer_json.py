"""The JSON of the `tokenizers` library, read before or beside the library itself: its stages, and how much longer they
may make a text. Must not know vocabularies or files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pyinfer.errors import ModelFileError

MOST_GROWTH = 64
"""Times as long as it was a text may become before it is cut; published files stay below four."""
_NAMES = (b'"Replace"', b"\\u")
"""Without one of these a blob has no stage that puts more text in the place of less, or hides its names."""
_MOST_STAGES = 8


def stages(part: Any, several: str) -> Iterator[dict[str, Any]]:
    """The stages of a decoder, a normalizer or a pre-tokenizer, one or a sequence, which has them under the key
    `several`.
    """
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        for stage in part[several]:
            yield from stages(stage, several)
    else:
        yield part


def check_growth(blob: bytes) -> None:
    """Raises ModelFileError where normalizers and pre-tokenizers could make a text so long that memory ends. Some are
    run while the library opens, which then ends the process.
    """
    if not any(name in blob for name in _NAMES) and blob.count(b'"ByteLevel"') <= _MOST_STAGES:
        return
    try:
        whole = json.loads(blob)
        parts = (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
        growth = 1
        for key, several in parts:
            for stage in stages(whole.get(key), several):
                growth *= _growth(stage)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # the library says what is wrong
    if growth > MOST_GROWTH:
        raise ModelFileError(
            f"tokenizer: expected stages that make a text at most {MOST_GROWTH} times as long, found {growth} times"
        )


def _growth(stage: dict[str, Any]) -> int:
    """How many characters one may become, at most; a replaced expression may stand between any two."""
    if stage.get("type") == "ByteLevel":
        return 2
    if stage.get("type") != "Replace":
        return 1
    found = stage["pattern"].get("String")
    content = len(stage["content"])
    return max(1, content + 1 if found is None else -(-content // max(1, len(found))))
