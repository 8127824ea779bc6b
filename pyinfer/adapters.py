"""Adapters as the API has them: loaded once, named, put on a model as an ordered list with weights.

Two tables say what can be read: the readers here, and the settings in `convert/peft_config.py`. Must not know how a
stack is computed (`stack` does) nor how it runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, Union

from pyinfer.arguments import is_number, plain, shown
from pyinfer.convert import gguf_adapter, peft
from pyinfer.convert.adapter import AdapterSource
from pyinfer.convert.checkpoint import in_file, sensible
from pyinfer.errors import ModelFileError, RequestError

__all__ = ["Adapter", "AdapterLike", "Adapters", "Weighted", "open_adapter"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter in memory, made by `Adapter.load`. It may be put on any number of models that it fits."""

    name: str
    """What it is called in lists of adapters."""
    path: Path
    """Where it was read."""
    source: AdapterSource = field(repr=False)
    """Its arrays and what its settings say."""

    @staticmethod
    def load(path: str | os.PathLike[str], name: str | None = None) -> Adapter:
        """Reads a PEFT directory or a GGUF adapter.

        Args:
            path: A folder with adapter_config.json and adapter_model.safetensors or .bin, or a GGUF file.
            name: What to call it. None: the folder's name, or the file's without its ending.

        Raises:
            ModelFileError: It is not what it should be; UnsupportedError when it asks for something that cannot be
                honoured, which the message names.
            RequestError: The name is empty, or the path is none.
        """
        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise RequestError(f"name: expected a text that is not empty, found {name!r}")
        whole = located(path)
        where = Path(path)
        return Adapter(name or (whole.name if whole.is_dir() else whole.stem), where, open_adapter(where))

    @property
    def rank(self) -> int:
        """The largest rank among its changes."""
        return max((change.rank for change in self.source.changes), default=0)

    @property
    def bytes(self) -> int:
        """Bytes of its arrays."""
        return self.source.bytes

    def __repr__(self) -> str:
        return f"<pyinfer.Adapter {self.name}: {len(self.source.changes)} modules, rank {self.rank}>"


AdapterLike: TypeAlias = Union[str, "os.PathLike[str]", Adapter]
"""An adapter, the name of one that the model knows, or the path of one."""
Adapters: TypeAlias = Sequence[AdapterLike | tuple[AdapterLike, float]]
"""A stack: adapters in order, each alone (weight 1) or with its weight, a number from -1e6 to 1e6."""
MOST_WEIGHT = 1e6
Weighted: TypeAlias = tuple[tuple[Adapter, float], ...]
"""A stack that was checked: every adapter loaded, every weight a number."""


def located(path: str | os.PathLike[str]) -> Path:
    """A path without links; raises RequestError for what can be none."""
    try:
        whole = Path(path).resolve()
        whole.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"adapters: expected the path of an adapter, found {path!r:.100}: {why}") from None
    return whole


def open_adapter(path: Path) -> AdapterSource:
    """Reads an adapter of any kind; raises as `Adapter.load` does."""
    with in_file(path), sensible("an adapter"):
        if peft.looks_like(path):
            return peft.open_peft(path)
        if gguf_adapter.looks_like(path):
            return gguf_adapter.open_gguf_adapter(path)
    wanted = f"a folder with {peft.CONFIG} or a GGUF adapter"
    if not path.exists():
        raise ModelFileError(f"{path}: expected {wanted}, found no such file or folder")
    found = "a folder without it" if path.is_dir() else "another file"
    raise ModelFileError(f"{path}: expected {wanted}, found {found}")


def pairs(adapters: Adapters) -> list[tuple[AdapterLike, float]]:
    """The entries of a stack as adapters and weights; raises RequestError."""
    if isinstance(adapters, (str, bytes)) or not isinstance(adapters, Sequence):
        raise RequestError(f"adapters: expected a list, found {type(adapters).__name__}")
    return [_pair(item) for item in adapters]


def _pair(item: object) -> tuple[AdapterLike, float]:
    adapter, weight = item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0)
    if not isinstance(adapter, (str, os.PathLike, Adapter)):
        raise RequestError(f"adapters: expected names, paths or adapters, found {type(adapter).__name__}")
    factor = plain(weight)
    if not is_number(factor) or not abs(factor) <= MOST_WEIGHT:
        raise RequestError(f"adapters: expected a weight from -1e6 to 1e6, found {shown(weight)}")
    return adapter, float(factor)
