"""GPTQ and AWQ: every value of an independent dequantiser is kept; layouts that are not known are refused by name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pyinfer
from gguf_writer import TinyLlama, float_bytes
from huggingface_writer import arrays, config, safetensors_bytes, tokenizer_json, write_json
from pyinfer import _core, convert
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError
from reference import model_bin

SHAPE = TinyLlama(dim=128, n_heads=4, n_kv_heads=2, n_ff=256, n_vocab=300)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Stored = dict[str, tuple[str, list[int], bytes]]


@dataclass(frozen=True)
class Linear:
    """A random quantised layer: integers (out, in), zero points and scales (out, groups), the group of each input."""

    q: NDArray[np.int64]
    z: NDArray[np.int64]
    s: NDArray[np.float16]
    g: NDArray[np.int64]

    def values(self) -> NDArray[np.float32]:
        """What the layer means, value by value, with one rounding."""
        out = np.empty(self.q.shape, np.float32)
        for i in range(self.q.shape[0]):
            for j in range(self.q.shape[1]):
                group = self.g[j]
                out[i, j] = float(self.s[i, group]) * float(self.q[i, j] - self.z[i, group])
        return out


def linear(rows: int, cols: int, group: int, rng: np.random.Generator, symmetric: bool = False) -> Linear:
    groups = cols // group
    z = np.full((rows, groups), 8) if symmetric else rng.integers(1, 16, (rows, groups))
    s = (rng.uniform(0.2, 1, (rows, groups)) * 0.02).astype(np.float16)
    return Linear(rng.integers(0, 16, (rows, cols)), z, s, np.arange(cols) // group)


def words(nibbles: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(..., 8 n) -> (..., n), nibble i of a word from column i."""
    made = np.zeros((*nibbles.shape[:-1], nibbles.shape[-1] // 8), np.uint32)
    for i in range(8):
        made |= nibbles[..., i::8].astype(np.uint32) << np.uint32(4 * i)
    return made


def entry(values: NDArray[Any], kind: str) -> tuple[str, list[int], bytes]:
    return kind, list(values.shape), np.ascontiguousarray(values).tobytes()


def gptq(name: str, layer: Linear, one_less: bool, g_idx: bool = True) -> Stored:
    made = {
        f"{name}.qweight": entry(words(layer.q).T, "I32"),
        f"{name}.qzeros": entry(words((layer.z.T - one_less) & 15), "I32"),
        f"{name}.scales": entry(layer.s.T, "F16"),
    }
    return made | ({f"{name}.g_idx": entry(layer.g.astype(np.int32), "I32")} if g_idx else {})


def awq(name: str, layer: Linear) -> Stored:
    def packed(values: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(n, outputs): nibble i of a word is column ORDER[i] of its eight."""
        return words(values.reshape(values.shape[0], -1, 8)[..., ORDER].reshape(values.shape[0], -1))

    return {
        f"{name}.qweight": entry(packed(layer.q.T), "I32"),
        f"{name}.qzeros": entry(packed(layer.z.T), "I32"),
        f"{name}.scales": entry(layer.s.T, "F16"),
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


@dataclass
class Checkpoint:
    """A tiny model whose matrices in the layers are packed; `layers` is what they are."""

    path: Path
    layers: dict[str, Linear]
    tensors: Stored

    def save(self) -> None:
        (self.path / "model.safetensors").write_bytes(safetensors_bytes(self.tensors))


def checkpoint(
    path: Path, settings: dict[str, Any], *, act_order: bool = False, g_idx: bool = True
) -> Checkpoint:
    path.mkdir()
    write_json(path / "config.json", config(SHAPE, quantization_config=settings))
    rng, layers, tensors = np.random.default_rng(3), {}, {}
    for name, values in arrays(SHAPE).items():
        if "_proj" not in name:
            tensors[name] = ("F16", list(values.shape), float_bytes("F16", values).tobytes())
            continue
        rows, cols = values.shape
        group = cols if settings["group_size"] == -1 else settings["group_size"]
        layer = linear(rows, cols, group, rng, symmetric=settings.get("sym") is True)
        if act_order:
            layer = Linear(layer.q, layer.z, layer.s, rng.permutation(layer.g))
        module = name.removesuffix(".weight")
        layers[module] = layer
        one_less = settings.get("checkpoint_format", "gptq") == "gptq"
        is_awq = settings["quant_method"] == "awq"
        tensors |= awq(module, layer) if is_awq else gptq(module, layer, one_less, g_idx)
    made = Checkpoint(path, layers, tensors)
    made.save()
    return made


ROLES = {"q": "self_attn.q_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
         "down": "mlp.down_proj"}  # fmt: skip


def check_values(made: Checkpoint, path: Path, kind: str) -> None:
    """All values of some matrices, as the core reads them and by the page."""
    file, page = _core.ModelFile(str(path)), model_bin.read(path)
    for i, record in enumerate(file.tensors):
        if record["role"] not in ROLES or record["layer"] != 1:
            continue
        wanted = made.layers[f"model.layers.1.{ROLES[record['role']]}"].values()
        assert record["format"] == kind
        found = _core.unpack(kind, file.read(i), record["rows"], record["cols"])
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(page.tensor(record["role"], 1).values(), wanted)


def weights_of(path: Path) -> list[bytes]:
    file = _core.ModelFile(str(path))
    return [file.read(i).tobytes() for i in range(len(file.tensors))]


@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "awq"])
def test_every_value_is_kept(layout: str, group: int, tmp_path: Path) -> None:
    settings = AWQ if layout == "awq" else {**GPTQ, "checkpoint_format": layout}
    made = checkpoint(tmp_path / "hf", {**settings, "group_size": group})
    metadata = convert.convert(made.path, tmp_path / "a.bin")
    check_values(made, tmp_path / "a.bin", "q4z")
    landed = {(item.source, item.format): item.rms_error for item in metadata.landed}
    assert landed["Q4_Z", "q4z"] == 0 and landed["F16", "q8"] > 0 and metadata.source.kind == "huggingface"


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_symmetric_ones_need_no_zero_points(layout: str, tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "hf", {**GPTQ, "sym": True, "checkpoint_format": layout}, g_idx=False)
    convert.convert(made.path, tmp_path / "a.bin", weights=None)
    check_values(made, tmp_path / "a.bin", "q4")


def test_ranges_of_rows_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (GPTQ, AWQ):
        made = checkpoint(tmp_path / settings["quant_method"], settings)
        convert.convert(made.path, tmp_path / "whole.bin")
        with monkeypatch.context() as patch:
            patch.setattr("pyinfer.convert.writer._CHUNK_VALUES", 16 * 128)
            convert.convert(made.path, tmp_path / "ranges.bin")
        assert weights_of(tmp_path / "whole.bin") == weights_of(tmp_path / "ranges.bin")
        tensor = next(item for item in convert.open_source(made.path).tensors if item.role == "gate")
        whole = tensor.read(0, tensor.rows).reshape(tensor.rows, -1)
        np.testing.assert_array_equal(tensor.read(13, 45).reshape(32, -1), whole[13:45])


def test_reordered_inputs_become_floats_and_are_measured(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "hf", {**GPTQ, "desc_act": True}, act_order=True)
    metadata = convert.convert(made.path, tmp_path / "a.bin")
    landed = {(item.source, item.format): item.rms_error for item in metadata.landed}
    assert 0 < landed["F32", "q8"] < 0.01
    convert.convert(made.path, tmp_path / "f32.bin", weights="f32")
    check_values(made, tmp_path / "f32.bin", "f32")


def test_older_files_beside_config_json(tmp_path: Path) -> None:
    for name, settings in (
        ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}),
    ):
        made = checkpoint(tmp_path / name, GPTQ if "bits" in settings else AWQ)
        write_json(made.path / "config.json", config(SHAPE))
        key = None
        with pytest.raises(UnsupportedError, match="I32"):
            convert.open_source(made.path)
        key = convert.content_key(made.path)
        write_json(made.path / name, settings)
        assert convert.content_key(made.path) != key
        convert.convert(made.path, tmp_path / "a.bin")
        check_values(made, tmp_path / "a.bin", "q4z")


def test_it_runs(tmp_path: Path) -> None:
    """Logits from the packed model are those of its values in floats, as far as int8 activations allow."""
    made = checkpoint(tmp_path / "hf", GPTQ)
    tokenizer_json(made.path / "tokenizer.json")
    convert.convert(made.path, tmp_path / "packed.bin")
    for module, layer in made.layers.items():
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del made.tensors[f"{module}.{part}"]
        made.tensors[f"{module}.weight"] = ("F32", list(layer.q.shape), layer.values().tobytes())
    made.save()
    write_json(made.path / "config.json", config(SHAPE))
    convert.convert(made.path, tmp_path / "floats.bin", weights="f32")
    ids = list(range(40, 60))
    with (
        pyinfer.load(tmp_path / "packed.bin", threads=1) as one,
        pyinfer.load(tmp_path / "floats.bin", threads=1) as two,
    ):
        a, b = one.logits(ids), two.logits(ids)
    assert np.square(a - b).mean() < 0.05**2 * np.square(b).mean()


def test_weights_cannot_be_asked_for(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "hf", GPTQ)
    with pytest.raises(RequestError, match=r"q_proj\.weight is Q4_Z, quantised already"):
        convert.convert(made.path, tmp_path / "a.bin", weights="q8")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({**GPTQ, "bits": 3}, "bits: expected 4, found 3"),
        ({**GPTQ, "bits": None}, "bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format"),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format"),
        ({**GPTQ, "dynamic": {"-:lm_head": {}}}, "dynamic"),
        ({**GPTQ, "group_size": 16}, "group_size"),
        ({**GPTQ, "group_size": 0}, "group_size"),
        ({**GPTQ, "group_size": "32"}, "group_size"),
        ({**GPTQ, "group_size": True}, "group_size"),
        ({**GPTQ, "group_size": 64}, "qzeros: expected the shape"),
        ({**GPTQ, "group_size": 96}, "group of 96"),
        ({**GPTQ, "sym": "yes"}, "sym"),
        ({**AWQ, "version": "gemv"}, "version"),
        ({**AWQ, "version": None}, "version"),
        ({**AWQ, "bits": 8}, "bits"),
        ({"quant_method": "bitsandbytes"}, "quant_method: expected gptq or awq, found 'bitsandbytes'"),
        ({"quant_method": ["gptq"]}, "quant_method"),
        ({}, "I32|quant_method"),
        ([1], "quantization_config"),
    ],
)
def test_settings_that_cannot_be_honoured(settings: Any, word: str, tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "hf", GPTQ)
    write_json(made.path / "config.json", config(SHAPE, quantization_config=settings))
    with pytest.raises(ModelFileError, match=word) as caught:
        convert.open_source(made.path)
    assert str(caught.value).startswith(str(made.path)) and "\n" not in str(caught.value)


M = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"qzeros": None}, r"q_proj\.qzeros, found none"),
        ({"scales": None}, r"q_proj\.scales, found none"),
        ({"qweight": None}, "qzeros: expected F32"),
        ({"qweight": ("F32", [16, 128], bytes(16 * 128 * 4))}, "I32"),
        ({"qweight": ("I32", [2048], bytes(2048 * 4))}, "matrix"),
        ({"qweight": ("I32", [15, 128], bytes(15 * 128 * 4))}, "group of 32"),
        ({"qweight": ("I32", [16, 64], bytes(16 * 64 * 4))}, "shape"),
        ({"qzeros": ("I32", [4, 15], bytes(4 * 15 * 4))}, "qzeros: expected the shape"),
        ({"scales": ("F16", [4, 127], bytes(4 * 127 * 2))}, "scales: expected the shape"),
        ({"scales": ("I32", [4, 128], bytes(4 * 128 * 4))}, "scales"),
        ({"g_idx": ("I32", [127], bytes(127 * 4))}, "g_idx"),
        ({"g_idx": ("I32", [128], np.full(128, 4, np.int32).tobytes())}, "groups of 0 to 3"),
        ({"g_idx": ("I32", [128], np.full(128, -1, np.int32).tobytes())}, "groups of 0 to 3"),
        ({"weight": ("F16", [128, 128], bytes(128 * 128 * 2))}, "both"),
        ({"other": ("I32", [1], bytes(4))}, "I32"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "hf", GPTQ)
    for part, value in change.items():
        if value is None:
            del made.tensors[f"{M}.{part}"]
        else:
            made.tensors[f"{M}.{part}"] = value
    made.save()
    with pytest.raises(ModelFileError, match=word) as caught:
        convert.open_source(made.path)
    assert "\n" not in str(caught.value)


def test_scales_and_zero_points_that_would_change(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "hf", GPTQ)
    halves = made.layers[M].s.T
    exact = halves.astype(np.float32)
    made.tensors[f"{M}.scales"] = entry(exact, "F32")
    made.save()
    convert.convert(made.path, tmp_path / "a.bin")
    check_values(made, tmp_path / "a.bin", "q4z")
    for bad in (exact * np.float32(1.00001), exact * np.float32(1e9), exact * np.float32(np.nan)):
        made.tensors[f"{M}.scales"] = entry(bad, "F32")
        made.save()
        with pytest.raises(ModelFileError, match=r"q_proj.*scales that are halves"):
            convert.convert(made.path, tmp_path / "b.bin")
    made = checkpoint(tmp_path / "sym", {**GPTQ, "sym": True})
    made.tensors[f"{M}.qzeros"] = entry(np.full((4, 16), 0x77767777, np.uint32), "I32")
    made.save()
    with pytest.raises(ModelFileError, match=r"qzeros: expected 8 as sym is true, found 7"):
        convert.convert(made.path, tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()


def test_nothing_packed_after_all(tmp_path: Path) -> None:
    path = tmp_path / "hf"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config(SHAPE, quantization_config=GPTQ)))
    tensors = {n: ("F32", list(v.shape), float_bytes("F32", v).tobytes()) for n, v in arrays(SHAPE).items()}
    (path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(ModelFileError, match="expected matrices packed by gptq, found none"):
        convert.open_source(path)
