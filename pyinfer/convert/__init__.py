"""Conversion of checkpoints into model.bin, and a look at them without converting.

Two tables say what can be read: READERS here (kinds of files) and the families in `families/__init__.py`.
Nothing is printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyinfer import _core
from pyinfer.convert import gguf_model, huggingface, llama2c, meta
from pyinfer.convert.checkpoint import Checkpoint, Spec, in_file, sensible
from pyinfer.convert.delta import NewRows, applied
from pyinfer.convert.identity import SourceChecksums, key_of
from pyinfer.convert.landing import Group, groups, place
from pyinfer.convert.metadata import Metadata
from pyinfer.convert.writer import MAGIC, Progress, write_model
from pyinfer.errors import ModelFileError
from pyinfer.vocabulary import check_ids, open_vocabulary

__all__ = [
    "READERS",
    "Reader",
    "SourceInfo",
    "content_key",
    "convert",
    "convert_delta",
    "inspect",
    "is_sound",
    "open_source",
]


@dataclass(frozen=True)
class Reader:
    """A kind of checkpoint: whether a path looks like one, how it is opened, which files its content is."""

    kind: str
    matches: Callable[[Path], bool]
    open: Callable[[Path], Checkpoint]
    files: Callable[[Path], list[Path]]


READERS = (
    Reader("gguf", gguf_model.looks_like, gguf_model.open_gguf, gguf_model.all_files),
    Reader("huggingface", huggingface.looks_like, huggingface.open_folder, huggingface.all_files),
    Reader("meta", meta.looks_like, meta.open_meta, meta.all_files),
    Reader("llama2c", llama2c.looks_like, llama2c.open_llama2c, llama2c.all_files),
)


@dataclass(frozen=True)
class SourceInfo:
    """What a source holds and what converting it would give."""

    kind: str
    name: str
    architecture: str
    licence: str | None
    chat_template: str | None
    tokenizer: str
    spec: Spec
    groups: tuple[Group, ...]  # tensors by source type and the format they land in
    source_bytes: int
    output_bytes: int  # of the weights


def _reader(path: Path) -> Reader:
    """The reader of a path, by content; raises ModelFileError or OSError that says what was found instead."""
    os.stat(path)
    for reader in READERS:
        if reader.matches(path):
            return reader
    wanted = "a GGUF file, a folder with config.json or params.json, or a llama2.c file"
    if path.is_dir():
        raise ModelFileError(f"{path}: expected {wanted}, found a folder without either")
    with open(path, "rb") as file:
        front = file.read(len(MAGIC))
    found = (
        "a model.bin, which needs no conversion"
        if front == MAGIC
        else f"a file that begins with {front!r}"
        if front
        else "an empty file"
    )
    raise ModelFileError(f"{path}: expected {wanted}, found {found}")


def open_source(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint of any kind and checks all that can be checked without reading its weights.

    Raises:
        UnsupportedError: it asks for something that cannot be honoured, which the message names.
        ModelFileError: it is not what it should be.
        OSError: the system refuses to read it.
    """
    path = Path(path)
    with in_file(path), sensible("a checkpoint"):
        checkpoint = _reader(path).open(path)
        _check_tokenizer(checkpoint)
    return checkpoint


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    found = checkpoint.tokenizer
    check_ids(
        open_vocabulary(found.kind, found.blob),
        checkpoint.spec.n_vocab,
        bos=found.bos,
        eos=found.eos,
        pad=found.pad,
        unk=found.unk,
        add_bos=found.add_bos,
    )


def inspect(path: str | os.PathLike[str], *, weights: str | None = None) -> SourceInfo:
    """What a source holds and where its tensors would land; raises what `open_source` raises."""
    checkpoint = open_source(path)
    places = place(checkpoint, weights)
    return SourceInfo(
        kind=checkpoint.kind,
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        licence=checkpoint.licence,
        chat_template=checkpoint.chat_template,
        tokenizer=checkpoint.tokenizer.kind,
        spec=checkpoint.spec,
        groups=groups(places),
        source_bytes=sum(file.stat().st_size for file in checkpoint.files),
        output_bytes=places[-1].offset + places[-1].bytes,
    )


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Metadata:
    """Converts a checkpoint into a model.bin, whole or not at all.

    Args:
        source: a GGUF file (of a split one the first part), a Hugging Face or Meta folder, or a llama2.c file with its
            tokenizer beside it.
        output: the file to write; replaced only when the new one is complete.
        weights: q4, q8, f16, bf16 or f32 for sources in floats; with q4, embedding and head are q8.
        Default: what the source has
            for GGUF, q8 for floats of Hugging Face and Meta, f32 for llama2.c.
        progress: called with bytes done, bytes in all and the tensor's name.

    Raises what `open_source` raises, RequestError for `weights`, and OSError where the disk is full or the
    system refuses.
    """
    path = Path(source)
    with in_file(path), SourceChecksums() as sources:
        if path.is_file():
            sources.begin([path])  # while headers and vocabulary are made sense of
        return write_model(open_source(path), Path(output), sources, weights, progress)


def convert_delta(
    base: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    new_rows: NewRows | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Metadata:
    """Converts base + delta, for models that were published as differences of weights.

    Args:
        base: a checkpoint in floats.
        delta: one of the same architecture; settings and tokenizer are the delta's, the base's tokenizer where it
            has none.
        new_rows: what the base has for tokens that only the delta has: `zero` for Vicuna v0, `mean` of its rows for
            Stanford Alpaca. Without it such a delta is refused.
        output: as for `convert`.
        weights: as for `convert`.
        progress: as for `convert`.
    """
    made = applied(open_source(base), open_source(delta), new_rows)
    with in_file(Path(delta)), SourceChecksums() as sources:
        return write_model(made, Path(output), sources, weights, progress)


def is_sound(path: Path) -> bool:
    """Whether this is a model.bin that passes the checks of opening one; what a failing disk has cut is not."""
    try:
        _core.ModelFile(str(path))
    except (ModelFileError, FileNotFoundError):
        return False
    return True


def content_key(path: str | os.PathLike[str], *, weights: str | None = None) -> str:
    """A key for caching the conversion of a source: 32 hex digits.

    It is made of the converter's version, `weights` and, for each file that counts, its size, its first 32
    MiB and 256 blocks of 4 KiB spread over the rest: quick on large files, and different for any two
    models that differ throughout. It is not a proof against a few bytes changed on purpose; the SHA-256 of
    the whole source is in the metadata of the converted file.
    """
    path = Path(path)
    with in_file(path), sensible("a checkpoint"):
        return key_of(_reader(path).files(path), weights)
