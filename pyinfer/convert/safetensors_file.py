"""Reads the table of a safetensors file; whether it is well-formed is checked by the `safetensors` library, and the
data is then read at the offsets of its header.

Must not know what a tensor means.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyinfer.convert.checkpoint import FLOAT_SOURCES, RawTensor, file_rows, open_regular, row_bytes
from pyinfer.errors import ModelFileError, UnsupportedError

INTEGERS = ("I32",)
"""Types of what packs integers; nothing that can be converted as it is."""


def read_safetensors(path: Path, *, integers: bool = False) -> dict[str, RawTensor]:
    """The tensors of one file, by name, those of INTEGERS among them if asked for; raises ModelFileError."""
    from safetensors import SafetensorError, safe_open

    os.close(open_regular(path))
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ModelFileError(f"expected a safetensors file, found a broken one: {error}") from None
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    known = (*FLOAT_SOURCES, *INTEGERS) if integers else FLOAT_SOURCES
    return {name: _raw_tensor(path, name, entry, 8 + length, known) for name, entry in header.items()}


def _raw_tensor(
    path: Path, name: str, entry: Mapping[str, Any], start: int, known: tuple[str, ...]
) -> RawTensor:
    if entry["dtype"] not in known:
        raise UnsupportedError(f"{name}: expected one of {', '.join(known)}, found {entry['dtype']}")
    if not entry["shape"] or 0 in entry["shape"]:
        raise ModelFileError(f"{name}: expected dimensions of 1 or more, found {entry['shape']}")
    source, shape = entry["dtype"], tuple(entry["shape"])
    size = 4 * shape[-1] if source in INTEGERS else row_bytes(source, shape[-1])
    return RawTensor(name, source, shape, file_rows(path, start + entry["data_offsets"][0], size))
