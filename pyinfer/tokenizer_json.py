"""The JSON of the `tokenizers` library, read before or beside the library itself: its stages, and how much longer they
may make a text. Must not know vocabularies or files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pyinfer.errors import ModelFileError

MOST_GROWTH = 64
"""Times as long as it was a text may become before it is cut."""
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
    if b'"Replace"' not in blob and b"\\u" not in blob and blob.count(b'"ByteLevel"') <= _MOST_STAGES:
        return  # no stage puts more text in the place of less, and no name is hidden
    growth = 1
    for key, several in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        growth *= max((_growth(stages(part, several)) for part in _parts(blob, key)), default=1)
    if growth > MOST_GROWTH:
        raise ModelFileError(
            f"tokenizer: expected stages that make a text at most {MOST_GROWTH} times as long, found {growth} times"
        )


def _parts(blob: bytes, key: str) -> Iterator[Any]:
    """The values of a key, without reading the vocabulary, which is far larger, unless names may be hidden."""
    try:
        text = blob.decode()
        if "\\u" in text:
            yield json.loads(text).get(key)
            return
        for found in re.finditer(rf'"{key}"\s*:\s*', text):
            yield json.JSONDecoder().raw_decode(text, found.end())[0]
    except (ValueError, AttributeError, RecursionError):
        return  # the library says what is wrong


def _growth(parts: Iterable[dict[str, Any]]) -> int:
    """How many characters one may become, at most: a stage acts on what another has made where it may find its text."""
    reached: list[tuple[int, str]] = []  # of each stage, and what it writes
    try:
        for stage in parts:
            own, pattern, content = _stage(stage)
            before = [n for n, made in reached if pattern is None or set(pattern) & set(made)]
            reached.append((own * max(before, default=1), content))
    except (KeyError, TypeError, AttributeError, RecursionError):
        return 1  # the library says what is wrong
    return max((n for n, _ in reached), default=1)


def _stage(stage: dict[str, Any]) -> tuple[int, str | None, str]:
    """How many characters one becomes in a stage, the text it looks for (None: any), and what it writes."""
    if stage.get("type") == "ByteLevel":
        return 2, None, "any"
    if stage.get("type") != "Replace":
        return 1, "", ""
    content: str = stage["content"]
    text = stage["pattern"].get("String")
    if text is not None:
        return max(1, -(-len(content) // max(1, len(text)))), text, content
    expression: str = stage["pattern"]["Regex"]
    anywhere = not expression or any(sign in expression for sign in ("*", "?", "|", "{0", "{,"))
    return max(1, len(content) + anywhere), None, content
