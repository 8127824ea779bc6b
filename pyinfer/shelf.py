"""The adapters of one model: those it knows by name, and the stacks of them that are packed for its engine.

Must not know files of adapters, nor sessions.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pyinfer import _core, memory
from pyinfer.errors import RequestError
from pyinfer.invocation import Active, Invoked
from pyinfer.timeline import BARE, Course, Overlay

if TYPE_CHECKING:
    from pyinfer.adapters import Adapter, AdapterLike, Adapters, Weighted

__all__ = ["Shelf", "Stacked"]

MOST_STACKS = 8
"""Packed stacks that are kept for the next request."""
MOST_READ = 32
"""Adapters that were named by their paths and are kept for the next request."""
MOST_INVOKED = 4
"""Adapters of a stack that may wait for an invocation: which of them apply may change as often within a prompt."""


@dataclass(frozen=True, eq=False)
class Stacked:
    """A list of adapters, packed; `overlay` may change within a prompt."""

    weighted: Weighted
    overlay: Course


EMPTY = Stacked((), BARE)


class Shelf:
    """Adapters by name, and their stacks. Every method may be called from any thread."""

    def __init__(self, file: _core.ModelFile, engine: _core.Engine, architecture: str) -> None:
        self._file: _core.ModelFile | None = file
        self._architecture = architecture
        self._engine: _core.Engine | None = engine
        self._known: dict[str, Adapter] = {}
        self._added: set[str] = (
            set()
        )  # names that somebody gave; the others go with what was read from a path
        self._by_path: dict[Path, Adapter] = {}
        self._packed: OrderedDict[tuple[tuple[int, float], ...], tuple[Weighted, Overlay]] = OrderedDict()
        self._lock = threading.RLock()
        self.default = EMPTY
        """The stack of requests that name none."""

    @property
    def known(self) -> Mapping[str, Adapter]:
        """Adapters by name."""
        return MappingProxyType(dict(self._known))

    def add(self, adapter: AdapterLike, name: str | None = None) -> Adapter:
        """Makes an adapter known; it is checked against the model."""
        from pyinfer.adapters import Adapter, located

        if name is not None and (not isinstance(name, str) or not name.strip()):
            raise RequestError(f"name: expected a text that is not empty, found {name!r}")
        path = located(adapter) if name is None and not isinstance(adapter, Adapter) else None
        if isinstance(adapter, Adapter):
            found = adapter
        else:
            found = (path and self._read_from(path)) or Adapter.load(adapter, name)
        with self._lock, self._restored_on_error():
            if path is not None:
                self._remember(path, found)
            known_as = name or found.name
            if self._known.get(known_as, found) is not found:
                raise RequestError(f"adapters: expected a name that is free, found {known_as!r} taken")
            self._pack(((found, 1.0),))
            self._known[known_as] = found
            self._added.add(known_as)
        return found

    def remove(self, name: str) -> None:
        """Forgets a name."""
        with self._lock:
            if name not in self._known:
                raise RequestError(f"adapters: expected {self._names()}, found {name!r}")
            gone = self._known.pop(name)
            self._added.discard(name)
            self._by_path = {path: kept for path, kept in self._by_path.items() if kept is not gone}
            for key in [key for key in self._packed if any(one == id(gone) for one, _ in key)]:
                del self._packed[key]

    def stack(self, adapters: Adapters) -> Stacked:
        """The stack of a list, packed now or before; raises RequestError or ModelFileError."""
        if isinstance(adapters, (list, tuple)) and not adapters:
            return EMPTY
        from pyinfer.adapters import pairs

        wanted = pairs(adapters)
        with self._lock, self._restored_on_error():
            return self._pack(tuple((self._found(adapter), weight) for adapter, weight in wanted))

    def set_default(self, adapters: Adapters) -> None:
        """Makes a stack the one of requests that name none; its adapters keep their names."""
        with self._lock:
            self.default = self.stack(adapters)
            for adapter, _ in self.default.weighted:
                if self._known.setdefault(adapter.name, adapter) is adapter:
                    self._added.add(adapter.name)

    @contextlib.contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """What was refused is not remembered."""
        known, by_path = dict(self._known), dict(self._by_path)
        try:
            yield
        except Exception:
            self._known, self._by_path = known, by_path
            raise

    def clear(self) -> None:
        """Frees all stacks and lets go of the file, for the end of the model."""
        with self._lock:
            self._engine = self._file = None
            self._packed.clear()
            self.default = EMPTY

    def _found(self, adapter: AdapterLike) -> Adapter:
        """By a name that was given, by path, or by the name of what was read from one; what is read is kept."""
        from pyinfer.adapters import Adapter, located

        if isinstance(adapter, Adapter):
            return adapter
        path = located(adapter)
        if (
            isinstance(adapter, str)
            and adapter in self._known
            and (adapter in self._added or not path.exists())
        ):
            return self._known[adapter]
        if isinstance(adapter, str) and not path.exists():
            raise RequestError(f"adapters: expected {self._names()} or a path, found {adapter!r}")
        found = self._read_from(path) or Adapter.load(path)
        self._remember(path, found)
        return found

    def _read_from(self, path: Path) -> Adapter | None:
        """What was read from a path, unless its files have changed since."""
        read = self._by_path.get(path)
        return read if read is not None and read.source.unchanged else None

    def _remember(self, path: Path, read: Adapter) -> None:
        """A name that stood for what was at the path before stands for it now."""
        before = self._by_path.pop(path, None)
        self._by_path[path] = read
        while len(self._by_path) > MOST_READ:
            gone = self._by_path.pop(next(iter(self._by_path)))
            self._known = {n: one for n, one in self._known.items() if one is not gone or n in self._added}
        if self._known.setdefault(read.name, read) is before:
            self._known[read.name] = read

    def _names(self) -> str:
        return ", ".join(map(repr, self._known)) or "the name of an adapter (none is known)"

    def _pack(self, weighted: Weighted) -> Stacked:
        """A stack, with all that it can need packed, so that what does not fit is told at once."""
        everywhere = self._overlay(weighted)
        invocations = tuple(adapter.source.invocation for adapter, _ in weighted)
        n_invoked = sum(map(bool, invocations))
        if not n_invoked:
            return Stacked(weighted, everywhere)
        if n_invoked > MOST_INVOKED:
            raise RequestError(
                f"adapters: expected at most {MOST_INVOKED} with alora_invocation_tokens, found {n_invoked}"
            )

        def overlay_of(active: Active) -> Overlay:
            with self._lock:
                return self._overlay(tuple(pair for pair, on in zip(weighted, active, strict=True) if on))

        course = Invoked(invocations, overlay_of, {(True,) * len(weighted): everywhere})
        course.overlay(tuple(not invocation for invocation in invocations))
        return Stacked(weighted, course)

    def _overlay(self, weighted: Weighted) -> Overlay:
        """All of a list at once, packed now or before."""
        if not weighted:
            return BARE
        key = tuple((id(adapter), weight) for adapter, weight in weighted)
        if key not in self._packed:
            self._packed[key] = weighted, self._packed_anew(weighted)
        self._packed.move_to_end(key)
        while len(self._packed) > MOST_STACKS:
            self._packed.popitem(last=False)
        return self._packed[key][1]

    def _packed_anew(self, weighted: Weighted) -> Overlay:
        from pyinfer.convert.checkpoint import Spec
        from pyinfer.stack import base_reader, stacked

        if self._engine is None or self._file is None:
            raise RequestError("the model is closed")
        spec = Spec(**self._file.spec)
        stack = stacked(weighted, spec, base_reader(self._file), self._architecture)
        if not stack.changes and not stack.replaced:
            return BARE
        while self._packed and not memory.fits(stack.packing_bytes):
            self._packed.popitem(last=False)
        memory.require(stack.packing_bytes, "a stack of adapters")
        return Overlay(stack.packed(self._engine))
