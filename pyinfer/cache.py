"""The cache folder: converted models, each under the key of its content, and the names that point at them.

Knows files, locks and sizes. Must not know how a model is fetched or converted (`hub.py` does).

    <folder>/models/<key>.bin    a model.bin
    <folder>/models/<key>.json   its name, its source and the day it was made
    <folder>/names/<name>        the key that a known name was last converted to
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pyinfer import files
from pyinfer.errors import PyinferError

__all__ = ["Entry", "add", "entries", "folder", "locked", "named", "remember", "state_file", "write_whole"]

_KEY = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class Entry:
    """One converted model in the cache."""

    key: str
    path: Path
    name: str
    """What a person would call it: the known name, or the source's file name."""
    source: str
    """Where it came from: a path, `pypi:…` or `hf:…`; empty when the note beside the model is lost."""
    bytes: int
    created: str
    """Time of the conversion, ISO 8601, UTC."""


def folder() -> Path:
    """The cache folder: `PYINFER_CACHE`, or `pyinfer` in the platform's cache folder. Need not exist yet."""
    chosen = os.environ.get("PYINFER_CACHE")
    if chosen:
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError:
            raise PyinferError(
                f"PYINFER_CACHE: expected a folder, found {chosen!r}, whose home folder is not known"
            ) from None
    return _platform_folder() / "pyinfer"


def _platform_folder() -> Path:
    windows, mac = os.name == "nt", sys.platform == "darwin"
    chosen = "" if mac else os.environ.get("LOCALAPPDATA" if windows else "XDG_CACHE_HOME", "")
    if os.path.isabs(chosen):
        return Path(chosen)
    try:
        return Path.home() / ("AppData/Local" if windows else "Library/Caches" if mac else ".cache")
    except RuntimeError as error:
        raise PyinferError(
            "no home folder to put the cache in; set PYINFER_CACHE to one, or run a model.bin, which needs no cache"
        ) from error


def _made(*parts: str) -> Path:
    """A sub-folder of the cache, made if need be and known to be writable."""
    path = folder().joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise PyinferError(
            f"cannot write to the cache folder {path}: {error.strerror}; "
            "set PYINFER_CACHE to a folder with room that you may write to, or run a model.bin, which needs no cache"
        ) from error
    return path


def state_file(name: str) -> Path:
    """A small file that outlives the program, such as the chat's history. Makes the folder."""
    return _made() / name


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise PyinferError(f"expected a cache key of letters, digits, '.', '_' and '-', found {key!r}")
    return key


def add(
    key: str,
    name: str,
    source: str,
    make: Callable[[Path], object],
    usable: Callable[[Path], bool] = Path.is_file,
) -> Path:
    """The model of this key; `make(path)` makes it when there is none that is `usable`.

    Two processes do not make the same one twice: the second waits and takes what the first has made. `make`
    must write atomically: the path holds a whole model or nothing. One that is there is found in a cache that
    cannot be written, too.
    """
    path = folder() / "models" / f"{_checked(key)}.bin"
    if os.path.isfile(path) and usable(path):  # False where the folder cannot be read
        return path
    _made("models")
    with locked(key):
        if not usable(path):
            make(path)
            note = {"name": name, "source": source, "created": _now()}
            text = json.dumps(note, ensure_ascii=False) + "\n"
            # names of files may be no UTF-8
            write_whole(path.with_suffix(".json"), text.encode("utf-8", "replace"))
    return path


def _now() -> str:
    return datetime.now(timezone.utc).replace(microsecond=0).isoformat()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file of text or bytes whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".pyinfer-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:  # not mkstemp, whose files others cannot read: caches are shared
            file.write(data)
        files.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def remember(name: str, key: str) -> None:
    """Notes that `name` stands for the model of `key`."""
    write_whole(_made("names") / _checked(name), key + "\n")


def noted(name: str) -> str:
    """The key that was remembered for `name`; empty if none was."""
    try:
        key = (folder() / "names" / _checked(name)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return key if _KEY.fullmatch(key) else ""


def named(name: str) -> Path | None:
    """The model that `name` was last converted to, if it is still there."""
    key = noted(name)
    path = folder() / "models" / f"{key}.bin"
    return path if key and os.path.isfile(path) else None


def entries() -> list[Entry]:
    """All models in the cache, by name. An absent folder is an empty cache, one that cannot be read an error."""
    models = folder() / "models"
    try:
        found = [_entry(models / name) for name in os.listdir(models) if name.endswith(".bin")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PyinferError(
            f"cannot read the cache folder {models}: {error.strerror}; set PYINFER_CACHE to a folder that you may read"
        ) from error
    return sorted((entry for entry in found if entry), key=lambda entry: (entry.name, entry.key))


def _entry(path: Path) -> Entry | None:
    try:
        status = path.stat()
    except FileNotFoundError:  # removed in this moment by somebody else
        return None
    note = _note(path.with_suffix(".json"))
    made = datetime.fromtimestamp(int(status.st_mtime), timezone.utc).isoformat()
    name, source, created = note.get("name", path.stem), note.get("source", ""), note.get("created", made)
    return Entry(path.stem, path, name, source, status.st_size, created)


def _note(path: Path) -> dict[str, str]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fields = note.items() if isinstance(note, dict) else ()
    return {key: value for key, value in fields if isinstance(value, str)}


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Holds a lock between processes; the system frees it when its owner dies."""
    with open(_made("models") / f"{_checked(key)}.lock", "a+b") as file:
        files.lock(file.fileno())
        yield
