"""Small systems: no home folder, a cache that cannot be written, a read-only file system; a model.bin runs on all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfer import Model, cache, load
from pyinfer.errors import PyinferError

DATA = Path(__file__).parents[1] / "data"
ANSWER = ("Once", "--raw", "--greedy", "-n", "12")


@pytest.fixture
def no_cache(tmp_path: Path) -> Path:
    """A folder that nobody can make, root neither: it would lie in a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


def environment(**given: str) -> dict[str, str]:
    """That of a service: no home, nothing else but what is given."""
    return {"PATH": os.environ["PATH"], **given}


def run(arguments: list[str], **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyinfer", *arguments],
        env=environment(**given),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def told(stories: Model) -> str:
    """What the story teller answers on the command line."""
    return stories.generate("Once", temperature=0, max_tokens=12).text + "\n"


def test_a_model_file_runs_without_home_and_cache(stories_model_bin: Path, no_cache: Path, told: str) -> None:
    for given in ({"PYINFER_CACHE": str(no_cache)}, {"HOME": str(no_cache)}, {}):
        done = run(["run", str(stories_model_bin), *ANSWER], **given)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", told)
        for verb in (["info", str(stories_model_bin)], ["cpu"]):
            assert run(verb, **given).returncode == 0


def test_a_conversion_is_refused_with_a_sentence(no_cache: Path, told: str) -> None:
    source = str(DATA / "stories260K.bin")
    done = run(["run", source, *ANSWER], PYINFER_CACHE=str(no_cache))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"pyinfer: cannot write to the cache folder {no_cache}/models: Not a directory; set PYINFER_CACHE to a "
        "folder with room that you may write to, or run a model.bin, which needs no cache\n"
    )
    done = run(["run", source, *ANSWER, "--no-cache"], PYINFER_CACHE=str(no_cache))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", told)


def test_a_user_without_a_home_is_told_what_to_set(
    stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number of its own: no HOME, and no entry in the list of users."""
    pwd = pytest.importorskip("pwd")

    def unknown(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "PYINFER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(PyinferError, match=r"^no home folder to put the cache in; set PYINFER_CACHE to one"):
        load(DATA / "stories260K.bin")
    with load(stories_model_bin, threads=1) as model:
        assert model.generate("Once", max_tokens=3).tokens


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def mounted(folder: Path, command: list[str], **given: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that sees a folder as a read-only file system."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", READ_ONLY, str(folder), *command],
        env=environment(**given),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def read_only(tmp_path: Path, stories_model_bin: Path) -> Path:
    """A folder with a model.bin, a checkpoint, and a cache that holds that checkpoint's conversion."""
    if not shutil.which("unshare") or mounted(tmp_path, ["true"]).returncode:
        pytest.skip("a read-only mount needs unshare, and the right to use it")
    shutil.copyfile(stories_model_bin, tmp_path / "model.bin")
    for name in ("stories260K.bin", "tok512.bin"):
        shutil.copyfile(DATA / name, tmp_path / name)
    assert run(
        ["run", str(tmp_path / "stories260K.bin"), *ANSWER], PYINFER_CACHE=str(tmp_path / "cache")
    ).stdout
    return tmp_path


def test_a_read_only_file_system(read_only: Path, told: str) -> None:
    def answered(model: str, **given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pyinfer", "run", str(read_only / model), *ANSWER]
        return mounted(read_only, command, **given)

    refused = mounted(read_only, ["touch", str(read_only / "x")])
    assert "Read-only file system" in refused.stderr, "or this test shows nothing"
    done = answered("model.bin", PYINFER_CACHE=str(read_only / "none"))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", told)
    done = answered("stories260K.bin", PYINFER_CACHE=str(read_only / "cache"))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", told), (
        "converted before the cache was read-only"
    )
    done = answered("stories260K.bin", PYINFER_CACHE=str(read_only / "none"))
    assert done.returncode == 1
    assert f"cannot write to the cache folder {read_only}/none/models: Read-only file system" in done.stderr


def test_a_name_in_a_cache_that_cannot_be_written(
    stories_model_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a name was converted to is found without a lock, which would have to be written."""
    from pyinfer import hub

    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path))
    alias = hub._alias("hf:org/repo", None)
    cache.add("key", "hf:org/repo", "", lambda path: shutil.copyfile(stories_model_bin, path))
    cache.remember(alias, "key")

    def unwritable(*_: str) -> Path:
        raise PyinferError("cannot write")

    monkeypatch.setattr(cache, "_made", unwritable)
    assert hub.resolve("hf:org/repo") == tmp_path / "models" / "key.bin"
    with pytest.raises(PyinferError, match="cannot write"):
        hub.resolve("hf:org/repo", fresh=True)
