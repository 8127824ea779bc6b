"""Weights published as differences: their sums, the rows that a vocabulary gains, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import lora_writer as lw
from family_golden import FOLDER
from gguf_writer import TinyLlama, write_llama
from huggingface_writer import arrays, config, save, tokenizer_json, write_json
from pyinfer import _core, convert
from pyinfer.cli.main import main
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError
from reference import lora
from stored_values import stored

BASE = TinyLlama(n_vocab=300)
SAME = TinyLlama(n_vocab=300, seed=5)
LARGER = TinyLlama(n_vocab=303, seed=5)


def folder(path: Path, shape: TinyLlama, kind: str = "F16", **changes: Any) -> Path:
    path.mkdir()
    write_json(path / "config.json", config(shape, **changes))
    save(path / "model.safetensors", arrays(shape), kind)
    return path


def values(shape: TinyLlama, name: str) -> NDArray[np.float32]:
    return arrays(shape)[name].astype(np.float16).astype(np.float32)


def test_a_plain_difference(tmp_path: Path) -> None:
    """Vicuna v1.1: every tensor of one is added to that of the other; settings are the delta's."""
    base = folder(tmp_path / "base", BASE, max_position_embeddings=64)
    delta = folder(tmp_path / "delta", SAME)
    tokenizer_json(base / "tokenizer.json")
    metadata = convert.convert_delta(base, delta, tmp_path / "a.bin", weights="f32")
    found = stored(tmp_path / "a.bin")
    for (role, layer), name in {
        ("embedding", -1): "model.embed_tokens", ("head", -1): "lm_head", ("final_norm", -1): "model.norm",
        ("q", 1): "model.layers.1.self_attn.q_proj", ("down", 0): "model.layers.0.mlp.down_proj",
        ("attn_norm", 1): "model.layers.1.input_layernorm",
    }.items():  # fmt: skip
        wanted = values(BASE, f"{name}.weight") + values(SAME, f"{name}.weight")
        np.testing.assert_array_equal(found[role, layer], wanted.reshape(found[role, layer].shape))
    np.testing.assert_allclose(found["rope_freqs", -1][0], 10000.0 ** -(np.arange(8) / 8), rtol=1e-6)
    assert _core.ModelFile(str(tmp_path / "a.bin")).spec["context"] == SAME.context
    assert (metadata.options["base"], metadata.tokenizer, metadata.name) == ("base", "tokenizers", "delta")
    assert len(metadata.source.files) == 5


@pytest.mark.parametrize("new_rows", ["zero", "mean"])
@pytest.mark.parametrize("chunk", [2 << 20, 16 * 64])
def test_a_vocabulary_that_grows(
    new_rows: Any, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vicuna v0 adds to zeros, Stanford Alpaca to the mean of the base's rows."""
    monkeypatch.setattr("pyinfer.convert.writer._CHUNK_VALUES", chunk)
    base, delta = folder(tmp_path / "base", BASE), folder(tmp_path / "delta", LARGER)
    metadata = convert.convert_delta(base, delta, tmp_path / "a.bin", new_rows=new_rows, weights="f32")
    found = stored(tmp_path / "a.bin")
    for role, name in (("embedding", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
        old, change = values(BASE, name), values(LARGER, name)
        np.testing.assert_array_equal(found[role, -1][:300], old + change[:300])
        added = old.mean(axis=0, dtype=np.float64) if new_rows == "mean" else np.zeros(64)
        np.testing.assert_allclose(found[role, -1][300:], change[300:] + added, rtol=1e-6, atol=1e-7)
    assert metadata.options == {"base": "base", "new_rows": new_rows, "weights": "f32"}


def test_rows_more_need_a_word(tmp_path: Path) -> None:
    base, delta = folder(tmp_path / "base", BASE), folder(tmp_path / "delta", LARGER)
    with pytest.raises(
        RequestError, match=r"expected new_rows, zero \(Vicuna v0\) or mean \(Stanford Alpaca\).* 3 rows"
    ):
        convert.convert_delta(base, delta, tmp_path / "a.bin")
    with pytest.raises(RequestError, match="expected one of zero, mean, found 'random'"):
        convert.convert_delta(base, delta, tmp_path / "a.bin", new_rows="random")  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="n_vocab: expected at most 300 in the base, found 303"):
        convert.convert_delta(delta, base, tmp_path / "a.bin", new_rows="zero")
    assert not (tmp_path / "a.bin").exists()


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    delta = folder(tmp_path / "delta", SAME)
    for name, shape in (
        ("layers", TinyLlama(n_vocab=300, n_layers=1)),
        ("width", TinyLlama(n_vocab=300, n_ff=64)),
        ("heads", TinyLlama(n_vocab=300, n_kv_heads=4)),
    ):
        base = folder(tmp_path / name, shape)
        with pytest.raises(ModelFileError, match=r"expected .* in the base as in the delta"):
            convert.convert_delta(base, delta, tmp_path / "a.bin")
    quantised = write_llama(tmp_path / "base.gguf", TinyLlama(n_vocab=300, kind="Q8_0"))
    with pytest.raises(UnsupportedError, match="expected F32 or F16 or BF16, found Q8_0"):
        convert.convert_delta(quantised, delta, tmp_path / "a.bin")


def test_the_base_may_be_of_another_kind(tmp_path: Path) -> None:
    """A GGUF file in floats: rows of q and k stand in one order on both sides."""
    delta = folder(tmp_path / "delta", SAME, "F32")
    convert.convert_delta(folder(tmp_path / "base", BASE, "F32"), delta, tmp_path / "a.bin", weights="f32")
    gguf = write_llama(tmp_path / "base.gguf", BASE)
    convert.convert_delta(gguf, delta, tmp_path / "b.bin", weights="f32")
    first, second = stored(tmp_path / "a.bin"), stored(tmp_path / "b.bin")
    assert all(np.array_equal(first[place], second[place]) for place in first)


@pytest.mark.parametrize("name", ["gemma3", "phi3", "llama_dynamic"])
def test_what_conversion_adds_or_computes_counts_once(name: str, tmp_path: Path) -> None:
    """A difference of zeros changes nothing: 1 + w of norms, further sets of frequencies."""
    zeros = tmp_path / "delta"
    shutil.copytree(FOLDER / name, zeros)
    stands = lora.safetensors(FOLDER / name / "model.safetensors")
    save_file(
        {key: np.zeros(array.shape, np.float32) for key, array in stands.items()}, zeros / "model.safetensors"
    )
    convert.convert(FOLDER / name, tmp_path / "base.bin", weights="f32")
    convert.convert_delta(FOLDER / name, zeros, tmp_path / "sum.bin", weights="f32")
    expected, found = stored(tmp_path / "base.bin"), stored(tmp_path / "sum.bin")
    assert expected.keys() == found.keys() and {role for role, _ in found} & {
        "rope_freqs_local",
        "rope_freqs_long",
    }
    for place, array in expected.items():
        np.testing.assert_allclose(found[place], array, rtol=2e-7, atol=1e-7, err_msg=str(place))


def test_the_sum_is_quantised_once(tmp_path: Path) -> None:
    base, delta = folder(tmp_path / "base", BASE), folder(tmp_path / "delta", SAME)
    metadata = convert.convert_delta(base, delta, tmp_path / "a.bin")
    assert {item.format for item in metadata.landed} == {"q8", "vector"}
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = _core.unpack("q8", _core.pack("q8", values(BASE, name) + values(SAME, name)), 96, 64)
    np.testing.assert_array_equal(stored(tmp_path / "a.bin")["up", 0], wanted)


def test_pytorch_archives_in_shards(tmp_path: Path) -> None:
    """What was published in 2023: pytorch_model-0000N-of-0000M.bin by an index."""
    source = folder(tmp_path / "hf", BASE)
    convert.convert(source, tmp_path / "a.bin")
    (source / "model.safetensors").unlink()
    tensors = {name: array.astype(np.float16) for name, array in arrays(BASE).items()}
    names = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
    for shard in set(names.values()):
        part = {name: array for name, array in tensors.items() if names[name] == shard}
        (source / shard).write_bytes(lw.torch_bin(part))
    write_json(source / "pytorch_model.bin.index.json", {"weight_map": names})
    convert.convert(source, tmp_path / "b.bin")
    first, second = stored(tmp_path / "a.bin"), stored(tmp_path / "b.bin")
    assert all(np.array_equal(first[place], second[place]) for place in first)
    bomb = b"cos\nsystem\n(X\x04\x00\x00\x00truetR."
    (source / "pytorch_model-00002-of-00002.bin").write_bytes(lw.archive(bomb, []))
    with pytest.raises(UnsupportedError, match=r"00002\.bin: expected only tensors"):
        convert.open_source(source)
    write_json(source / "pytorch_model.bin.index.json", {"weight_map": {"x": "../a.bin"}})
    with pytest.raises(ModelFileError, match="file names without folders"):
        convert.open_source(source)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, delta = folder(tmp_path / "base", BASE), folder(tmp_path / "delta", LARGER)
    out = tmp_path / "a.bin"
    words = ["convert", "--base", os.fspath(base), "--delta", os.fspath(delta)]
    assert main([*words, "--new-rows", "zero", os.fspath(out)]) == 0 and out.exists()
    assert main([*words, os.fspath(out)]) == 1
    assert "expected new_rows" in capsys.readouterr().err
    for wrong in (
        ["convert", "--base", os.fspath(base), os.fspath(out)],
        [*words, os.fspath(base), os.fspath(out)],
        ["convert", "--new-rows", "zero", os.fspath(base), os.fspath(out)],
        [*words, "--lora", "x", os.fspath(out)],
    ):
        assert main(wrong) == 2
        assert "expected --base BASE --delta DELTA OUT.bin" in capsys.readouterr().err
