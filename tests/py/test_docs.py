"""The code and the commands of docs/c-api.md and docs/embedding.md run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfer import capi

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("c-api.md", "embedding.md")}
HEADER = (ROOT / "csrc" / "api" / "pyinfer.h").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = (
        re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) for page in PAGES.values()
    )
    return [block for page in found for block in page]


@pytest.fixture
def folder(tmp_path: Path, stories_model_bin: Path) -> Path:
    """A place like the root of the project, with a stories.bin, where commands may leave files."""
    shutil.copyfile(stories_model_bin, tmp_path / "stories.bin")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    tool = tmp_path / "bin" / "pyinfer"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyinfer "$@"\n')
    tool.chmod(0o755)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, folder: Path) -> None:
    assert run([sys.executable, "-c", block], folder).strip()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_run(block: str, folder: Path) -> None:
    assert "there was a little girl" in run(["sh", "-euc", block], folder)


@pytest.mark.skipif(not shutil.which("cc") or sys.platform == "win32", reason="needs a C compiler")
@pytest.mark.parametrize("block", blocks("c"))
def test_c_compiles_and_runs(block: str, folder: Path) -> None:
    (folder / "block.c").write_text(block, encoding="utf-8")
    library = capi.library().path
    strict = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    where = [f"-I{ROOT / 'csrc' / 'api'}", str(library), f"-Wl,-rpath,{library.parent}"]
    run(["cc", *strict, "block.c", "-o", "block", *where], folder)
    assert re.fullmatch(r"\d+ MiB\n", run(["./block", "stories.bin"], folder))


def test_every_status_is_in_the_table() -> None:
    declared = re.findall(r"^  (PYI_\w+) = [1-9],?\s*/\*", HEADER, re.MULTILINE)
    assert declared == re.findall(r"^\| `(PYI_\w+)` \|", PAGES["c-api.md"], re.MULTILINE)
    assert len(declared) == 8


def test_links_lead_somewhere() -> None:
    for name, page in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)", page):
            assert link.startswith("http") or (ROOT / "docs" / link).exists(), (name, link)
