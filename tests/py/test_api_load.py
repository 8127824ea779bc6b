"""Opening models: names, limits, memory, the environment, and what an import costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import gguf_writer
import pyinfer
from pyinfer import Model, _core, convert, hub, load, memory
from pyinfer.errors import MemoryLimitError, ModelFileError, PyinferError, RequestError

FIGURES = r"needs [\d.,]+ MiB of memory, but only [\d.,]+ MiB are free$"


def test_what_a_model_says_of_itself(stories: Model, stories_model_bin: Path) -> None:
    assert stories.path == stories_model_bin
    assert (stories.name, stories.n_vocab, stories.context, stories.threads) == ("stories260K", 512, 512, 1)
    assert stories.spec["n_layers"] == 5
    assert stories.metadata.source.kind == "llama2c"
    assert stories.isa in repr(stories) and "stories260K" in repr(stories)
    assert stories.activations in ("int8", "f32")
    with stories.session() as session:
        session.append([5, 6])
        assert "2 of 512 tokens" in repr(session)


def test_a_source_is_converted_into_the_cache_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stories: Model
) -> None:
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path))
    source = Path(__file__).parents[1] / "data" / "stories260K.bin"
    seen: list[tuple[int, int, str]] = []
    with load(source, threads=1, progress=lambda *news: seen.append(news)) as model:
        assert tmp_path in model.path.parents
        assert (
            model.generate("Lily", seed=1, max_tokens=9).tokens
            == stories.generate("Lily", seed=1, max_tokens=9).tokens
        )
        first = model.path
    assert seen and seen[-1][0] == seen[-1][1]
    with load(str(source), threads=1) as model:
        assert model.path == first


def test_context_is_as_asked_and_within_what_was_trained(stories_model_bin: Path) -> None:
    with load(stories_model_bin, threads=1, context=64) as model:
        assert model.context == model.session().context == 64
        assert model.session(512).context == 512
        assert model.memory()["kv_cache"] < model.memory(512)["kv_cache"]
        assert model.memory()["kv_cache"] == model.memory(64)["kv_cache"]


def test_keys_and_values_as_bytes_take_less(stories_model_bin: Path, stories: Model) -> None:
    with load(stories_model_bin, threads=1, kv="q8") as model:
        assert (
            model.memory()["kv_cache"] < 0.8 * stories.memory()["kv_cache"]
        )  # heads of 8: a scale weighs much
        ours, halves = model.logits("Lily and her dog"), stories.logits("Lily and her dog")
        assert not np.array_equal(ours, halves)
        assert np.abs(ours - halves).max() < 0.05 * np.ptp(halves)
    with pytest.raises(RequestError, match="kv: expected auto, f16, i16 or q8, found 'q4'"):
        load(stories_model_bin, kv="q4")  # type: ignore[arg-type]


def test_the_default_context_is_no_larger_than_4096() -> None:
    from pyinfer.fitting import checked_context

    assert [checked_context(None, trained) for trained in (512, 4096, 131072)] == [512, 4096, 4096]
    assert checked_context(131072, 131072) == 131072


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: expected a whole number from 1 to 256, found 0"),
        ({"threads": -1}, "threads: .* found -1"),
        ({"threads": 1.5}, "threads: .* found 1.5"),
        ({"threads": "2"}, "threads: .* found '2'"),
        ({"threads": True}, "threads: .* found True"),
        ({"threads": 257}, "threads: expected a whole number from 1 to 256, found 257"),
        ({"threads": 10**12}, "threads: .* found 1000000000000"),
        ({"context": 0}, "context: expected a whole number of at least 1, found 0"),
        ({"context": 513}, "context: expected at most 512, for which the model was trained, found 513"),
        ({"context": 2**70}, "context: expected at most 512"),
        ({"activations": "int4"}, "activations: expected int8 or f32, found 'int4'"),
        ({"activations": 8}, "activations: expected int8 or f32, found 8"),
    ],
)
def test_arguments_outside_their_limits_are_refused(
    stories_model_bin: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^{message}") as error:
        load(stories_model_bin, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["no/such/file.gguf", "nosuchmodel", "", b"x", None, 5])
def test_what_is_no_model_is_refused(path: Any, tmp_path: Path) -> None:
    with pytest.raises(PyinferError) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_cut_model_is_refused(stories_model_bin: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.bin"
    cut.write_bytes(stories_model_bin.read_bytes()[:-64])
    with pytest.raises(ModelFileError):
        load(cut)


def test_activations_come_from_the_environment(
    stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYINFER_ACTIVATIONS", "f32")
    with load(stories_model_bin, threads=1) as exact:
        assert exact.activations == "f32"
        rows = exact.logits([1, 5, 6])
    with load(stories_model_bin, threads=1, activations="int8") as fast:
        assert fast.activations == "int8", "the argument wins"
    monkeypatch.setenv("PYINFER_ACTIVATIONS", "")
    with load(stories_model_bin, threads=1) as fast:
        assert fast.activations == "int8"
        assert np.allclose(fast.logits([1, 5, 6]), rows, atol=0.5)
    monkeypatch.setenv("PYINFER_ACTIVATIONS", "fp16")
    with pytest.raises(RequestError, match=r"^PYINFER_ACTIVATIONS: expected int8 or f32, found 'fp16'$"):
        load(stories_model_bin)


# Memory


def test_a_model_that_does_not_fit_is_refused(
    stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(load(stories_model_bin, threads=1).memory().values())  # type: ignore[attr-defined]
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: needed - 1)
    parts = r"\(weights 1\.0 MiB, 512 tokens of context 0\.5 MiB, workspace \d\.\d MiB\)"
    figures = FIGURES.replace("memory", f"memory {parts}").replace("free$", "free")
    with pytest.raises(
        MemoryLimitError, match=rf"^the model stories260K {figures}; a context of \d+ tokens would fit$"
    ):
        load(stories_model_bin, threads=1)
    for enough in (needed, None):
        monkeypatch.setattr("pyinfer.memory.available_bytes", lambda enough=enough: enough)
        load(stories_model_bin, threads=1).close()


def test_a_context_that_fits(stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than would be taken otherwise, whole pages, and a sixteenth of the memory stays free."""
    with load(stories_model_bin, threads=1, context="fit") as model:
        assert model.context == 512
        needs = model.memory(64)
        page, other = needs["kv_cache"], needs["weights"] + needs["workspace"]
    free = 0
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: free)
    for pages, context in ((8, 512), (7.99, 448), (4.5, 256), (1, 64)):
        free = int((other + pages * page) * 16 / 15) + 1
        with load(stories_model_bin, threads=1, context="fit") as model:
            assert model.context == context
            assert model.generate("Lily", max_tokens=5, temperature=0).text
    free = other + page  # no room is left, as none is asked of a context that is given
    with load(stories_model_bin, threads=1, context="fit") as model:
        assert model.context == 64
    with pytest.raises(MemoryLimitError, match=r"; a context of 64 tokens would fit$"):
        load(stories_model_bin, threads=1)
    load(stories_model_bin, threads=1, context=64).close()
    free = other + page - 1
    with pytest.raises(MemoryLimitError, match=r"; no context would fit$"):
        load(stories_model_bin, threads=1)
    with pytest.raises(
        MemoryLimitError, match=r"64 tokens of context 0\.1 MiB.* are free; no context would fit$"
    ):
        load(stories_model_bin, threads=1, context="fit")
    with pytest.raises(RequestError, match=r"^context: expected a whole number of at least 1, found 'all'$"):
        load(stories_model_bin, context="all")  # type: ignore[arg-type]


def test_nothing_is_read_of_a_model_that_does_not_fit(
    stories_model_bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []
    prefetch = _core.Engine.prefetch
    monkeypatch.setattr(_core.Engine, "prefetch", lambda engine: (read.append(True), prefetch(engine)))
    load(stories_model_bin, threads=1).close()
    assert read == [True]
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: 1000)
    with pytest.raises(MemoryLimitError):
        load(stories_model_bin, threads=1)
    assert read == [True]


def _huge_pages() -> bool:
    """Whether this system gives large pages on request."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


@pytest.mark.parametrize("huge_pages", ["auto", "on", "off"])
def test_pages_change_no_bit(
    stories_model_bin: Path, huge_pages: Literal["auto", "on", "off"], tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    shutil.copy(stories_model_bin, path)
    with load(stories_model_bin, threads=1) as model:
        expected = model.logits([1, 2, 3])
    if huge_pages == "on" and not _huge_pages():
        with pytest.raises(RequestError, match=r"^huge_pages: expected auto or off.*, found on$"):
            load(path, threads=1, huge_pages=huge_pages)
        return
    with load(path, threads=1, huge_pages=huge_pages) as model:
        assert np.array_equal(model.logits([1, 2, 3]), expected)
        if huge_pages == "on":  # a copy needs its file no more
            os.truncate(path, 4096)
            assert np.array_equal(model.logits([1, 2, 3]), expected)


def test_pages_of_no_known_kind(stories_model_bin: Path) -> None:
    with pytest.raises(RequestError, match=r"^huge_pages: expected auto, on or off, found 'yes'$"):
        load(stories_model_bin, huge_pages="yes")  # type: ignore[arg-type]


def test_the_largest_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: 1600)
    for most in (1, 63, 64, 700, 10**6):
        for each in (1, 2, 3, 7, 100):
            found = memory.largest(lambda size, each=each: 100 + each * size, most, 64)
            fits = [n for n in (*range(0, 1600, 64), most) if n <= most and 100 + each * n <= 1500]
            assert found == max(fits)
    monkeypatch.setattr("pyinfer.memory.available_bytes", lambda: None)
    assert memory.largest(lambda size: size, 10**9, 64) == 10**9


FULL = """
import os, sys, pyinfer
from pyinfer import _core

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def filled(path, **options):
    model = pyinfer.load(path, **options)
    session = model.session()
    session.append([5] * model.context)
    return model, session

filled(sys.argv[1], threads=2)
before = resident()
model, session = filled(sys.argv[2], threads=2, context=int(sys.argv[3]), kv=sys.argv[4])
print(resident() - before, sum(model.memory().values()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("context", "kv"), [(2048, "f16"), (2048, "q8"), (512, "f16")])
def test_the_estimate_is_what_is_resident(
    large_bin: Path, tiny_model_bin: Path, context: int, kv: str
) -> None:
    """Within 3 %: weights, a full context and the workspace, in a process that has the libraries and a tokenizer."""
    command = [sys.executable, "-c", FULL, str(tiny_model_bin), str(large_bin), str(context), kv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, told = map(int, done.stdout.split())
    assert abs(found - told) < 0.03 * told, (found, told)


@pytest.fixture(scope="module")
def large_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of some 60 MB of weights."""
    folder = tmp_path_factory.mktemp("large")
    shape = gguf_writer.TinyLlama(
        n_layers=10, dim=768, n_heads=12, n_kv_heads=12, n_ff=1536, n_vocab=270, context=2048, kind="Q8_0"
    )
    convert.convert(
        gguf_writer.write_llama(folder / "large.gguf", shape, tokenizer="bpe"), folder / "large.bin"
    )
    return folder / "large.bin"


def files(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1000 KiB free whose control groups lie in `tmp_path`/cgroup."""
    files(tmp_path, meminfo="MemTotal: 4000 kB\nMemAvailable: 1000 kB\nHugePages_Total: 0\n", self="")
    files(tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP_OF_SELF", tmp_path / "self")
    monkeypatch.setattr(memory, "_CGROUP_ROOT", tmp_path / "cgroup")
    return tmp_path


def test_memory_of_a_machine_without_limits(machine: Path) -> None:
    assert memory.available_bytes() == 1000 << 10
    memory.require(1000 << 10, "x")
    with pytest.raises(MemoryLimitError, match=r"^x needs 1\.0 MiB of memory, but only 1\.0 MiB are free$"):
        memory.require((1000 << 10) + 1, "x")


def test_the_tightest_control_group_counts(machine: Path) -> None:
    files(machine, self="0::/outer/inner\n")
    inner = files(machine / "cgroup" / "outer" / "inner", memory__max="max", memory__current="300")
    outer = files(
        inner.parent,
        memory__max="900\n",
        memory__current="500\n",
        memory__stat="active_file 60\ninactive_file 40\n",
    )
    assert memory.available_bytes() == 900 - 500 + 100
    files(inner, memory__max="310")
    assert memory.available_bytes() == 10
    files(inner, memory__max="200")
    assert memory.available_bytes() == 0
    files(inner, memory__max="nonsense")
    files(outer, memory__max="max")
    assert memory.available_bytes() == 1000 << 10


def test_a_container_sees_its_own_group_as_the_root(machine: Path) -> None:
    files(machine, self="0::/../not/visible\n")
    files(machine / "cgroup", memory__max="5000", memory__current="1000")
    assert memory.available_bytes() == 4000


def test_control_groups_of_the_first_version(machine: Path) -> None:
    files(machine, self="5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    stat = "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n"
    group = machine / "cgroup" / "memory" / "job"
    files(group, memory__limit_in_bytes="2000", memory__usage_in_bytes="1500", memory__stat=stat)
    assert memory.available_bytes() == 800


def test_a_system_that_does_not_say_refuses_nothing(machine: Path) -> None:
    for name in ("meminfo", "self"):
        (machine / name).unlink()
    assert memory.available_bytes() is None
    memory.require(10**18, "x")


# The package


def test_public_names() -> None:
    assert set(pyinfer.__all__) <= set(dir(pyinfer))
    assert all(getattr(pyinfer, name) is not None for name in pyinfer.__all__)
    assert len(pyinfer.__all__) <= 12
    with pytest.raises(AttributeError, match="nothing"):
        _ = pyinfer.nothing
    assert pyinfer.__version__[0].isdigit()


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_an_import_is_light() -> None:
    heavy = "('numpy', 'tokenizers', 'sentencepiece', 'jinja2', 'rich', 'asyncio', 'pyinfer._core')"
    assert run(f"import sys, pyinfer; print([name for name in {heavy} if name in sys.modules])") == "[]\n"
    heavy = "('tokenizers', 'sentencepiece', 'rich', 'safetensors', 'huggingface_hub')"
    code = f"import sys, pyinfer; pyinfer.load; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]\n"


def test_known_names_are_those_of_the_hub() -> None:
    with pytest.raises(ModelFileError, match="|".join(hub.KNOWN)):
        load("nosuchmodel")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps here")
def test_a_closed_model_lets_go_of_its_file(stories_model_bin: Path) -> None:
    """Though a name still stands for the model: Windows would not have the file replaced meanwhile."""
    name = str(stories_model_bin.resolve())
    before = Path("/proc/self/maps").read_text().count(name)
    model = load(stories_model_bin, threads=1)
    assert Path("/proc/self/maps").read_text().count(name) > before
    model.close()
    assert Path("/proc/self/maps").read_text().count(name) == before
    with pytest.raises(RequestError, match="closed"):
        model.generate("a")
