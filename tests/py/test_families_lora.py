"""Adapters on families that differ from LLaMA, against the same changes made in the weights of a checkpoint by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import family_golden
import lora_writer
from pyinfer import _core, convert, merging
from pyinfer.adapters import Adapter
from pyinfer.convert.checkpoint import Spec
from pyinfer.errors import ModelFileError, UnsupportedError
from pyinfer.export import export
from pyinfer.stack import Stack, base_reader, stacked
from reference import lora
from reference.llama import kl

RANK, ALPHA = 4, 8.0
SAME = 1e-7  # of two ways to compute the same, with keys and values as halves
SELF = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
Arrays = dict[str, NDArray[np.float32]]


def weights_of(name: str) -> Arrays:
    stored = lora.safetensors(family_golden.FOLDER / name / "model.safetensors")
    return {key: values.astype(np.float32) for key, values in stored.items()}


def changes(weights: Arrays, modules: Sequence[str], seed: int = 3) -> tuple[Arrays, Arrays]:
    """A and B for each module with such a name, as PEFT stores them, and the weights with their product in them."""
    rng, factors, merged = np.random.default_rng(seed), {}, dict(weights)
    for key, values in weights.items():
        stem = key.removesuffix(".weight")
        if stem.rpartition(".")[2] not in modules or values.ndim != 2:
            continue
        a = rng.normal(0, 0.2, (RANK, values.shape[1])).astype(np.float32)
        b = rng.normal(0, 0.2, (values.shape[0], RANK)).astype(np.float32)
        factors[f"base_model.model.{stem}.lora_A.weight"] = a
        factors[f"base_model.model.{stem}.lora_B.weight"] = b
        merged[key] = values + np.float32(ALPHA / RANK) * (b @ a)
    return factors, merged


def settings(modules: Sequence[str], **more: Any) -> dict[str, Any]:
    return lora_writer.settings(r=RANK, lora_alpha=ALPHA, target_modules=list(modules), **more)


def folder_of(name: str, weights: Arrays, path: Path, **changed: Any) -> Path:
    shutil.copytree(family_golden.FOLDER / name, path)
    (path / "config.json").write_text(json.dumps(family_golden.config(name) | changed), encoding="utf-8")
    save_file(weights, path / "model.safetensors")
    return path


def stack_of(adapter: Path, model: Path) -> Stack:
    file = _core.ModelFile(str(model))
    return stacked(((Adapter.load(adapter), 1.0),), Spec(**file.spec), base_reader(file))


def logits(model: Path, tokens: NDArray[np.int32], adapter: Path | None = None) -> NDArray[np.float32]:
    engine = _core.Engine(_core.ModelFile(str(model)), 2, "f32")
    session = _core.Session(engine, len(tokens))
    if adapter:
        session.adapters = stack_of(adapter, model).packed(engine)
    return session.eval(tokens, "all")


def assert_same(name: str, adapter: Path, merged: Path, tmp_path: Path) -> Path:
    """The base with the adapter attached is the model with the change in its weights, and not the base."""
    *_, text = family_golden.texts(name)
    convert.convert(family_golden.FOLDER / name, tmp_path / "base.bin", weights="f32")
    convert.convert(merged, tmp_path / "merged.bin", weights="f32")
    expected = logits(tmp_path / "merged.bin", text.tokens).astype(np.float64)
    assert kl(expected, logits(tmp_path / "base.bin", text.tokens, adapter)).mean() <= SAME
    assert kl(expected, logits(tmp_path / "base.bin", text.tokens)).mean() > 1e-3
    return tmp_path / "base.bin"


@pytest.mark.parametrize(
    "name,modules",
    [
        ("phi3", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
        ("phi3", ("qkv_proj",)),
        ("qwen2", (*SELF, *MLP)),
        ("qwen3", (*SELF, *MLP)),
        ("mistral", SELF),
        ("gemma2", (*SELF, *MLP)),
        ("gemma3", (*SELF, *MLP)),
        ("smollm3", (*SELF, *MLP)),
    ],
)
def test_linears(name: str, modules: Sequence[str], tmp_path: Path) -> None:
    factors, merged = changes(weights_of(name), modules)
    adapter = lora_writer.write(tmp_path / "adapter", settings(modules), factors)
    assert_same(name, adapter, folder_of(name, merged, tmp_path / "merged"), tmp_path)


@pytest.mark.parametrize(
    "name,module", [("phi3", "qkv_proj"), ("qwen2", "q_proj"), ("llama_linear", "o_proj")]
)
def test_dora_leaves_biases_alone(name: str, module: str, tmp_path: Path) -> None:
    """Each row of W + BA gets a length of its own, whatever matrix it belongs to; a bias is no part of it."""
    weights = weights_of(name)
    factors, merged = changes(weights, (module,))
    rng = np.random.default_rng(5)
    for key in weights:
        if key.endswith(f"{module}.weight"):
            lengths = np.sqrt(np.square(merged[key]).sum(1))
            magnitude = (lengths * rng.uniform(0.7, 1.4, len(lengths))).astype(np.float32)
            factors[f"base_model.model.{key.removesuffix('.weight')}.lora_magnitude_vector"] = magnitude
            merged[key] = merged[key] * (magnitude / lengths)[:, None]
    adapter = lora_writer.write(tmp_path / "adapter", settings((module,), use_dora=True), factors)
    assert_same(name, adapter, folder_of(name, merged, tmp_path / "merged"), tmp_path)


def test_a_trained_bias_takes_the_place_of_the_layers_own(tmp_path: Path) -> None:
    weights, modules = weights_of("qwen2"), ("q_proj", "k_proj", "o_proj")
    factors, merged = changes(weights, modules)
    rng = np.random.default_rng(6)
    for key, values in weights.items():
        if key.endswith(("q_proj.bias", "v_proj.bias")):
            merged[key] = values + rng.normal(0, 0.5, values.shape).astype(np.float32)
            inner = key.replace(".bias", ".base_layer.bias") if "q_proj" in key else key
            factors[f"base_model.model.{inner}"] = merged[key]
    adapter = lora_writer.write(tmp_path / "adapter", settings(modules, bias="all"), factors)
    assert_same("qwen2", adapter, folder_of("qwen2", merged, tmp_path / "merged"), tmp_path)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_embeddings_are_scaled_after_their_change(name: str, tmp_path: Path) -> None:
    weights, rng = weights_of(name), np.random.default_rng(7)
    embedding = weights["model.embed_tokens.weight"]
    a = rng.normal(0, 0.3, (RANK, len(embedding))).astype(np.float32)
    b = rng.normal(0, 0.3, (embedding.shape[1], RANK)).astype(np.float32)
    prefix = "base_model.model.model.embed_tokens"
    factors = {f"{prefix}.lora_embedding_A": a, f"{prefix}.lora_embedding_B": b}
    changed = embedding + np.float32(ALPHA / RANK) * (b @ a).T
    merged = weights | {"model.embed_tokens.weight": changed, "lm_head.weight": embedding}
    adapter = lora_writer.write(tmp_path / "adapter", settings(("embed_tokens",)), factors)
    folder = folder_of(name, merged, tmp_path / "merged", tie_word_embeddings=False)
    assert_same(name, adapter, folder, tmp_path)


def test_norms_of_heads_may_be_replaced(tmp_path: Path) -> None:
    weights, modules = weights_of("qwen3"), ("q_proj",)
    factors, merged = changes(weights, modules)
    for key, values in weights.items():
        if key.endswith("q_norm.weight"):
            merged[key] = factors[f"base_model.model.{key}"] = values * np.float32(1.5)
    config = settings(modules, modules_to_save=["q_norm"])
    adapter = lora_writer.write(tmp_path / "adapter", config, factors)
    assert_same("qwen3", adapter, folder_of("qwen3", merged, tmp_path / "merged"), tmp_path)


@pytest.mark.parametrize("from_model_bin", [False, True])
def test_merging_into_a_family_with_fused_modules(from_model_bin: bool, tmp_path: Path) -> None:
    modules = ("qkv_proj", "gate_up_proj")
    factors, merged = changes(weights_of("phi3"), modules)
    adapter = lora_writer.write(tmp_path / "adapter", settings(modules), factors)
    folder = folder_of("phi3", merged, tmp_path / "merged")
    convert.convert(folder, tmp_path / "merged.bin", weights="f32")
    weighted = ((Adapter.load(adapter), 1.0),)
    source, weights = family_golden.FOLDER / "phi3", "f32"
    if from_model_bin:
        convert.convert(source, tmp_path / "base.bin", weights="f32")
        source, weights = tmp_path / "base.bin", None
    merging.convert_merged(source, tmp_path / "ours.bin", weighted, weights=weights)
    *_, text = family_golden.texts("phi3")
    expected = logits(tmp_path / "merged.bin", text.tokens).astype(np.float64)
    assert kl(expected, logits(tmp_path / "ours.bin", text.tokens)).mean() <= SAME


# What would be silently wrong is refused by name


def refused(name: str, adapter: Path, tmp_path: Path) -> str:
    convert.convert(family_golden.FOLDER / name, tmp_path / "base.bin", weights="f32")
    with pytest.raises(ModelFileError) as caught:
        stack_of(adapter, tmp_path / "base.bin")
    return str(caught.value)


@pytest.mark.parametrize("saved", ["norm", "input_layernorm", "post_attention_layernorm"])
def test_norms_that_are_held_as_one_more(saved: str, tmp_path: Path) -> None:
    weights = weights_of("gemma2")
    factors, _ = changes(weights, ("q_proj",))
    factors |= {
        f"base_model.model.{key}": values
        for key, values in weights.items()
        if key.endswith(f".{saved}.weight")
    }
    adapter = lora_writer.write(tmp_path / "adapter", settings(("q_proj",), modules_to_save=[saved]), factors)
    assert "1 + w" in refused("gemma2", adapter, tmp_path)


def test_tensors_that_the_model_has_not(tmp_path: Path) -> None:
    factors, _ = changes(weights_of("qwen2"), ("q_proj",))
    factors["base_model.model.model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    adapter = lora_writer.write(
        tmp_path / "adapter", settings(("q_proj",), modules_to_save=["q_norm"]), factors
    )
    assert "q_norm" in refused("qwen2", adapter, tmp_path)


def test_fused_modules_of_another_shape_and_whole_ones(tmp_path: Path) -> None:
    factors, _ = changes(weights_of("phi3"), ("qkv_proj",))
    adapter = lora_writer.write(tmp_path / "adapter", settings(("qkv_proj",)), factors)
    assert "qkv_proj: expected B with" in refused("qwen3", adapter, tmp_path)
    weights = {
        f"base_model.model.{key}": values for key, values in weights_of("phi3").items() if "qkv_proj" in key
    }
    more, _ = changes(weights_of("phi3"), ("o_proj",))
    config = settings(("o_proj",), modules_to_save=["qkv_proj"])
    whole = lora_writer.write(tmp_path / "whole", config, more | weights)
    assert "expected a change of this module" in refused("phi3", whole, tmp_path)


def test_fused_modules_are_not_exported(tmp_path: Path) -> None:
    factors, _ = changes(weights_of("phi3"), ("qkv_proj",))
    adapter = lora_writer.write(tmp_path / "adapter", settings(("qkv_proj",)), factors)
    convert.convert(family_golden.FOLDER / "phi3", tmp_path / "base.bin", weights="f32")
    with pytest.raises(UnsupportedError, match="stands in one module with others"):
        export(stack_of(adapter, tmp_path / "base.bin"), tmp_path / "exported")
