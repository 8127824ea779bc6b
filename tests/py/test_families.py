"""Every family against `transformers`, from Hugging Face folders and from GGUF files; and the same bits however
computed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import family_golden
from family_golden import ARCHITECTURES, FOLDER, NAMES
from probing import ISAS, probe_logits
from pyinfer import _core, convert
from reference import llama, model_bin
from reference.llama import Rounding, kl

MOST_KL = 1e-6  # mean over positions, rounding of the cache to halves included
TYPICAL_KL = 1e-8  # of a position at which nothing falls between two integers
INT8 = {
    "f16": Rounding(int8_activations=True, f16_cache=True),
    "i16": Rounding(int8_activations=True, i16_cache=True),
}
Converted = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """(family, source) -> model.bin with float weights: `huggingface` in f32 or f16, or `gguf`."""

    @cache
    def made(name: str, source: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        if source == "gguf":
            convert.convert(family_golden.write(name, folder / "model.gguf"), folder / "model.bin")
        else:
            convert.convert(FOLDER / name, folder / "model.bin", weights=source.removeprefix("huggingface "))
        return folder / "model.bin"

    return made


def logits(path: Path, tokens: NDArray[np.int32], chunk: int = 512) -> NDArray[np.float32]:
    engine = _core.Engine(_core.ModelFile(str(path)), 2, "f32")
    return _core.Session(engine, len(tokens)).eval(tokens, "all", chunk)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, converted: Converted) -> None:
    for text in family_golden.texts(name):
        ours = logits(converted(name, "huggingface f32"), text.tokens)[text.positions]
        assert kl(text.logits.astype(np.float64), ours).mean() <= MOST_KL


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gguf_files_give_the_same_logits(name: str, converted: Converted) -> None:
    for text in family_golden.texts(name):
        ours = logits(converted(name, "gguf"), text.tokens)
        assert kl(text.logits.astype(np.float64), ours[text.positions]).mean() <= MOST_KL
        from_folder = logits(converted(name, "huggingface f16"), text.tokens)
        if name == "llama":  # factors of frequencies are rounded to float32 there
            assert kl(from_folder.astype(np.float64), ours).max() <= MOST_KL
        else:
            assert np.array_equal(ours.view(np.uint32), from_folder.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kv", ["f16", "i16"])
def test_int8_activations_meet_the_reference(
    name: str, kv: Literal["f16", "i16"], converted: Converted
) -> None:
    """The reference quantises too; short texts, of which most have no value that falls between two integers."""
    path = converted(name, "huggingface q8")
    weights = llama.from_model_bin(model_bin.read(path))
    engine, off = _core.Engine(_core.ModelFile(str(path)), 2, "int8"), []
    for seed in range(12):
        ids = np.random.default_rng(seed).integers(0, 264, 3).astype(np.int32)
        simulated = llama.logits(weights, [int(i) for i in ids], INT8[kv])
        off.append(kl(simulated, _core.Session(engine, len(ids), kv).eval(ids, "all")).max())
    assert np.quantile(off, 0.25) <= TYPICAL_KL  # wrong arithmetic would show in every text


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_meets_transformers(name: str, converted: Converted) -> None:
    text = next(family_golden.texts(name))  # the shortest, which no other frequencies are for
    weights = llama.from_model_bin(model_bin.read(converted(name, "huggingface f32")))
    exact = llama.logits(weights, [int(i) for i in text.tokens])
    assert kl(exact[text.positions], text.logits).max() <= TYPICAL_KL


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral", "phi3", "qwen2"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_bits_do_not_depend_on_threads_or_chunks(
    name: str, isa: str, activations: str, converted: Converted, tmp_path: Path
) -> None:
    *_, text = family_golden.texts(name)
    path = converted(name, "huggingface q8")
    answer = probe_logits(path, [int(i) for i in text.tokens], tmp_path, isa, activations)
    assert answer.isa == isa and np.isfinite(answer.logits).all()
    assert len(set(answer.digests.values())) == 1


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "qwen2"])
def test_bits_do_not_depend_on_neighbours(name: str, converted: Converted) -> None:
    *_, text = family_golden.texts(name)
    engine = _core.Engine(_core.ModelFile(str(converted(name, "huggingface q8"))), 2)
    alone = _core.Session(engine, 100).eval(text.tokens, "all")
    mine, other = _core.Session(engine, 100), _core.Session(engine, 100)
    got = []
    for at in range(0, 100, 20):
        rest = text.tokens[::-1][at : at + 13].copy()
        items = [(other, rest, "none"), (mine, text.tokens[at : at + 20].copy(), "all")]
        got.append(_core.forward(engine, items)[1])  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate(got).view(np.uint32), alone.view(np.uint32))


# A golden file that does not notice a setting proves nothing about it

SETTINGS: dict[str, list[dict[str, object]]] = {
    "llama": [{"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}],
    "llama_linear": [{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}],
    "llama_yarn": [
        {"rope_parameters": family_golden.config("llama_yarn")["rope_parameters"] | {"attention_factor": 1.0}},
        {"rope_parameters": family_golden.config("llama_yarn")["rope_parameters"] | {"beta_fast": 32.0}},
        {"rope_parameters": family_golden.config("llama_yarn")["rope_parameters"] | {"beta_slow": 1.0}},
    ],
    "mistral": [{"sliding_window": None}, {"sliding_window": 20}, {"sliding_window": 22}],
    "qwen2_windows": [{"layer_types": None, "max_window_layers": 0}, {"use_sliding_window": False}],
    "phi3": [{"sliding_window": None}, {"max_position_embeddings": 128}],
    "gemma2": [
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"query_pre_attn_scalar": 12},
        {"sliding_window": 19},
    ],
    "gemma3": [
        {"layer_types": ["sliding_attention"] * 7},
        {"rope_parameters": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6, "rope_local_base_freq": 1e6},
    ],
    "smollm3": [{"no_rope_layers": [1, 1, 1, 1]}],
}  # fmt: skip


@pytest.mark.parametrize(
    "name,changes", [(name, changes) for name, some in SETTINGS.items() for changes in some]
)
def test_every_setting_shows(name: str, changes: dict[str, object], tmp_path: Path) -> None:
    shutil.copytree(FOLDER / name, tmp_path / name)
    settings = family_golden.config(name) | changes
    (tmp_path / name / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    convert.convert(tmp_path / name, tmp_path / "other.bin", weights="f32")
    *_, text = family_golden.texts(name)
    ours = logits(tmp_path / "other.bin", text.tokens)[text.positions]
    assert kl(text.logits.astype(np.float64), ours).max() > 100 * MOST_KL
