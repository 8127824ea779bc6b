"""Opens a GGUF file as a checkpoint: the container, the tokenizer and the family put together."""

from __future__ import annotations

from pathlib import Path

from pyinfer.convert.checkpoint import Checkpoint, in_file
from pyinfer.convert.gguf import MAGIC, KeyValues, read_gguf
from pyinfer.convert.gguf_tokenizer import tokenizer_from_keys
from pyinfer.errors import ModelFileError, UnsupportedError


def looks_like(path: Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_gguf(path: Path) -> Checkpoint:
    """Opens a file and checks everything but the values of its weights."""
    from pyinfer.convert.families import GGUF

    with in_file(path):
        file = read_gguf(path)
        architecture = _architecture(file.keys, tuple(GGUF))
        if not file.infos:
            raise ModelFileError("expected tensors, found a file that holds only a vocabulary")
        tokenizer = tokenizer_from_keys(file.keys)
        model = GGUF[architecture](file.keys, file.tensors(), tokenizer.size)
        return Checkpoint(
            kind="gguf",
            files=(path,),
            architecture=architecture,
            name=file.keys.text("general.name") or path.stem,
            licence=file.keys.text("general.license"),
            chat_template=file.keys.text("tokenizer.chat_template"),
            tool_template=file.keys.text("tokenizer.chat_template.tool_use"),
            spec=model.spec,
            tensors=model.tensors,
            tokenizer=tokenizer,
        )


def _architecture(keys: KeyValues, known: tuple[str, ...]) -> str:
    found = keys.text("general.architecture")
    if found not in known:
        raise UnsupportedError(
            f"general.architecture: expected one of {', '.join(known)}, found {found and found[:64]!r}"
        )
    if keys.integer("split.count", 0, 65535, 0) > 1:
        raise UnsupportedError("split.count: expected a whole model in one file, found one part of several")
    return found
