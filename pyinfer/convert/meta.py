"""Reads Meta's checkpoints: a folder with params.json, consolidated.00.pth and up to seven parts more, and
tokenizer.model there or one folder up.

Must not know tensor names or what settings mean: that is for the family.
"""

from __future__ import annotations

import re
from pathlib import Path

from pyinfer.convert.checkpoint import Checkpoint, in_file
from pyinfer.convert.meta_tokenizer import read_tokenizer
from pyinfer.convert.small_file import read_json
from pyinfer.convert.torch_pickle import read_torch
from pyinfer.errors import ModelFileError

MAX_PARTS = 8
_PART = re.compile(r"consolidated\.([0-9]{2})\.pth")


def looks_like(path: Path) -> bool:
    """Whether this is a folder with a params.json."""
    return path.is_dir() and (path / "params.json").exists()


def _parts(folder: Path) -> list[Path]:
    """consolidated.00.pth and those that follow it, without a gap."""
    found = sorted(item for item in folder.iterdir() if _PART.fullmatch(item.name))
    wanted = [f"consolidated.{i:02}.pth" for i in range(max(len(found), 1))]
    if [item.name for item in found] != wanted or len(found) > MAX_PARTS:
        names = ", ".join(item.name for item in found[: MAX_PARTS + 1]) or "none"
        raise ModelFileError(
            f"{folder}: expected consolidated.00.pth and at most {MAX_PARTS - 1} that follow it, found {names}"
        )
    return found


def _tokenizer(folder: Path) -> Path:
    """tokenizer.model in the folder, else in the one above, where LLaMA 1 and 2 have it."""
    for path in (folder / "tokenizer.model", folder.resolve().parent / "tokenizer.model"):
        if path.is_file():
            return path
    raise ModelFileError(f"{folder}: expected tokenizer.model there or one folder up, found neither")


def open_meta(path: Path) -> Checkpoint:
    """Opens a folder and checks everything but the values of its weights."""
    from pyinfer.convert.families import META

    params = read_json(path / "params.json")
    vocabulary = _tokenizer(path)
    with in_file(vocabulary):
        tokenizer = read_tokenizer(vocabulary, params.get("use_scaled_rope") is True)
    parts = []
    for part in _parts(path):
        with in_file(part):
            parts.append(read_torch(part))
    model = META(params, parts, tokenizer.size)
    return Checkpoint(
        kind="meta",
        files=tuple(all_files(path)),
        architecture="llama",
        name=path.resolve().name,
        licence=None,
        chat_template=None,
        spec=model.spec,
        tensors=model.tensors,
        tokenizer=tokenizer,
    )


def all_files(path: Path) -> list[Path]:
    """The files whose content decides what a conversion gives."""
    return [path / "params.json", _tokenizer(path), *_parts(path)]
