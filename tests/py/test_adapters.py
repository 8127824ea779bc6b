"""Reading adapters: what their settings mean, and that hostile or unfit ones are refused by name."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gguf_writer
import lora_writer as lw
from lora_golden import FOLDER, base_folder
from pyinfer import Adapter, Model, convert, load
from pyinfer.convert.adapter import as_float
from pyinfer.convert.torch_pickle import read_torch
from pyinfer.errors import ModelFileError, PyinferError, RequestError, UnsupportedError

Change = Callable[[dict[str, Any], lw.Tensors], None]
Q0 = lw.module(0, "q_proj")


def written(folder: Path, change: Change) -> Path:
    """The plain adapter with one thing changed."""
    config, values = lw.settings(), lw.tensors()
    change(config, values)
    return lw.write(folder, config, values)


# What the settings mean


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 8 / 4),
        ({"use_rslora": True}, 8 / 4**0.5),
        ({"alpha_pattern": {"q_proj": 3, "layers.0.self_attn.q_proj": 5}}, 3 / 4),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 5, "q_proj": 3}}, 5 / 4),
        ({"alpha_pattern": {"_proj": 3}}, 8 / 4),
        ({"alpha_pattern": {".*proj": 2}, "use_rslora": True}, 2 / 4**0.5),
        ({"r": 9, "rank_pattern": {".*_proj": 4}}, 8 / 4),
    ],
)
def test_scaling(tmp_path: Path, config: dict[str, Any], expected: float) -> None:
    adapter = Adapter.load(lw.write(tmp_path / "a", lw.settings(**config), lw.tensors()))
    scalings = {c.name: c.scaling for c in adapter.source.changes}
    assert scalings["model.layers.0.self_attn.q_proj"] == pytest.approx(expected, rel=1e-12)


def test_an_adapter_says_what_it_is(tmp_path: Path) -> None:
    adapter = Adapter.load(lw.plain(tmp_path / "sql"))
    assert (adapter.name, adapter.rank, len(adapter.source.changes)) == ("sql", 4, 15)
    assert adapter.bytes == sum(values.nbytes for values in lw.tensors().values())
    assert Adapter.load(tmp_path / "sql", name="other").name == "other"
    with pytest.raises(RequestError, match="name"):
        Adapter.load(tmp_path / "sql", name=" ")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_factors_keep_their_precision(kind: str) -> None:
    source = Adapter.load(FOLDER / kind).source
    assert {change.a.dtype.name for change in source.changes} == {
        "uint16" if kind == "bfloat16" else "float16"
    }
    assert all(np.isfinite(as_float(change.a)).all() for change in source.changes)


def test_gguf_and_peft_say_the_same() -> None:
    gguf, peft = Adapter.load(FOLDER / "plain.gguf").source, Adapter.load(FOLDER / "plain").source
    by_place = {(c.role, c.layer): c for c in peft.changes}
    assert gguf.interleaved and len(gguf.changes) == len(peft.changes)
    for change in gguf.changes:
        twin = by_place[change.role, change.layer]
        assert change.scaling == twin.scaling
        assert np.array_equal(change.a, twin.a)


def test_a_bin_is_read_like_safetensors(tmp_path: Path) -> None:
    folder, values = lw.plain(tmp_path / "a"), lw.tensors()
    expected = {change.name: change for change in Adapter.load(folder).source.changes}
    (folder / "adapter_model.safetensors").unlink()
    values = {name: np.asfortranarray(array) for name, array in values.items()}
    storages = [array.T.tobytes() for array in values.values()]
    (folder / "adapter_model.bin").write_bytes(lw.archive(lw.state_pickle(values), storages))
    found = Adapter.load(folder).source.changes
    assert len(found) == len(expected)
    for ours in found:
        twin = expected[ours.name]
        assert np.array_equal(ours.a, twin.a) and np.array_equal(ours.b, twin.b)


def _without(name: str) -> lw.Tensors:
    return {key: values for key, values in lw.tensors().items() if name not in key}


@pytest.mark.parametrize(
    "taken_out",
    [
        {"exclude_modules": ["down_proj"]},
        {"exclude_modules": ["mlp.down_proj"]},
        {"exclude_modules": r".*\.mlp\..*"},
        {"modules_to_save": ["down_proj"]},
    ],
)
def test_targets_that_a_setting_takes_out_need_no_tensors(tmp_path: Path, taken_out: dict[str, Any]) -> None:
    values = _without("down_proj")
    if "modules_to_save" in taken_out:
        for layer in range(5):
            values[f"{lw.module(layer, 'down_proj')}.weight"] = np.ones((64, 172), np.float32)
    changes = Adapter.load(lw.write(tmp_path / "a", lw.settings(**taken_out), values)).source.changes
    assert {change.role for change in changes} == {"q", "v"}


def test_a_head_is_no_layer_to_transform(tmp_path: Path) -> None:
    """PEFT passes over targets outside of the layers, and an empty list of layers says nothing."""
    targets = [*lw.STORIES, "lm_head"]
    some = lw.settings(layers_to_transform=list(range(5)), target_modules=targets)
    assert len(Adapter.load(lw.write(tmp_path / "some", some, lw.tensors())).source.changes) == 15
    none = lw.settings(layers_to_transform=[], target_modules=targets)
    with pytest.raises(ModelFileError, match="'lm_head', found none"):
        Adapter.load(lw.write(tmp_path / "none", none, lw.tensors()))


@pytest.mark.parametrize("prefix", ["model.language_model.layers", "language_model.model.layers"])
def test_an_adapter_of_a_model_that_sees_is_one_of_its_language_model(tmp_path: Path, prefix: str) -> None:
    values = {name.replace("model.layers", prefix, 1): array for name, array in lw.tensors().items()}
    found = Adapter.load(lw.write(tmp_path / "seeing", lw.settings(), values)).source.changes
    expected = Adapter.load(lw.plain(tmp_path / "plain")).source.changes
    assert [(c.role, c.layer) for c in found] == [(c.role, c.layer) for c in expected]


@pytest.mark.parametrize("target", ["q_proj", "self_attn.q_proj"])
def test_a_target_without_a_number_is_in_every_layer(tmp_path: Path, target: str, stories: Model) -> None:
    values = {name: array for name, array in lw.tensors(layers=4).items() if "q_proj" in name}
    folder = lw.write(tmp_path / "a", lw.settings(target_modules=[target]), values)
    with pytest.raises(ModelFileError, match="changes of q in 5 layers, found none in layer 4"):
        stories.logits([1], adapters=[folder])


def test_names_of_saved_modules_are_ends_of_paths(tmp_path: Path) -> None:
    """As PEFT matches them: `norm` stands for every norm."""
    norms = {f"{lw.PREFIX}.{i}.input_layernorm.weight": np.ones(64, np.float32) for i in range(5)}
    folder = lw.write(tmp_path / "a", lw.settings(modules_to_save=["norm"]), lw.tensors() | norms)
    assert {item.role for item in Adapter.load(folder).source.replaced} == {"attn_norm"}


EMBEDDING, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
TRAINED = ".token_adapter.trainable_tokens_delta"


def test_saved_modules_without_a_number_are_in_every_layer(tmp_path: Path, stories: Model) -> None:
    values = lw.tensors()
    for layer in range(4):
        values[f"{lw.PREFIX}.{layer}.input_layernorm.weight"] = np.ones(64, np.float32)
    cut = lw.write(tmp_path / "cut", lw.settings(modules_to_save=["input_layernorm"]), values)
    with pytest.raises(
        ModelFileError, match="expected changes of attn_norm in 5 layers, found none in layer 4"
    ):
        stories.logits([1], adapters=[cut])


def test_a_shared_tensor_that_was_saved_counts_at_both_ends(tmp_path: Path, stories_model_bin: Path) -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(0, 0.1, (512, 64)).astype(np.float32)
    both = {f"{EMBEDDING}.weight": table, f"{HEAD}.weight": table}
    config = lw.settings(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    whole = lw.write(tmp_path / "whole", config, lw.tensors() | both)
    alone = lw.write(tmp_path / "alone", config, lw.tensors() | {f"{EMBEDDING}.weight": table})
    named_both = lw.settings(modules_to_save=["embed_tokens", "lm_head"])
    apart = lw.write(tmp_path / "apart", named_both, lw.tensors() | both)
    with load(stories_model_bin, threads=1) as model:
        expected = model.logits([1, 403, 7], adapters=[apart])
        for folder in (whole, alone):
            assert np.array_equal(model.logits([1, 403, 7], adapters=[folder]), expected)


def test_trained_tokens_of_each_end_are_needed(tmp_path: Path, stories_model_bin: Path) -> None:
    rows = {f"{EMBEDDING}{TRAINED}": np.ones((2, 64), np.float32)}
    shared = lw.settings(trainable_token_indices={"embed_tokens": [5, 9], "lm_head": [5, 9]})
    folder = lw.write(tmp_path / "shared", shared, lw.tensors() | rows)
    assert [item.only_tied for item in Adapter.load(folder).source.replaced] == [True]
    with load(stories_model_bin, threads=1) as model:
        model.logits([1], adapters=[folder])
    apart = lw.settings(trainable_token_indices={"embed_tokens": [5, 9], "lm_head": [5, 8]})
    with pytest.raises(ModelFileError, match="trained rows of 'lm_head', found none"):
        Adapter.load(lw.write(tmp_path / "apart", apart, lw.tensors() | rows))


def test_shared_trained_tokens_do_not_fit_a_head_of_its_own(tmp_path: Path) -> None:
    rows = {f"{EMBEDDING}{TRAINED}": np.ones((2, 64), np.float32)}
    shared = lw.settings(
        trainable_token_indices={"embed_tokens": [5, 9], "lm_head": [5, 9]}, target_modules=["q_proj"]
    )
    values = {name: array for name, array in lw.tensors(layers=2).items() if "q_proj" in name}
    folder = lw.write(tmp_path / "shared", shared, values | rows)
    convert.convert(base_folder(tmp_path / "base", False), tmp_path / "base.bin")
    with (
        load(tmp_path / "base.bin", threads=1) as model,
        pytest.raises(ModelFileError, match="of the head too"),
    ):
        model.logits([1], adapters=[folder])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({f"{EMBEDDING}.token_adapter.base_layer.weight": np.ones((512, 64), np.float32)}, "trained rows"),
        (
            {
                f"{EMBEDDING}.token_adapter.base_layer.weight": np.ones((9, 64), np.float32),
                f"{EMBEDDING}{TRAINED}": np.ones((2, 64), np.float32),
            },
            "found row 9 of 64 values",
        ),
        (
            {
                f"{EMBEDDING}.token_adapter.base_layer.weight": np.ones((3, 512, 64), np.float32),
                f"{EMBEDDING}{TRAINED}": np.ones((2, 64), np.float32),
            },
            "expected two dimensions",
        ),
        (
            {
                f"{lw.module(0, 'q_proj')}.token_adapter.base_layer.weight": np.ones((9, 64), np.float32),
                f"{EMBEDDING}{TRAINED}": np.ones((2, 64), np.float32),
            },
            "tokens of this module",
        ),
    ],
)
def test_tables_of_trained_tokens(tmp_path: Path, values: lw.Tensors, words: str) -> None:
    config = lw.settings(trainable_token_indices=[5, 9])
    with pytest.raises(ModelFileError, match=words):
        Adapter.load(lw.write(tmp_path / "a", config, lw.tensors() | values))


# What is refused


def _rename(old: str, new: str) -> Change:
    def change(_: dict[str, Any], values: lw.Tensors) -> None:
        values[new] = values.pop(old)

    return change


def _set(**fields: Any) -> Change:
    return lambda config, _: config.update(fields)


def _put(name: str, *shape: int) -> Change:
    return lambda _, values: values.update({name: np.ones(shape, np.float32)})


def _drop(name: str) -> Change:
    def change(_: dict[str, Any], values: lw.Tensors) -> None:
        del values[name]

    return change


def _drop_layer(_: dict[str, Any], values: lw.Tensors) -> None:
    for name in [name for name in values if ".4." in name]:
        del values[name]


def _infinite(_: dict[str, Any], values: lw.Tensors) -> None:
    values[f"{Q0}.lora_A.weight"][1, 2] = np.inf


def _drop_one(config: dict[str, Any], values: lw.Tensors) -> None:
    config.update(layers_to_transform=list(range(5)))
    for name in [name for name in values if ".1." in name and "v_proj" in name]:
        del values[name]


def _embedding_with_bias(_: dict[str, Any], values: lw.Tensors) -> None:
    end = "base_model.model.model.embed_tokens"
    values[f"{end}.lora_embedding_A"] = np.ones((4, 512), np.float32)
    values[f"{end}.lora_embedding_B"] = np.ones((64, 4), np.float32)
    values[f"{end}.bias"] = np.ones(64, np.float32)


def _two_names(_: dict[str, Any], values: lw.Tensors) -> None:
    for name in list(values):
        values[name.replace("model.layers", "model.language_model.layers", 1)] = values[name]


def _large_bias(config: dict[str, Any], values: lw.Tensors) -> None:
    config.update(lora_bias=True)
    for name in [name for name in values if name.endswith("lora_B.weight")]:
        values[name.replace("weight", "bias")] = np.full(len(values[name]), 3e38, np.float32)


def _pooled(config: dict[str, Any], values: lw.Tensors) -> None:
    config.update(use_qalora=True, qalora_group_size=1024, r=65536)
    values[f"{Q0}.lora_A.weight"] = np.zeros((65536, 16), np.float32)
    values[f"{Q0}.lora_B.weight"] = np.zeros((64, 65536), np.float32)


def _invoked_bias(config: dict[str, Any], values: lw.Tensors) -> None:
    config.update(alora_invocation_tokens=[1, 2], lora_bias=True)
    for name in [name for name in values if name.endswith("lora_B.weight")]:
        values[name.replace("weight", "bias")] = np.ones(len(values[name]), np.float32)


def _invoked_head(config: dict[str, Any], values: lw.Tensors) -> None:
    config.update(alora_invocation_tokens=[1, 2], modules_to_save=["lm_head"])
    values["base_model.model.lm_head.weight"] = np.ones((512, 64), np.float32)


REFUSED: dict[str, tuple[Change, str]] = {
    "another method": (_set(peft_type="IA3"), "peft_type"),
    "no method": (lambda config, _: config.pop("peft_type") and None, "peft_type"),
    "invocation tokens that are no ids": (_set(alora_invocation_tokens=[1, -2]), "alora_invocation_tokens"),
    "an invocation that is a text": (_set(alora_invocation_tokens="<q>"), "alora_invocation_tokens"),
    "an invoked adapter with biases": (_invoked_bias, "alora_invocation_tokens"),
    "an invoked adapter with whole tensors": (_invoked_head, "alora_invocation_tokens"),
    "parameters": (_set(target_parameters=["x"]), "target_parameters"),
    "repeated layers": (_set(layer_replication=[[0, 4]]), "layer_replication"),
    "megatron": (_set(megatron_config={"a": 1}), "megatron_config"),
    "an unknown setting": (_set(use_new_idea=True), "use_new_idea"),
    "block diagonal": (_set(use_bdlora={"nblocks": 2}), "use_bdlora"),
    **{
        f"begun by {start}": (_set(init_lora_weights=start), "init_lora_weights")
        for start in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", 5)
    },
    "a rank of 0": (_set(r=0), "r: expected"),
    "a rank that is a text": (_set(r="4"), "r: expected"),
    "another rank": (_set(r=8), "expected the rank 8"),
    "an infinite alpha": (_set(lora_alpha=float("inf")), "lora_alpha"),
    "a flag that is a number": (_set(use_rslora=1), "use_rslora"),
    "a bad bias": (_set(bias="some"), "bias"),
    "a slow pattern": (_set(rank_pattern={"(a+)+": 4}), "rank_pattern"),
    "many repeats": (_set(alpha_pattern={".*.*.*.*x": 4}), "alpha_pattern"),
    "a broken pattern": (_set(alpha_pattern={"[": 4}), "alpha_pattern"),
    "patterns that are a list": (_set(alpha_pattern=["q_proj"]), "alpha_pattern"),
    "DoRA without magnitudes": (_set(use_dora=True), "lora_magnitude_vector"),
    "DoRA with biases": (_set(use_dora=True, lora_bias=True), "lora_bias"),
    "magnitudes without DoRA": (_put(f"{Q0}.lora_magnitude_vector", 64), "lora_magnitude_vector"),
    "a bias of B not asked for": (_put(f"{Q0}.lora_B.bias", 64), "lora_B.bias"),
    "a bias of A": (_put(f"{Q0}.lora_A.bias", 4), "lora_A.bias"),
    "no B": (_drop(f"{Q0}.lora_B.weight"), "expected lora_B"),
    "no A": (_drop(f"{Q0}.lora_A.weight"), "expected lora_A"),
    "B of another rank": (_put(f"{Q0}.lora_B.weight", 64, 5), "expected B with 4 columns"),
    "a flat A": (_put(f"{Q0}.lora_A.weight", 256), "expected A as a matrix"),
    "infinite values": (_infinite, "expected finite values"),
    "no prefix": (_rename(f"{Q0}.lora_A.weight", "x.lora_A.weight"), "base_model.model."),
    "an unknown module": (_put("base_model.model.score.lora_A.weight", 4, 64), "score"),
    "an unknown tensor": (_put(f"{Q0}.lora_C.weight", 4, 64), "lora_C"),
    "two adapters": (_put(f"{Q0}.lora_A.other.weight", 4, 64), "of one adapter"),
    "a norm not asked for": (_put("base_model.model.model.norm.weight", 64), "modules_to_save"),
    "saved modules that are missing": (_set(modules_to_save=["lm_head"]), "modules_to_save"),
    "a target that is missing": (_set(target_modules=["q_proj", "k_proj"]), "k_proj"),
    "a layer that is missing": (_set(layers_to_transform=[7]), "layer 7"),
    "tokens that are missing": (_set(trainable_token_indices=[1]), "trainable_token_indices"),
    "a tensor of three dimensions": (
        _put("base_model.model.model.embed_tokens.weight", 8, 64, 64),
        "dimensions",
    ),
    "alternatives that take long": (_set(rank_pattern={"(.|.)" * 30 + "!": 4}), "simple patterns"),
    "options that take long": (_set(alpha_pattern={".?" * 30 + "!": 4}), "simple patterns"),
    "repetitions that take long": (_set(rank_pattern={".*.*.*.*!": 4}), "simple patterns"),
    "a large group": (
        _set(use_qalora=True, qalora_group_size=2000),
        "qalora_group_size: expected at most 1024",
    ),
    "patterns that take long together": (
        _set(rank_pattern={".?" * 18 + f"{i}!": 4 for i in range(5)}),
        "simple patterns",
    ),
    "a class that seems to end early": (
        _set(rank_pattern={r"[a-z.\][].*.*.*.*.*.*.*.*!]": 4}),
        "simple patterns",
    ),
    "a long way to begin": (_set(init_lora_weights="x" * 10000), "init_lora_weights"),
    "biases of B that are missing": (_set(lora_bias=True), "expected lora_B.bias"),
    "biases too large once scaled": (_large_bias, "lora_B.bias, scaled: expected finite values"),
    "a module that is missing in a layer": (_drop_one, "expected tensors of 'v_proj' in layer 1"),
    "a bias of an embedding": (_embedding_with_bias, "no bias of an embedding"),
    "two names for a module": (_two_names, "expected one change of this tensor"),
    "little that becomes much": (_pooled, "qalora_group_size: expected at most 536870912 values"),
    "a name of two lines": (
        _put("base_model.model.a\n\x1b[31m.weight", 4),
        r"base_model.model.a\n\x1b[31m.weight",
    ),
    "a name that does not end": (
        _put("base_model.model." + "x" * 100000, 0),
        "expected dimensions of 1 or more",
    ),
    "no tensors": (lambda _, values: values.clear(), "expected tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    with pytest.raises(ModelFileError, match="^" + str(tmp_path)) as refused:
        Adapter.load(written(tmp_path / "a", change))
    assert words in str(refused.value)
    said = str(refused.value).replace(str(tmp_path), "")
    assert "\n" not in said and len(said) < 530


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
def test_ways_to_begin_that_keep_the_base_are_read(tmp_path: Path, start: object) -> None:
    assert Adapter.load(written(tmp_path / "a", _set(init_lora_weights=start))).rank == 4


def test_what_is_no_adapter_is_said(tmp_path: Path, stories_model_bin: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text(json.dumps(lw.settings()))
    for path, words in (
        (tmp_path / "nowhere", "no such file"),
        (tmp_path / "empty", "a folder without it"),
        (stories_model_bin, "another file"),
        (tmp_path / "half", "found neither"),
    ):
        with pytest.raises(ModelFileError, match=words):
            Adapter.load(path)


def test_a_model_is_not_an_adapter(tmp_path: Path) -> None:
    path = gguf_writer.write_llama(tmp_path / "m.gguf", gguf_writer.TinyLlama(), tokenizer="bpe")
    with pytest.raises(UnsupportedError, match=r"general\.type: expected 'adapter'"):
        Adapter.load(path)


GGUF_KEYS = {
    "general.type": "adapter",
    "general.architecture": "llama",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}


def gguf_adapter(path: Path, keys: dict[str, Any], names: tuple[str, ...]) -> Path:
    """An adapter of rank 2 whose tensors have these names, all with 64 columns or rows."""
    shapes = {name: (2, 64) if name.endswith("a") else (64, 2) for name in names}
    ones = {
        name: gguf_writer.float_bytes("F32", np.ones(shape, np.float32)) for name, shape in shapes.items()
    }
    made = [gguf_writer.Tensor(name, "F32", *shapes[name], data) for name, data in ones.items()]
    return gguf_writer.write_gguf(path, GGUF_KEYS | keys, made)


PAIR = ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b")


@pytest.mark.parametrize(("alpha", "scaling"), [(8.0, 4.0), (0.0, 1.0), (-3.0, -1.5)])
def test_scaling_of_gguf_is_alpha_over_rank(tmp_path: Path, alpha: float, scaling: float) -> None:
    path = gguf_adapter(tmp_path / "a.gguf", {"adapter.lora.alpha": alpha}, PAIR)
    (change,) = Adapter.load(path).source.changes
    assert (change.role, change.layer, change.rank, change.scaling) == ("q", 0, 2, scaling)


@pytest.mark.parametrize(
    ("keys", "names", "words"),
    [
        ({"adapter.type": "vera"}, PAIR, "adapter.type"),
        ({"general.architecture": "gpt2"}, PAIR, "general.architecture"),
        ({"adapter.alora.invocation_tokens": "<q>"}, PAIR, "adapter.alora.invocation_tokens"),
        ({"adapter.lora.alpha": float("nan")}, PAIR, "adapter.lora.alpha"),
        ({"adapter.lora.alpha": "8"}, PAIR, "adapter.lora.alpha"),
        ({}, PAIR[:1], "expected blk.0.attn_q.weight.lora_b"),
        ({}, ("blk.0.attn_norm.weight.lora_a", "blk.0.attn_norm.weight.lora_b"), "attn_norm"),
        ({}, ("blk.0.ssm.weight.lora_a", "blk.0.ssm.weight.lora_b"), "ssm"),
        ({}, (*PAIR, "output_norm.weight"), "output_norm.weight"),
        ({}, (), "expected tensors"),
    ],
)
def test_gguf_adapters_are_honoured_or_refused(
    tmp_path: Path, keys: dict[str, Any], names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ModelFileError) as refused:
        Adapter.load(gguf_adapter(tmp_path / "a.gguf", keys, names))
    assert words in str(refused.value)


def test_an_adapter_of_another_family_is_refused(tmp_path: Path, stories: Model) -> None:
    path = gguf_adapter(tmp_path / "a.gguf", {"general.architecture": "qwen2"}, PAIR)
    with pytest.raises(
        ModelFileError, match=r"^adapter a: general\.architecture: expected llama .* found qwen2$"
    ):
        stories.add_adapter(path)


def test_a_folder_is_called_as_it_is(tmp_path: Path) -> None:
    assert Adapter.load(lw.plain(tmp_path / "lr-0.1")).name == "lr-0.1"


# Files that are cut or hostile


@pytest.mark.parametrize("kind", ["safetensors", "bin", "gguf"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    folder = lw.plain(tmp_path / "a", layers=5)
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    if kind == "bin":
        path.unlink()
        path, whole = folder / "adapter_model.bin", lw.torch_bin(lw.tensors())
    if kind == "gguf":
        folder = path = tmp_path / "a.gguf"
        whole = (FOLDER / "plain.gguf").read_bytes()
    for part in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(ModelFileError):
            Adapter.load(folder)


def bin_adapter(folder: Path, raw: bytes) -> Path:
    """An adapter whose weights are these bytes."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(lw.settings()))
    (folder / "adapter_model.bin").write_bytes(raw)
    return folder


class Runs:
    """A pickle of this runs a command when it is read."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "it ran"
    for i, bomb in enumerate(
        (
            Runs(os.system, f"touch '{mark}'"),
            Runs(eval, f"open({str(mark)!r}, 'w')"),
            Runs(os.mkdir, str(mark)),
        )
    ):
        raw = lw.archive(pickle.dumps({"a": bomb}, protocol), [])
        with pytest.raises(UnsupportedError, match="expected only tensors"):
            Adapter.load(bin_adapter(tmp_path / f"{protocol}{i}", raw))
    assert not mark.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_numpy\n.",
        b"ctorch._utils\n__builtins__\n.",
        b"\x80\x04\x8c\x05torch\x8c\x15FloatStorage.__init__\x93.",
        b"\x80\x02ctorch\nload\n.",
        b"(i__builtin__\nexec\n.",
    ],
)
def test_only_the_names_of_tensors_are_known(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(UnsupportedError, match="expected only tensors"):
        Adapter.load(bin_adapter(tmp_path / "a", lw.archive(pickled, [])))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (4, 10**9)}, {"shape": (2**40, 2**40)}, {"shape": (10**6,), "strides": (0,)}, {"shape": (-1, 4)},
        {"strides": (1 << 40, 1)}, {"strides": (-1, 1)}, {"offset": 10**12}, {"offset": -1}, {"count": 1 << 50},
        {"count": -1}, {"shape": (0, 4)}, {"shape": ()}, {"shape": (4,)},
    ],
)  # fmt: skip
def test_tensors_stay_within_their_storage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    values = {f"{Q0}.lora_A.weight": np.ones((4, 64), np.float32)}
    raw = lw.archive(lw.state_pickle(values, **wrong), [values[f"{Q0}.lora_A.weight"].tobytes()])
    with pytest.raises(ModelFileError):
        Adapter.load(bin_adapter(tmp_path / "a", raw))


def test_a_memo_of_billions_costs_nothing(tmp_path: Path) -> None:
    pickled = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    with pytest.raises(ModelFileError, match="expected tensors, found none"):
        Adapter.load(bin_adapter(tmp_path / "a", lw.archive(pickled, [])))


_STATE = b"\x80\x02}(X\x07\x00\x00\x00strides(J\x00\x00\x00\x80K\x00tu"
"""A dictionary with strides."""
HOSTILE_PICKLES = {
    "a storage type that is changed": b"\x80\x02ctorch\nHalfStorage\n}(X\x06\x00\x00\x00sourceX\x04\x00\x00\x00BF16ub.",
    "a class that is changed": b"\x80\x02ccollections\nOrderedDict\nN}(X\x05\x00\x00\x00itemsK\x01u\x86b.",
    "a tuple that is nested deep": b"\x80\x02}()" + b"\x85" * 10**5 + b"K\x01u.",
    "a key that doubles itself": b"\x80\x02}()" + b"q\x00h\x00\x86" * 60 + b"K\x01u.",
    "keys that collide": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(10**4))
    + b"u.",
    "a list that doubles itself": b"\x80\x02]" + b"q\x00]h\x00ah\x00a" * 60 + b".",
    "a number of a megabyte": b"\x80\x02\x8b\x40\x42\x0f\x00" + bytes(10**6 - 1) + b"\x01.",
    "room that is claimed": b"\x80\x05\x96" + (10**11).to_bytes(8, "little") + b".",
    "a call without arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a dictionary made of a dictionary": b"\x80\x02ccollections\nOrderedDict\n" + _STATE + b"\x85R.",
    "too little on the stack": b"\x80\x02R.",
    "operations without end": b"\x80\x02N" + b"\x94" * 2**21 + b".",
}


@pytest.mark.parametrize("pickled", HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES)
def test_hostile_pickles_are_refused_at_once(tmp_path: Path, pickled: bytes) -> None:
    start = time.process_time()
    with pytest.raises(
        ModelFileError, match=r"expected (only tensors|.* pickle|.* names|an OrderedDict|a tensor)"
    ):
        Adapter.load(bin_adapter(tmp_path / "a", lw.archive(pickled, [])))
    assert time.process_time() - start < 20


def test_a_tensor_cannot_be_changed_once_checked(tmp_path: Path) -> None:
    values = {f"{Q0}.lora_A.weight": np.ones((4, 64), np.float32)}
    pickled = lw.state_pickle(values).removesuffix(b"u.") + _STATE[2:] + b"bu."
    with pytest.raises(UnsupportedError, match="changes something else"):
        Adapter.load(bin_adapter(tmp_path / "a", lw.archive(pickled, [bytes(1024)])))


def test_tensors_that_share_a_storage_many_times_are_refused(tmp_path: Path) -> None:
    values = {
        f"{lw.module(layer, 'q_proj')}.lora_A.weight": np.ones((4, 64), np.float32) for layer in range(99)
    }
    pickled = re.sub(rb"X[\x01\x02]\x00\x00\x00\d{1,2}X", b"X\x01\x00\x00\x000X", lw.state_pickle(values))
    with pytest.raises(
        ModelFileError, match=r"at most 4 times the 1024 bytes that are stored, found 101376 bytes"
    ):
        Adapter.load(bin_adapter(tmp_path / "a", lw.archive(pickled, [bytes(1024)])))


def test_storages_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many entries of an archive's directory that name the same bytes."""
    values = {
        f"{lw.module(layer, 'q_proj')}.lora_A.weight": np.ones((4, 64), np.float32) for layer in range(9)
    }
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as made:
        made.writestr("model/data.pkl", lw.state_pickle(values))
        made.writestr("model/data/0", bytes(1024))
        for key in range(1, 9):
            entry = copy.copy(made.getinfo("model/data/0"))
            entry.filename = f"model/data/{key}"
            made.filelist.append(entry)
    with pytest.raises(
        ModelFileError, match=r"expected storages beside one another in \d+ bytes, found some that"
    ):
        read_torch(tmp_path / "a.bin")


def test_directories_without_end_are_refused(tmp_path: Path) -> None:
    """An archive's end that calls all of a file its directory, and more entries than a model has."""
    with open(tmp_path / "a.bin", "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(1 << 30)
        file.seek(1 << 30)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 1 << 30, 0, 0))
    with pytest.raises(
        ModelFileError, match=r"expected a directory of at most \d+ bytes, found a larger one"
    ):
        read_torch(tmp_path / "a.bin")
    with zipfile.ZipFile(tmp_path / "b.bin", "w") as made:
        made.writestr("model/data.pkl", b"")
        made.filelist += [made.filelist[0]] * (1 << 16)
    with pytest.raises(ModelFileError, match="expected at most 65536 entries, found 65537"):
        read_torch(tmp_path / "b.bin")


def _of_ones(layers: range) -> lw.Tensors:
    return {
        f"{lw.module(layer, 'q_proj')}.lora_{part}.weight": np.ones((1, 1), np.float32)
        for layer in layers
        for part in "AB"
    }


def test_patterns_are_measured_by_the_modules_that_they_are_tried_on(tmp_path: Path) -> None:
    slow = {".?" * 18 + "!": 4}
    start = time.process_time()
    with pytest.raises(UnsupportedError, match="expected simple patterns for 1000 modules"):
        Adapter.load(lw.write(tmp_path / "a", lw.settings(r=1, rank_pattern=slow), _of_ones(range(1000))))
    assert time.process_time() - start < 20


def test_layers_that_no_model_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not part of the supported architecture"):
        Adapter.load(lw.write(tmp_path / "a", lw.settings(r=1), _of_ones(range(1024, 1025))))


def test_notes_on_the_dictionary_are_passed_over(tmp_path: Path) -> None:
    values = lw.tensors()
    pickled = lw.state_pickle(values).removesuffix(b".") + b"}X\x09\x00\x00\x00_metadata}sb."
    storages = [array.tobytes() for array in values.values()]
    found = Adapter.load(bin_adapter(tmp_path / "a", lw.archive(pickled, storages)))
    assert found.bytes == Adapter.load(lw.plain(tmp_path / "b")).bytes


def test_archives_with_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    raw = bytearray(lw.torch_bin(lw.tensors()))
    at = raw.rindex(b"model/data/0")
    raw[at : at + 2] = b"\xff\xfe"
    raw[raw.rindex(b"PK\x01\x02", 0, at) + 9] |= 8  # names are UTF-8
    with pytest.raises(ModelFileError, match="expected a whole zip archive"):
        Adapter.load(bin_adapter(tmp_path / "a", bytes(raw)))


def test_compressed_and_old_archives_are_refused(tmp_path: Path) -> None:
    packed = lw.archive(b"}.", [bytes(1 << 20)], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedError, match="compressed"):
        Adapter.load(bin_adapter(tmp_path / "packed", packed))
    with pytest.raises(UnsupportedError, match="zip archive"):
        Adapter.load(bin_adapter(tmp_path / "old", pickle.dumps({})))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_pickles_never_do_more_than_fail(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    values = {f"{Q0}.lora_A.weight": np.ones((4, 64), np.float32)}
    pickled = bytearray(lw.state_pickle(values))
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    raw = lw.archive(bytes(pickled), [bytes(1024)])
    with pytest.raises(PyinferError):  # one factor alone is never an adapter
        Adapter.load(bin_adapter(tmp_path_factory.mktemp("bin") / "a", raw))


def test_deep_json_is_refused(tmp_path: Path) -> None:
    folder = lw.plain(tmp_path / "a")
    (folder / "adapter_config.json").write_text('{"r":' + "[" * 100_000)
    with pytest.raises(ModelFileError, match="expected JSON"):
        Adapter.load(folder)


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    folder = lw.plain(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match="regular file"):
        Adapter.load(folder)


# Whether it fits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_put(f"{Q0}.lora_A.weight", 4, 65), "expected A with 64 columns, found 65"),
        (_put(f"{Q0}.lora_B.weight", 63, 4), "expected B with 64 rows, found 63"),
        (_drop_layer, "found none in layer 4"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, stories: Model, change: Change, words: str
) -> None:
    with pytest.raises(ModelFileError, match=words):
        stories.logits([1, 2], adapters=[written(tmp_path / "a", change)])


def test_layers_beyond_the_model_are_refused(tmp_path: Path, stories: Model) -> None:
    with pytest.raises(ModelFileError, match=r"adapter a: .*expected a layer below 5, found 5"):
        stories.logits([1, 2], adapters=[lw.plain(tmp_path / "a", layers=7)])


def test_a_larger_vocabulary_is_refused(tmp_path: Path, stories: Model) -> None:
    def grown(config: dict[str, Any], values: lw.Tensors) -> None:
        config["modules_to_save"] = ["embed_tokens"]
        values["base_model.model.model.embed_tokens.weight"] = np.ones((520, 64), np.float32)

    with pytest.raises(UnsupportedError, match="larger vocabulary"):
        stories.logits([1, 2], adapters=[written(tmp_path / "a", grown)])


def test_reading_needs_no_torch() -> None:
    assert "torch" not in sys.modules
