"""Opens a model.bin as a checkpoint, so that it can be written again with some tensors changed.

Tensors keep the tiles that they have. Must not know adapters.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.convert.checkpoint import (
    Checkpoint,
    ReadRows,
    Spec,
    Tensor,
    TokenizerSource,
    file_rows,
    in_file,
)
from pyinfer.convert.landing import VECTOR
from pyinfer.convert.metadata import Metadata
from pyinfer.convert.writer import TILE_ROWS


def open_model_file(path: Path) -> Checkpoint:
    """Opens and checks all but the checksums of the weights."""
    with in_file(path):
        file = _core.ModelFile(str(path))
        metadata = Metadata.from_json(file.metadata())
        return Checkpoint(
            kind="model.bin",
            files=(path,),
            architecture=metadata.architecture,
            name=metadata.name,
            licence=metadata.licence,
            chat_template=metadata.chat_template,
            tool_template=metadata.tool_template,
            spec=Spec(**file.spec),
            tensors=tuple(_tensor(path, record) for record in file.tensors),
            tokenizer=_tokenizer(metadata, file),
            options=metadata.options,
        )


def _tokenizer(metadata: Metadata, file: _core.ModelFile) -> TokenizerSource:
    return TokenizerSource(
        kind=metadata.tokenizer,
        blob=file.tokenizer(),
        size=file.spec["n_vocab"],
        byte_level=metadata.byte_level,
        space_prefix=metadata.space_prefix,
        bos=metadata.bos,
        eos=metadata.eos,
        pad=metadata.pad,
        unk=metadata.unk,
        add_bos=metadata.add_bos,
        add_eos=metadata.add_eos,
        trim_after=metadata.trim_after,
        first_prefix=metadata.first_prefix,
    )


def _tensor(path: Path, record: _core.TensorDict) -> Tensor:
    rows, cols, kind = record["rows"], record["cols"], record["format"]
    name = record["role"] if record["layer"] < 0 else f"{record['role']} of layer {record['layer']}"
    read = file_rows(path, record["offset"], 4 * cols) if kind == VECTOR else _tiles(path, record)
    return Tensor(record["role"], record["layer"], "F32" if kind == VECTOR else kind, rows, cols, name, read)


def _tiles(path: Path, record: _core.TensorDict) -> ReadRows:
    tile = _core.packed_bytes(record["format"], TILE_ROWS, record["cols"])
    whole = file_rows(path, record["offset"], tile)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return whole(start // TILE_ROWS, -(-stop // TILE_ROWS))

    return read
