"""The GGUF reader refuses every malformed file with one line, quickly, without memory; it reads the others."""

from __future__ import annotations

import os
import re
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hostile_gguf
from gguf_writer import Tensor, TinyLlama, Typed, bpe_kv, float_bytes, write_gguf, write_llama
from pyinfer import _core, convert
from pyinfer.convert.gguf import READABLE, read_gguf
from pyinfer.errors import ModelFileError, UnsupportedError

CASES = hostile_gguf.cases()
SMALLEST = TinyLlama(n_layers=1, dim=4, n_heads=1, n_kv_heads=1, n_ff=4, n_vocab=3)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tokenizer libraries are imported once, outside the time that is measured."""
    for tokenizer in ("bpe", "spm"):
        made = hostile_gguf.parts(tokenizer).pack()
        path = tmp_path_factory.mktemp("warm") / "good.gguf"
        path.write_bytes(made)
        assert convert.inspect(path).tokenizer in ("tokenizers", "sentencepiece")


@pytest.mark.parametrize("name", CASES)
def test_malformed_file_is_refused(name: str, tmp_path: Path) -> None:
    data, word = CASES[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ModelFileError) as caught:
            convert.inspect(path)
        seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert re.search(word, message.removeprefix(str(path))), message
    assert seconds < 0.5 and peak < 8 << 20  # a Pi takes ten times as long as a desktop


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole.gguf", SMALLEST).read_bytes()
    convert.inspect(tmp_path / "whole.gguf")
    path = tmp_path / "cut.gguf"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            convert.open_source(path)


def test_flipped_bytes_raise_nothing_else(tmp_path: Path) -> None:
    whole = hostile_gguf.parts("spm").pack()
    path, rng = tmp_path / "flipped.gguf", np.random.default_rng(1)
    header = len(whole) - len(hostile_gguf.parts("spm").body)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            convert.open_source(path)
        except ModelFileError:
            refused += 1
    assert refused > 100


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "fifo", tmp_path / "folder", Path("/dev/zero")):
        with pytest.raises(ModelFileError, match=str(path)):
            convert.open_source(path)
    for path in (tmp_path / "loop", tmp_path / "missing"):
        with pytest.raises(OSError, match=path.name):
            convert.open_source(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "secret.gguf", SMALLEST)
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"secret\.gguf"):
        convert.open_source(path)


def test_strings_longer_than_the_first_read(tmp_path: Path) -> None:
    long, many = "x" * 200_000, [f"token {i}" for i in range(50_000)]
    path = write_gguf(tmp_path / "a.gguf", {"long": long, "many": many, "last": 7})
    keys = read_gguf(path).keys
    assert keys.text("long") == long and keys.texts("many") == many and keys.integer("last", 0, 9) == 7


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_versions_and_alignments(version: int, alignment: int, tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf", SMALLEST.kv(), SMALLEST.tensors(), version=version, alignment=alignment
    )
    checkpoint = convert.open_source(path)
    by_name = {tensor.name: tensor for tensor in checkpoint.tensors}
    for tensor in SMALLEST.tensors():
        if tensor.name.split(".")[-2] not in ("attn_q", "attn_k"):
            read = by_name[tensor.name].read(0, max(tensor.rows, 1))
            assert bytes(read) == bytes(tensor.data)


def test_scalar_types_are_read(tmp_path: Path) -> None:
    values = {
        "u8": 200,
        "i8": -5,
        "u16": 60000,
        "i16": -3,
        "u32": 7,
        "i32": -7,
        "u64": 2**63,
        "i64": -(2**40),
    }
    path = write_gguf(tmp_path / "a.gguf", {kind: Typed(kind, value) for kind, value in values.items()})
    keys = read_gguf(path).keys
    assert {kind: keys.integer(kind, -(2**63), 2**64) for kind in values} == values


def test_types_are_those_of_the_core() -> None:
    assert set(READABLE) == set(_core.SOURCES) - {"Q4_Z", "Q8_F"}
    assert {own for _, _, own in _core.SOURCES.values()} <= set(_core.FORMATS)


@pytest.mark.parametrize("kind", ["none", "linear"])
def test_linear_scaling_and_factors_become_frequencies(kind: str, tmp_path: Path) -> None:
    shape = replace(SMALLEST, dim=8, rope_theta=100.0)
    factors = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    extra = Tensor("rope_freqs.weight", "F32", 0, 4, float_bytes("F32", factors))
    scaling = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    path = write_llama(tmp_path / "a.gguf", shape, extra_kv=scaling, extra_tensors=[extra])
    found = next(tensor for tensor in convert.open_source(path).tensors if tensor.role == "rope_freqs")
    expected = 100.0 ** -np.array([0, 0.25, 0.5, 0.75]) / factors / (4.0 if kind == "linear" else 1.0)
    np.testing.assert_allclose(found.read(0, 1).view(np.float32), expected, rtol=1e-6)


def test_unsupported_differs_from_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(hostile_gguf.set_keys({"general.architecture": "mamba"}).pack())
    with pytest.raises(UnsupportedError, match=r"expected one of llama, qwen2, .*, found 'mamba'"):
        convert.open_source(path)


def test_file_that_shrinks_after_opening_is_an_error(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "a.gguf", SMALLEST)
    checkpoint = convert.open_source(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ModelFileError, match="end of the file"):
        checkpoint.tensors[-1].read(0, checkpoint.tensors[-1].rows)
        for tensor in checkpoint.tensors:
            tensor.read(0, tensor.rows)


def test_a_head_that_is_the_embedding_is_stored_once(tmp_path: Path) -> None:
    """As some converters write a tied model."""
    shape = TinyLlama(n_vocab=270, kind="Q8_0")
    tensors = [tensor for tensor in shape.tensors() if tensor.name != "output.weight"]
    (embedding,) = (tensor for tensor in tensors if tensor.name == "token_embd.weight")
    both = [*tensors, replace(embedding, name="output.weight")]
    keys = shape.kv() | bpe_kv(270)
    assert convert.inspect(write_gguf(tmp_path / "one.gguf", keys, both)).spec.tied_head
    convert.convert(tmp_path / "one.gguf", tmp_path / "one.bin")
    convert.convert(write_gguf(tmp_path / "tied.gguf", keys, tensors), tmp_path / "tied.bin")
    assert weights_at(tmp_path / "one.bin") == weights_at(tmp_path / "tied.bin")
    data = bytearray(bytes(embedding.data))
    data[-1] ^= 1
    other = [*tensors, replace(embedding, name="output.weight", data=bytes(data))]
    assert not convert.inspect(write_gguf(tmp_path / "two.gguf", keys, other)).spec.tied_head


def weights_at(path: Path) -> list[bytes]:
    file = _core.ModelFile(str(path))
    return [file.read(i).tobytes() for i in range(len(file.tensors))]
