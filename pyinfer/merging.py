"""Models with a stack of adapters in their weights: into a file, or into the cache for `load(…, merge=True)`.

Must not know how weights are packed, nor how adapters are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pyinfer import cache as store
from pyinfer import convert, hub
from pyinfer.adapters import Adapter, Adapters, Weighted, located, pairs
from pyinfer.convert.checkpoint import Checkpoint, in_file
from pyinfer.convert.identity import SourceChecksums, key_of
from pyinfer.convert.merge import CheckpointBase, Into, Merged, merge
from pyinfer.convert.metadata import told
from pyinfer.convert.model_file import open_model_file
from pyinfer.convert.writer import write_model
from pyinfer.errors import ModelFileError, PyinferError
from pyinfer.growing import grown
from pyinfer.stack import stacked

__all__ = ["convert_merged", "described", "loaded", "merged"]

Progress = Callable[[int, int, str], None]


def loaded(adapters: Adapters) -> Weighted:
    """A list of adapters with all that are paths read; the same path twice is the same adapter."""
    read: dict[Path, Adapter] = {}
    weighted = []
    for adapter, weight in pairs(adapters):
        if not isinstance(adapter, Adapter):
            path = located(adapter)
            adapter = read[path] if path in read else read.setdefault(path, Adapter.load(path))
        weighted.append((adapter, weight))
    return tuple(weighted)


def described(weighted: Weighted) -> str:
    """A stack in one line: `sql:1+tone:-0.3`."""
    return told("+".join(f"{adapter.name}:{weight:g}" for adapter, weight in weighted))


def convert_merged(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    weighted: Weighted,
    *,
    weights: str | None = None,
    into: Into | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Writes a model.bin of a checkpoint or a model.bin with a stack in its weights, whole or not at all.

    Args:
        source: What `convert.convert` takes, or a model.bin.
        output: The file to write.
        weighted: The stack.
        weights: Format of the weights, as for `convert.convert`.
        into: `int8` or `int4` for what changes. None: as the base where it has floats, else int8.
        progress: Called with bytes done, bytes in all and the tensor's name.

    Raises what `convert.convert` raises, and ModelFileError where an adapter does not fit or its files have changed
    since they were read.
    """
    path = Path(source)
    _require_unchanged(weighted)
    with in_file(path):
        opened = _opened(path)
    base, weighted = grown(opened, weighted)
    stack = stacked(weighted, base.spec, CheckpointBase(base), base.architecture)
    stack.require_mergeable()
    made = merge(base, stack, weights=weights, into=into)
    files = dict.fromkeys(path for adapter, _ in weighted for path in adapter.source.paths)
    options = {**base.options, "adapters": described(weighted)}
    made = replace(made, checkpoint=replace(made.checkpoint, files=(*base.files, *files), options=options))
    with SourceChecksums() as sources:
        write_model(made.checkpoint, Path(output), sources, weights, progress)
    return made


def _require_unchanged(weighted: Weighted) -> None:
    """What is in memory is what is merged, and what the files hold is what the result is known by."""
    for adapter, _ in weighted:
        for file in adapter.source.files:
            if not file.unchanged:
                raise ModelFileError(
                    f"{file.path}: expected the file that adapter {adapter.name} was read from, found it changed; "
                    "load the adapter again"
                )


def _opened(path: Path) -> Checkpoint:
    return open_model_file(path) if hub.is_model_file(path) else convert.open_source(path)


def merged(
    name_or_path: str | Path,
    weighted: Weighted,
    *,
    into: Into | None = None,
    progress: Progress | None = None,
    when_made: Callable[[Merged], None] | None = None,
) -> Path:
    """The path of a model.bin with a stack in its weights, made once, into the cache; what was made of a name before is
    taken from there without asking the network. `when_made` hears what it cost, unless it was there.
    """
    alias = _alias(name_or_path, weighted, into) if hub.is_name(name_or_path) else ""
    if alias and (kept := hub.kept(alias)):
        return kept
    with _source(name_or_path, progress) as path:
        key = _key(path, weighted, into)
        where = f"{name_or_path} with {described(weighted)}"

        def make(output: Path) -> None:
            made = convert_merged(path, output, weighted, into=into, progress=progress)
            if when_made is not None:
                when_made(made)

        kept = store.add(key, f"{path.name}+{described(weighted)}", where, make, convert.is_sound)
    if alias:  # the name may stand for another one now: it is converted, or fetched anew
        with contextlib.suppress(PyinferError, OSError):  # a cache that cannot be written
            store.remember(_alias(name_or_path, weighted, into), key)
    return kept


@contextlib.contextmanager
def _source(name_or_path: str | Path, progress: Progress | None) -> Iterator[Path]:
    """What there is to merge into: the source itself where it is at hand, so that its floats are rounded once."""
    if hub.is_name(name_or_path) and name_or_path in hub.KNOWN:
        yield hub.resolve(name_or_path, progress=progress)
    else:
        with hub.published(name_or_path, progress=progress) as path:
            yield path


def _key(path: Path, weighted: Weighted, into: Into | None) -> str:
    base = key_of([path], None) if hub.is_model_file(path) else convert.content_key(path)
    return _digest([base], weighted, into)


def _alias(name: str | Path, weighted: Weighted, into: Into | None) -> str:
    """What the cache remembers a name with a stack by; another once the name was fetched anew."""
    return _digest([str(name), hub.converted_before(str(name))], weighted, into)


def _digest(base: list[str], weighted: Weighted, into: Into | None) -> str:
    _require_unchanged(weighted)
    stack = [(key_of(adapter.source.paths, None), weight) for adapter, weight in weighted]
    return hashlib.sha256(json.dumps([*base, stack, into]).encode()).hexdigest()[:32]
