"""Reads Hugging Face directories: config.json, weights in one file or many (safetensors, else PyTorch archives; in
floats or packed by GPTQ or AWQ), tokenizer and chat template.

Must not know tensor names or what settings mean: that is for the families.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfer.convert.checkpoint import Checkpoint, RawTensor, in_file
from pyinfer.convert.huggingface_tokenizer import read_tokenizer
from pyinfer.convert.packed_int4 import PACKING_FILES, packing_of
from pyinfer.convert.safetensors_file import read_safetensors
from pyinfer.convert.small_file import optional_json, read_json, read_small
from pyinfer.convert.torch_pickle import read_torch
from pyinfer.errors import ModelFileError, UnsupportedError


def looks_like(path: Path) -> bool:
    """Whether this is a folder with a config.json."""
    return path.is_dir() and (path / "config.json").exists()


_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def _shards(folder: Path) -> list[Path]:
    """The weight files: those that an index names, or the only one; safetensors go first."""
    for name in _WEIGHTS:
        if (folder / f"{name}.index.json").exists():
            return _indexed(folder, folder / f"{name}.index.json")
        if (folder / name).exists():
            return [folder / name]
    raise ModelFileError(
        f"{folder}: expected model.safetensors or model.safetensors.index.json or pytorch_model.bin, found none"
    )


def _indexed(folder: Path, index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelFileError(f"{index}: expected weight_map as an object of file names, found something else")
    for name in names.values():
        if Path(name).name != name:
            raise ModelFileError(f"{index}: expected file names without folders, found {name!r}")
    return [folder / name for name in sorted(set(names.values()))]


def _all_tensors(shards: list[Path], integers: bool) -> dict[str, RawTensor]:
    found: dict[str, RawTensor] = {}
    for shard in shards:
        with in_file(shard):
            binary = shard.suffix == ".bin"
            tensors = read_torch(shard) if binary else read_safetensors(shard, integers=integers)
            for name, tensor in tensors.items():
                if name in found:
                    raise ModelFileError(f"{name}: expected each tensor once, found it in another shard too")
                found[name] = tensor
    return found


_TEMPLATES = {"default": "chat_template.jinja", "tool_use": "additional_chat_templates/tool_use.jinja"}
"""Chat templates by their names, and the files that may hold them."""


def chat_template(folder: Path, settings: Mapping[str, Any], name: str = "default") -> str | None:
    """The file of this template, else the entry of tokenizer_config.json, which may hold several by name."""
    file = folder / _TEMPLATES[name]
    if file.is_file():
        with in_file(file):
            return _utf8(read_small(file))
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [item for item in template if isinstance(item, dict) and item.get("name") == name]
        template = named[-1].get("template") if named else None
    elif name != "default":
        return None
    if template is not None and not isinstance(template, str):
        raise ModelFileError(
            f"tokenizer_config.json: chat_template: expected a string, found {type(template).__name__}"
        )
    return template


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"expected UTF-8, found a byte {raw[error.start]:#04x} at {error.start}"
        ) from None


def _name(folder: Path) -> str:
    """The folder's name; in the cache of huggingface_hub, where that is a commit, the repository's."""
    whole = folder.resolve()
    repository = whole.parent.parent.name if whole.parent.name == "snapshots" else ""
    return repository.rpartition("--")[2] if repository.startswith("models--") else whole.name


def _licence(folder: Path) -> str | None:
    """The `license:` line of the front matter of README.md."""
    readme = folder / "README.md"
    if not readme.is_file():
        return None
    with open(readme, encoding="utf-8", errors="replace") as file:
        front = re.match(r"---\n(.*?)\n---", file.read(65536), re.DOTALL)
    line = re.search(r"^license: *(\S+)", front[1], re.MULTILINE) if front else None
    return line[1].strip("'\"") if line else None


@dataclass(frozen=True)
class Folder:
    """The JSON files of one directory."""

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    settings: dict[str, Any]  # tokenizer_config.json


def open_folder(path: Path) -> Checkpoint:
    """Opens a directory and checks everything but the values of its weights."""
    from pyinfer.convert.families import HUGGINGFACE

    folder = Folder(
        path,
        read_json(path / "config.json"),
        optional_json(path / "generation_config.json"),
        optional_json(path / "tokenizer_config.json"),
    )
    architecture = _architecture(folder, tuple(HUGGINGFACE))
    shards = _shards(path)
    with in_file(path / "config.json"):
        config, packing = packing_of(path, folder.config)
        tensors = _all_tensors(shards, integers=packing is not None)
        model = HUGGINGFACE[architecture](config, packing.unpacked(tensors) if packing else tensors)
    tokenizer = read_tokenizer(path, folder.config, folder.generation, folder.settings, model.spec.n_vocab)
    if tokenizer.size > model.spec.n_vocab:
        raise ModelFileError(
            f"tokenizer: expected at most {model.spec.n_vocab} tokens as vocab_size, found {tokenizer.size}"
        )
    return Checkpoint(
        kind="huggingface",
        files=tuple(all_files(path)),
        architecture=architecture,
        name=_name(path),
        licence=_licence(path),
        chat_template=chat_template(path, folder.settings),
        tool_template=chat_template(path, folder.settings, "tool_use"),
        spec=model.spec,
        tensors=model.tensors,
        tokenizer=tokenizer,
    )


def _architecture(folder: Folder, known: tuple[str, ...]) -> str:
    named = folder.config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        raise UnsupportedError(
            f"config.json: architectures: expected one of {', '.join(known)}, found {named!r}"
        )
    return str(named[0])


_IDENTITY = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "added_tokens.json", "special_tokens_map.json", *_TEMPLATES.values(),
    *(f"{name}.index.json" for name in _WEIGHTS), *PACKING_FILES,
)  # fmt: skip


def all_files(path: Path) -> list[Path]:
    """The files whose content decides what a conversion gives."""
    present = [path / name for name in _IDENTITY if (path / name).is_file()]
    return [path / "config.json", *present, *_shards(path)]
