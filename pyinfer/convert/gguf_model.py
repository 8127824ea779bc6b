"""Opens a GGUF file, or the parts of a split one, as a checkpoint: container, tokenizer and family put together."""

from __future__ import annotations

import re
from pathlib import Path

from pyinfer.convert.checkpoint import Checkpoint, RawTensor, in_file
from pyinfer.convert.gguf import MAGIC, GgufFile, KeyValues, read_gguf
from pyinfer.convert.gguf_tokenizer import tokenizer_from_keys
from pyinfer.errors import ModelFileError, UnsupportedError

_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


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
        parts = [file, *_later_parts(file)]
        architecture = _architecture(file.keys, tuple(GGUF))
        tensors = _all_tensors(parts)
        if not tensors:
            raise ModelFileError("expected tensors, found a file that holds only a vocabulary")
        tokenizer = tokenizer_from_keys(file.keys)
        model = GGUF[architecture](file.keys, tensors, tokenizer.size)
        return Checkpoint(
            kind="gguf",
            files=tuple(part.path for part in parts),
            architecture=architecture,
            name=file.keys.text("general.name") or _stem(path),
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
    return found


def _stem(path: Path) -> str:
    match = _PART.fullmatch(path.name)
    return match[1] if match else path.stem


def all_files(path: Path) -> list[Path]:
    """The file, or by their names the parts of a split one that are there."""
    match = _PART.fullmatch(path.name)
    names = [_part_name(match[1], i, int(match[3])) for i in range(int(match[3]))] if match else []
    return [part for part in map(path.with_name, names) if part.is_file()] or [path]


def _part_name(stem: str, index: int, count: int) -> str:
    return f"{stem}-{index + 1:05}-of-{count:05}.gguf"


def _later_parts(first: GgufFile) -> list[GgufFile]:
    """The parts of a split model after its first, each where its name says; none of a whole one."""
    count = first.keys.integer("split.count", 0, 65535, 0)
    if count <= 1:
        return []
    match = _PART.fullmatch(first.path.name)
    if not match or int(match[3]) != count:
        wanted = _part_name("model", 0, count)
        raise ModelFileError(f"split.count {count}: expected a name like {wanted}, found {first.path.name}")
    index = first.keys.integer("split.no", 0, count - 1)
    if index != 0:
        raise UnsupportedError(
            f"split.no: expected the first part, {_part_name(match[1], 0, count)}, found part {index + 1}"
        )
    if match[2] != "00001":
        raise ModelFileError(f"split.no: expected the number in the name, {match[2]}, found 1")
    return [_later_part(first, _part_name(match[1], i, count), i, count) for i in range(1, count)]


def _later_part(first: GgufFile, name: str, index: int, count: int) -> GgufFile:
    path = first.path.with_name(name)
    if not path.exists():
        raise ModelFileError(f"expected the part {name} beside it, found none")
    with in_file(name):
        part = read_gguf(path)
        for key, wanted in (("split.count", count), ("split.no", index)):
            if (found := part.keys.integer(key, 0, 65535)) != wanted:
                raise ModelFileError(f"{key}: expected {wanted} as the name says, found {found}")
        if other := next((key for key in part.keys.names() if not part.keys.agrees(key, first.keys)), None):
            raise ModelFileError(f"{other}: expected the value of the first part, found another")
    return part


def _all_tensors(parts: list[GgufFile]) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    for part in parts:
        for name, tensor in part.tensors().items():
            if name in tensors:
                raise ModelFileError(f"{name}: expected each tensor once, found it in {part.path.name} too")
            tensors[name] = tensor
    total = parts[0].keys.integer("split.tensors.count", 0, 1 << 31, len(tensors))
    if total != len(tensors):
        raise ModelFileError(
            f"split.tensors.count: expected {total} tensors in all parts, found {len(tensors)}"
        )
    return tensors
