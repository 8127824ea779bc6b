"""Conversions keep what they promise: values, row order, sizes, metadata; and refuse what they cannot do."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_writer import Tensor, TinyLlama, float_bytes, write_gguf, write_llama
from pyinfer import _core, convert
from pyinfer.convert.families.rotary_order import half_split_order
from pyinfer.convert.metadata import Metadata
from pyinfer.errors import ModelFileError, RequestError
from stored_values import stored

DATA = Path(__file__).parents[2] / "data"
OWN = {
    "F32": "f32", "F16": "f16", "BF16": "bf16", "Q4_0": "q4", "Q4_1": "q4m", "Q5_0": "q8", "Q5_1": "q8m",
    "Q8_0": "q8", "Q4_K": "q4k", "Q5_K": "q5k", "Q6_K": "q6k", "Q2_K": "q2k",
    "Q3_K": "q3k", "IQ4_NL": "iq4", "IQ4_XS": "iq4k",
}  # fmt: skip


def shape_of(kind: str) -> TinyLlama:
    width = max(_core.SOURCES[kind][0], 32)
    return TinyLlama(dim=width, n_heads=4, n_kv_heads=2, n_ff=width * 2, n_vocab=37, kind=kind)


def values_of(tensor: Tensor) -> NDArray[np.float32]:
    return _core.dequantize(
        tensor.kind, np.frombuffer(bytes(tensor.data), np.uint8), max(tensor.rows, 1), tensor.cols
    )


def by_name(shape: TinyLlama) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: values_of(tensor) for tensor in shape.tensors()}


def half_split(values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of pairs (0, 1), (2, 3) ... in each head become all the first halves, then all the second."""
    heads = values.reshape(-1, head_dim // 2, 2, values.shape[1])
    return heads.transpose(0, 2, 1, 3).reshape(values.shape)


@pytest.mark.parametrize("kind", OWN)
def test_every_source_type_lands_with_its_values(kind: str, tmp_path: Path) -> None:
    shape = shape_of(kind)
    source = write_llama(tmp_path / "a.gguf", shape)
    metadata = convert.convert(source, tmp_path / "a.bin")
    found, wanted = stored(tmp_path / "a.bin"), by_name(shape)
    for role, name in (("v", "attn_v"), ("o", "attn_output"), ("gate", "ffn_gate"), ("down", "ffn_down")):
        expected = wanted[f"blk.1.{name}.weight"]
        np.testing.assert_array_equal(found[role, 1], expected)
    landed = {item.source: item for item in metadata.landed if item.format != "vector"}[kind]
    assert (landed.format, landed.tensors) == (OWN[kind], 16)
    assert landed.bytes_in == sum(len(t.data) for t in shape.tensors() if t.rows)
    assert landed.rms_error == 0
    np.testing.assert_array_equal(found["final_norm", -1], wanted["output_norm.weight"])


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K"])
def test_q_and_k_rows_are_half_split(kind: str, tmp_path: Path) -> None:
    shape = shape_of(kind)
    source = write_llama(tmp_path / "a.gguf", shape)
    convert.convert(source, tmp_path / "a.bin")
    found, wanted = stored(tmp_path / "a.bin"), by_name(shape)
    for role in ("q", "k"):
        expected = half_split(wanted[f"blk.0.attn_{role}.weight"], shape.head_dim)
        np.testing.assert_array_equal(found[role, 0], expected)


def test_rows_that_do_not_rotate_stay() -> None:
    assert half_split_order(16, 8, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12, 13, 14, 15]
    assert half_split_order(6, 6, 0).tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_larger_than_a_range_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = TinyLlama(n_layers=1, dim=64, n_heads=2, n_kv_heads=1, n_ff=96, n_vocab=1001, kind="Q8_0")
    source = write_llama(tmp_path / "a.gguf", shape)
    convert.convert(source, tmp_path / "whole.bin")
    monkeypatch.setattr("pyinfer.convert.writer._CHUNK_VALUES", 16 * 64)
    convert.convert(source, tmp_path / "ranges.bin")
    assert (tmp_path / "whole.bin").read_bytes() == (tmp_path / "ranges.bin").read_bytes()


def test_conversion_is_repeatable_and_passes_the_reader(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama(n_vocab=300), tokenizer="bpe")
    for name in ("a.bin", "b.bin"):
        metadata = convert.convert(source, tmp_path / name)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    file = _core.ModelFile(str(tmp_path / "a.bin"))
    assert all(file.verify(i) for i in range(len(file.tensors)))
    assert Metadata.from_json(file.metadata()) == metadata
    assert file.file_bytes == (tmp_path / "a.bin").stat().st_size


def test_tied_head_and_odd_vocabulary(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama(tied=True, n_vocab=33))
    convert.convert(source, tmp_path / "a.bin")
    file = _core.ModelFile(str(tmp_path / "a.bin"))
    assert file.spec["tied_head"] and file.spec["n_vocab"] == 33
    assert "head" not in [tensor["role"] for tensor in file.tensors]


@pytest.mark.parametrize("weights", ["q4", "q8", "f16", "bf16", "f32"])
def test_floats_land_in_the_format_asked_for(weights: str, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama(kind="F16"))
    metadata = convert.convert(source, tmp_path / "a.bin", weights=weights)
    formats = {t["role"]: t["format"] for t in _core.ModelFile(str(tmp_path / "a.bin")).tensors}
    assert formats["q"] == formats["down"] == weights
    assert formats["embedding"] == formats["head"] == ("q8" if weights == "q4" else weights)
    assert formats["attn_norm"] == formats["rope_freqs"] == "vector"
    assert metadata.options == {"weights": weights}
    errors = {item.format: item.rms_error for item in metadata.landed if item.source == "F16"}
    low, high = {"q4": (0.05, 0.15), "q8": (1e-3, 1e-2), "bf16": (1e-4, 5e-3)}.get(weights, (0.0, 0.0))
    assert low <= errors[weights] <= high


def test_weights_that_cannot_be_honoured(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama(types={"ffn_up": "Q4_0"}))
    with pytest.raises(RequestError, match=r"blk\.0\.ffn_up\.weight is Q4_0"):
        convert.convert(source, tmp_path / "a.bin", weights="q8")
    with pytest.raises(RequestError, match="expected one of q4, q8, f16, bf16, f32, found 'int3'"):
        convert.convert(source, tmp_path / "a.bin", weights="int3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "blk.1.ffn_norm.weight"])
def test_values_that_are_no_numbers_are_named(value: float, name: str, tmp_path: Path) -> None:
    shape = TinyLlama()
    tensors = []
    for tensor in shape.tensors():
        values = values_of(tensor).copy()
        values[-1, -1] = value if tensor.name == name else values[-1, -1]
        tensors.append(replace(tensor, data=float_bytes("F32", values)))
    source = write_gguf(tmp_path / "a.gguf", shape.kv(), tensors)
    with pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
        convert.convert(source, tmp_path / "a.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf"]


def test_inspect_tells_what_convert_does(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama(n_vocab=300, kind="Q5_1"), tokenizer="spm")
    info = convert.inspect(source)
    metadata = convert.convert(source, tmp_path / "a.bin")
    assert [(g.source, g.format, g.tensors, g.bytes_in, g.bytes_out) for g in info.groups] == [
        (item.source, item.format, item.tensors, item.bytes_in, item.bytes_out) for item in metadata.landed
    ]
    assert (info.kind, info.architecture, info.name, info.tokenizer) == (
        "gguf",
        "llama",
        "tiny",
        "sentencepiece",
    )
    assert 0 <= (tmp_path / "a.bin").stat().st_size - info.output_bytes < 64 << 10
    assert info.source_bytes == source.stat().st_size


def test_content_key_follows_content_only(tmp_path: Path) -> None:
    first = write_llama(tmp_path / "a.gguf", TinyLlama(n_vocab=40))
    (tmp_path / "copy").mkdir()
    same = tmp_path / "copy" / "b.gguf"
    same.write_bytes(first.read_bytes())
    other = write_llama(tmp_path / "c.gguf", TinyLlama(n_vocab=40, seed=1))
    key = convert.content_key(first)
    assert key == convert.content_key(same) and len(key) == 32
    assert len({key, convert.content_key(other), convert.content_key(first, weights="q8")}) == 3


def test_content_key_sees_a_change_past_the_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyinfer.convert.identity._WHOLE", 1 << 16)
    path = write_llama(tmp_path / "a.gguf", TinyLlama(n_vocab=4000))
    key = convert.content_key(path)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert convert.content_key(path) != key


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama())
    calls: list[tuple[int, int, str]] = []
    convert.convert(source, tmp_path / "a.bin", progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done) and calls[-1][0] == calls[-1][1]
    assert {"token_embd.weight", "blk.1.ffn_down.weight", "output.weight"} <= {call[2] for call in calls}


def test_memory_stays_near_a_few_ranges_of_rows(tmp_path: Path) -> None:
    shape = TinyLlama(
        n_layers=1, dim=1024, n_heads=8, n_kv_heads=8, n_ff=1024, n_vocab=60_000, kind="Q8_0", tied=True
    )
    source = write_llama(tmp_path / "a.gguf", shape)
    tracemalloc.start()
    convert.convert(source, tmp_path / "a.bin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.stat().st_size > 64 << 20 and peak < 40 << 20


def test_stories_keep_their_values(tmp_path: Path) -> None:
    metadata = convert.convert(DATA / "stories260K.bin", tmp_path / "a.bin")
    assert (metadata.bos, metadata.eos, metadata.source.kind) == (1, (2, 1), "llama2c")
    raw = np.fromfile(DATA / "stories260K.bin", "<f4", offset=28)
    found = stored(tmp_path / "a.bin")
    np.testing.assert_array_equal(found["embedding", -1], raw[: 512 * 64].reshape(512, 64))
    attn_norms = raw[512 * 64 :][: 5 * 64].reshape(5, 64)
    np.testing.assert_array_equal(found["attn_norm", 3][0], attn_norms[3])
    q = raw[512 * 64 + 5 * 64 :][: 5 * 64 * 64].reshape(5, 64, 64)
    np.testing.assert_array_equal(found["q", 2], half_split(q[2], 8))
    assert _core.ModelFile(str(tmp_path / "a.bin")).spec["n_ff"] == 172


def test_llama2c_needs_its_tokenizer(tmp_path: Path) -> None:
    model = tmp_path / "stories.bin"
    model.write_bytes((DATA / "stories260K.bin").read_bytes())
    with pytest.raises(ModelFileError, match=r"expected tokenizer\.bin or one tok"):
        convert.open_source(model)
    vocabulary = (DATA / "tok512.bin").read_bytes()
    (tmp_path / "tok512.bin").write_bytes(vocabulary)
    assert convert.open_source(model).files[1].name == "tok512.bin"
    (tmp_path / "tok_other.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"tok512\.bin, tok_other\.bin"):
        convert.open_source(model)
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary)
    assert convert.open_source(model).files[1].name == "tokenizer.bin"


def test_llama2c_cut_or_mislabelled(tmp_path: Path) -> None:
    whole = (DATA / "stories260K.bin").read_bytes()
    vocabulary = (DATA / "tok512.bin").read_bytes()
    model, tokens = tmp_path / "m.bin", tmp_path / "tokenizer.bin"
    tokens.write_bytes(vocabulary)
    for data in (whole[:-1], whole + b"\0", whole[:28], whole[:27], b"\0" * 28, b"24ka" + whole[4:]):
        model.write_bytes(data)
        with pytest.raises(ModelFileError, match=r"m\.bin: "):
            convert.open_source(model)
    model.write_bytes(whole)
    for cut in (0, 3, 4, 11, 100, len(vocabulary) - 1):
        tokens.write_bytes(vocabulary[:cut])
        with pytest.raises(ModelFileError, match=r"tokenizer\.bin"):
            convert.open_source(model)
    tokens.write_bytes(vocabulary + b"\0")
    with pytest.raises(ModelFileError, match="expected 6227 bytes"):
        convert.open_source(model)


def test_a_model_file_is_told_from_a_source(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", TinyLlama())
    convert.convert(source, tmp_path / "a.bin")
    with pytest.raises(ModelFileError, match="needs no conversion"):
        convert.open_source(tmp_path / "a.bin")
