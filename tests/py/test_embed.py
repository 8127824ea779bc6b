"""The C program of examples/embed: built as its README says, against an installed library, and by CMake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfer import Model, _core

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples" / "embed" / "README.md").read_text(encoding="utf-8")
TOOLS = ("cmake", "cc", "c++", "pkg-config")
CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(user LANGUAGES C)
find_package(pyinfer {version} REQUIRED)
add_executable(generate ${{SOURCE}})
set_target_properties(generate PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF)
target_compile_options(generate PRIVATE -Wall -Wextra -pedantic -Werror)
target_link_libraries(generate PRIVATE pyinfer::pyinfer)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)) or sys.platform == "win32", reason=f"needs {', '.join(TOOLS)}"
    ),
]


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["sh", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place like the root of the project, where the page's commands have built the library and the program."""
    folder = tmp_path_factory.mktemp("embed")
    # Copied, since a link would be another path to ccache than in other builds.
    for name in ("cmake", "csrc", "examples", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    tools = folder / "tools"
    tools.mkdir()
    (tools / "pyinfer").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyinfer "$@"\n')
    (tools / "pyinfer").chmod(0o755)
    shell(blocks()[0], folder)
    return folder


def expected(stories: Model, n: int) -> str:
    return " ".join(map(str, stories.generate("Once", temperature=0, max_tokens=n).tokens)) + "\n"


def test_the_page_runs_as_it_stands(root: Path, stories: Model) -> None:
    path = f"{root / 'tools'}{os.pathsep}{os.environ['PATH']}"
    assert shell(f"PATH='{path}'\n{blocks()[1]}", root) == expected(stories, 8)


def test_cmake_finds_the_package(root: Path, stories: Model, tmp_path: Path, stories_model_bin: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(version=_core.__version__))
    prefix, source = root / "build" / "prefix", ROOT / "examples" / "embed" / "generate.c"
    shell(f"cmake -S . -B b -DCMAKE_PREFIX_PATH={prefix} -DSOURCE={source} && cmake --build b", tmp_path)
    assert shell(f"b/generate {stories_model_bin} 20 1 403", tmp_path) == expected(stories, 20)


def test_a_newer_package_than_there_is_is_not_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(CMAKE.format(version="99.0"))
    with pytest.raises(AssertionError, match=r"pyinferConfig\.cmake, version"):
        shell(f"cmake -S . -B b -DCMAKE_PREFIX_PATH={root / 'build' / 'prefix'} -DSOURCE=x.c", tmp_path)


def test_what_is_installed(root: Path) -> None:
    prefix = root / "build" / "prefix"
    names = {path.name for path in prefix.rglob("*") if not path.is_dir()}
    abi = re.search(r"#define PYI_ABI_VERSION (\d+)", (ROOT / "csrc/api/pyinfer.h").read_text("utf-8"))
    assert abi is not None
    library = {"libpyinfer.so", f"libpyinfer.so.{abi[1]}"}
    if sys.platform == "darwin":
        library = {"libpyinfer.dylib", f"libpyinfer.{abi[1]}.dylib"}
    package = {"pyinferConfig.cmake", "pyinferConfig-release.cmake", "pyinferConfigVersion.cmake"}
    assert names == library | package | {"pyinfer.h", "pyinfer.pc"}
    pc = next(prefix.rglob("pyinfer.pc")).parent
    found = shell(f"PKG_CONFIG_PATH={pc} pkg-config --modversion pyinfer", root)
    assert found.strip() == _core.__version__
