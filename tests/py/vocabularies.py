"""The vocabularies, vectors and chat templates of llama.cpp, as the sdist of llama-cpp-python carries them.

A folder like its `models/` may be named by PYINFER_VOCAB_DIR; else pip fetches the sdist (75 MB) once into the cache of
this machine. Nothing of it is built or run: only the files below are read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from pyinfer import cache

SDIST = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
WANTED = re.compile(r"[^/]+/vendor/llama\.cpp/models/((?:templates/)?[\w.-]+\.(?:gguf|inp|out|jinja))")


def folder() -> Path:
    """The folder; skips with the reason where it cannot be had."""
    if given := os.environ.get("PYINFER_VOCAB_DIR"):
        return Path(given)
    kept = cache.folder() / "tests" / "llama.cpp-models"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made = _fetched(Path(scratch))
            shutil.move(made, kept)
    return kept


def _fetched(scratch: Path) -> Path:
    package, _, version = SDIST.removesuffix(".tar.gz").rpartition("-")
    # Of this package alone: with `:all:` pip would build what it reads metadata with, CMake among it.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package]
    done = subprocess.run(
        [*command, "--dest", str(scratch), f"{package}=={version}"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode != 0 or not (scratch / SDIST).is_file():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        message = f"pip could not fetch {package}=={version}: {reason}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    raw = (scratch / SDIST).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SHA256
    return _extracted(scratch / SDIST, scratch / "models")


def _extracted(sdist: Path, folder: Path) -> Path:
    """The files that tests read, written under names that the pattern above allows."""
    (folder / "templates").mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        for member in archive:
            wanted = WANTED.fullmatch(member.name)
            if wanted and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                (folder / wanted[1]).write_bytes(content.read())
    return folder
