"""Files of a model repository on Hugging Face, or a server that speaks as it does (HF_ENDPOINT).

Everything goes through huggingface_hub, an optional dependency with its own cache, resumption and tokens.
"""

from __future__ import annotations

import contextlib
import glob
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from pyinfer.errors import DownloadError
from pyinfer.fetch import POLL_SECONDS, Progress, watch

__all__ = ["snapshot"]

T = TypeVar("T")

_WANTED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "quantize_config.json",
    "quant_config.json",
    "README.md",
)


def snapshot(repo: str, file: str, progress: Progress) -> Path:
    """The file, or the folder with the files that a conversion reads, in the cache of huggingface_hub."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
    except ImportError as error:
        raise DownloadError(
            "fetching hf: models needs huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from error
    where = f"hf:{repo} from {constants.ENDPOINT}"
    found = _called(where, lambda: HfApi().model_info(repo, files_metadata=True).siblings or [])
    sizes = {item.rfilename: item.size or 0 for item in found}
    files = _choose(repo, sorted(sizes), file)
    total = sum(sizes[name] for name in files)

    def download() -> str:
        return snapshot_download(repo, allow_patterns=[glob.escape(name) for name in files])

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    with _no_bars():
        what = f"downloading {repo}"
        folder = _called(where, lambda: _in_thread(download, blobs, total, what, progress))
    return Path(folder, files[0]) if files[0].endswith(".gguf") or len(files) == 1 else Path(folder)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keeps the client from printing, and leaves it as it was."""
    utils: Any = import_module("huggingface_hub.utils")
    quiet = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not quiet:
            utils.enable_progress_bars()


def _called(where: str, work: Callable[[], T]) -> T:
    """Calls the hub's client, whose exceptions are of many libraries, and turns them into one of ours."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return work()
    except RepositoryNotFoundError as error:
        why = "there is no such repository, or it needs a token (HF_TOKEN) that may read it"
        raise DownloadError(f"could not fetch {where}: {why}") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"could not fetch {where}: {said}") from error


def _in_thread(work: Callable[[], T], folder: Path, total: int, what: str, progress: Progress) -> T:
    """Runs `work` beside a watch on the folder it fills; Ctrl-C leaves it behind to die with the program."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    watch(lambda: bool(wait([future], POLL_SECONDS).done), folder, total, what, progress)
    return future.result()


def _choose(repo: str, names: list[str], file: str) -> list[str]:
    """The files to fetch: the one asked for by its name or the tag that it ends in, a model of safetensors or PyTorch's
    files, or the only GGUF; of a split GGUF all parts, the first at the front.
    """
    if file:
        found = [file] if file in names else _tagged(file, names)
        if len(found) > 1:
            raise DownloadError(f"hf:{repo} has {len(found)} GGUF files that end in {file!r}: {_some(found)}")
        if not found:
            raise DownloadError(f"hf:{repo} has no file {file!r}; it has {_some(names)}")
        return _parts(found[0], names)
    safetensors = [name for name in names if re.fullmatch(r"model[^/]*\.safetensors", name)]
    weights = safetensors or [name for name in names if re.fullmatch(r"pytorch_model[^/]*\.bin", name)]
    if "config.json" in names and weights:
        return [name for name in _WANTED_FILES if name in names] + weights
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs and _parts(ggufs[0], names) == ggufs:
        return ggufs
    if ggufs:
        raise DownloadError(
            f"hf:{repo} has {len(ggufs)} GGUF files, choose by hf:{repo}:FILE: {_some(ggufs)}"
        )
    raise DownloadError(
        f"hf:{repo}: expected config.json with model*.safetensors or pytorch_model*.bin, or a *.gguf, "
        f"found {_some(names)}"
    )


def _tagged(tag: str, names: list[str]) -> list[str]:
    """The GGUFs whose names end in a tag such as `Q4_K_M`, of a split one the first part."""
    pattern = rf"(?:.*[-./])?{re.escape(tag)}(?:-00001-of-[0-9]{{5}})?\.gguf"
    return [name for name in names if re.fullmatch(pattern, name, re.DOTALL | re.IGNORECASE)]


def _parts(file: str, names: list[str]) -> list[str]:
    """The file, or where it is the first part of a split GGUF the parts that are there."""
    first = re.fullmatch(r"(.+)-00001(-of-[0-9]{5}\.gguf)", file, re.DOTALL)
    pattern = f"{re.escape(first[1])}-[0-9]{{5}}{re.escape(first[2])}" if first else re.escape(file)
    return [name for name in names if re.fullmatch(pattern, name)]


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:12]) or "no files"
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
