"""Reads small files that may be hostile: too large, no regular file; as JSON: too deep, no object."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pyinfer.convert.checkpoint import in_file, open_regular, read_exactly
from pyinfer.errors import ModelFileError

MAX_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a regular file of at most 64 MiB; anything else is a ModelFileError that names
    the file.
    """
    with in_file(path):
        try:
            found = json.loads(read_small(path))
        except ModelFileError:
            raise
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"expected JSON, found {type(error).__name__}: {error}") from None
        if not isinstance(found, dict):
            raise ModelFileError(f"expected a JSON object, found {type(found).__name__}")
        return found


def read_small(path: Path) -> bytes:
    """The bytes of a regular file of at most 64 MiB."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > MAX_BYTES:
            raise ModelFileError(f"expected at most {MAX_BYTES} bytes, found {size}")
        return read_exactly(descriptor, 0, size).tobytes()
    finally:
        os.close(descriptor)


def optional_json(path: Path) -> dict[str, Any]:
    """The same, or an empty object where there is no such file."""
    return read_json(path) if path.exists() else {}
