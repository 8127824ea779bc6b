"""How families' settings are spelled in the wild: older names, defaults that files leave out, and what is
refused by name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import family_golden
from family_golden import FOLDER
from gguf_writer import Tensor, Typed, float_bytes, write_gguf
from pyinfer import convert
from pyinfer.adapters import Adapter
from pyinfer.convert.checkpoint import Checkpoint
from pyinfer.errors import ModelFileError, UnsupportedError
from reference import lora


def opened(name: str, path: Path, changes: dict[str, Any], left_out: tuple[str, ...] = ()) -> Checkpoint:
    """The folder of a family with other settings."""
    shutil.copytree(FOLDER / name, path / name, dirs_exist_ok=True)
    settings = family_golden.config(name) | changes
    kept = {key: value for key, value in settings.items() if key not in left_out}
    (path / name / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return convert.open_source(path / name)


def vector(checkpoint: Checkpoint, role: str) -> NDArray[np.float32]:
    tensor = next(tensor for tensor in checkpoint.tensors if tensor.role == role)
    return tensor.values(0, 1)[0]


def assert_same(ours: Checkpoint, expected: Checkpoint) -> None:
    assert ours.spec == expected.spec
    for role in ("rope_freqs", "rope_freqs_local", "rope_freqs_long"):
        if any(tensor.role == role for tensor in expected.tensors):
            assert np.array_equal(vector(ours, role), vector(expected, role))


# Older spellings of the same


def test_phi3_before_rope_parameters(tmp_path: Path) -> None:
    new = convert.open_source(FOLDER / "phi3")
    rope = family_golden.config("phi3")["rope_parameters"]
    for kind in ("longrope", "su", "yarn"):
        factors = {key: rope[key] for key in ("short_factor", "long_factor")}
        old = {"rope_scaling": {"type": kind, **factors}, "rope_theta": 1000.0, "partial_rotary_factor": 0.75}
        assert_same(opened("phi3", tmp_path / kind, old, ("rope_parameters", "head_dim")), new)
    assert new.spec.rope_dim == 12 and new.spec.long_context == 64
    assert new.spec.rope_magnitude == pytest.approx(np.sqrt(1 + np.log(4) / np.log(64)))


def test_gemma3_before_rope_parameters(tmp_path: Path) -> None:
    old = {
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
    }  # fmt: skip
    left_out = ("rope_parameters", "layer_types", "final_logit_softcapping", "attn_logit_softcapping")
    assert_same(opened("gemma3", tmp_path, old, left_out), convert.open_source(FOLDER / "gemma3"))


def test_rules_for_layers_where_no_list_is_given(tmp_path: Path) -> None:
    for name in ("gemma2", "qwen2_windows", "smollm3"):
        left_out = ("layer_types", "no_rope_layers", "tie_word_embeddings")
        assert_same(opened(name, tmp_path, {}, left_out), convert.open_source(FOLDER / name))
    assert convert.open_source(FOLDER / "gemma2").spec.windowed == (0, 2)
    assert convert.open_source(FOLDER / "gemma3").spec.windowed == (0, 1, 2, 3, 4, 6)
    assert convert.open_source(FOLDER / "smollm3").spec.unrotated == (3,)
    assert convert.open_source(FOLDER / "qwen2_windows").spec.windowed == (1,)


def test_stretched_contexts(tmp_path: Path) -> None:
    """A scaling that says how far it reaches raises the context."""
    assert convert.open_source(FOLDER / "llama_dynamic").spec.context == 100
    yarn = {"max_position_embeddings": 64}
    assert opened("llama_yarn", tmp_path, yarn).spec.context == 256


def test_a_factor_of_yarn_that_transformers_does_not_read(tmp_path: Path) -> None:
    """DeepSeek-R1-0528-Qwen3-8B has it."""
    scaling = family_golden.config("llama_yarn")["rope_parameters"]
    assert_same(
        opened("llama_yarn", tmp_path, {"rope_parameters": {**scaling, "attn_factor": 0.87}}),
        convert.open_source(FOLDER / "llama_yarn"),
    )


@pytest.mark.parametrize("setting", ["head_dim", "hidden_size", "intermediate_size", "vocab_size"])
def test_sizes_are_checked_before_anything_is_made_of_them(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"expected [12] to \d+, found 2147483646"):
        opened("llama_yarn", tmp_path, {setting: 2147483646})


def test_what_a_model_says_of_its_context_in_other_words(tmp_path: Path) -> None:
    """Vicuna and LongChat of 16,384 positions, beside a linear scaling."""
    length = convert.open_source(FOLDER / "llama_linear").spec.context
    for said, expected in ((4 * length, 4 * length), (length // 2, length)):
        spec = opened("llama_linear", tmp_path / str(said), {"max_sequence_length": said}).spec
        assert spec.context == expected


def test_mistral_may_say_which_layers_have_the_window(tmp_path: Path) -> None:
    layers = [
        "full_attention" if i % 2 else "sliding_attention"
        for i in range(family_golden.config("mistral")["num_hidden_layers"])
    ]
    spec = opened("mistral", tmp_path, {"layer_types": layers}).spec
    assert spec.windowed == tuple(range(0, len(layers), 2))


def test_gemma3_in_gguf_with_settings_of_its_eyes(tmp_path: Path) -> None:
    eyes = {"gemma3.mm.tokens_per_image": 256, "gemma3.vision.block_count": 27}
    text = convert.open_source(family_golden.write("gemma3", tmp_path / "text.gguf"))
    assert_same(convert.open_source(family_golden.write("gemma3", tmp_path / "a.gguf", eyes)), text)


def test_windows_that_are_switched_off(tmp_path: Path) -> None:
    assert opened("qwen2", tmp_path, {"sliding_window": 4096, "use_sliding_window": False}).spec.window == 0
    assert opened("mistral", tmp_path, {"sliding_window": None}).spec.windowed == ()
    assert opened("mistral", tmp_path, {}, ("sliding_window",)).spec.window == 4096


def test_the_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    text = convert.open_source(FOLDER / "gemma3")
    stored = lora.safetensors(FOLDER / "gemma3" / "model.safetensors")
    eye = {"vision_tower.vision_model.post_layernorm.weight": np.ones(8, np.float32)}
    settings = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": family_golden.config("gemma3"),
    }
    for prefix in ("language_model.model.", "model.language_model."):
        folder = tmp_path / prefix
        folder.mkdir()
        renamed = {
            prefix + name.removeprefix("model."): values.astype(np.float16) for name, values in stored.items()
        }
        save_file(renamed | eye, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert_same(convert.open_source(folder), text)


def test_gemma2_in_gguf_before_its_caps(tmp_path: Path) -> None:
    """The first files of the family do not say them; every published model has the same."""
    caps = dict.fromkeys(("gemma2.attn_logit_softcapping", "gemma2.final_logit_softcapping"))
    spec = convert.open_source(family_golden.write("gemma2", tmp_path / "a.gguf", caps)).spec
    assert (spec.attn_softcap, spec.logit_softcap) == (50.0, 30.0)


@pytest.mark.parametrize("name", ["llama_yarn", "llama_linear", "qwen3"])
def test_factors_of_frequencies_beside_a_scaling(name: str, tmp_path: Path) -> None:
    usual = convert.open_source(family_golden.write(name, tmp_path / "usual.gguf"))
    divisors = [1.0 + i for i in range(usual.spec.rope_dim // 2)]
    divided = family_golden.write(name, tmp_path / "divided.gguf", vectors={"rope_freqs.weight": divisors})
    expected = vector(usual, "rope_freqs") / np.array(divisors, np.float32)
    np.testing.assert_allclose(vector(convert.open_source(divided), "rope_freqs"), expected, rtol=3e-7)


# What is refused


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("mistral", {"sliding_window": "21"}, "sliding_window"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2_windows", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2_windows", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ("qwen2_windows", {"sliding_window": None}, "sliding_window"),
        ("qwen2", {"num_experts": 8}, "num_experts"),
        ("qwen3", {"mlp_bias": True}, "mlp_bias"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act"),
        ("phi3", {"partial_rotary_factor": 2.0, "rope_parameters": None}, "partial_rotary_factor"),
        ("phi3", {"intermediate_size": 65}, "gate_up_proj"),
        ("phi3", {"num_key_value_heads": 2}, "qkv_proj"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 1, 2, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_honoured(
    name: str, changes: dict[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=word) as caught:
        opened(name, tmp_path, changes)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


def test_layers_beyond_those_that_can_be_marked(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="windowed: expected layers below 128, found 129"):
        opened("mistral", tmp_path, {"num_hidden_layers": 130})


@pytest.mark.parametrize(
    ("name", "keys", "word"),
    [
        ("qwen2", {"qwen2.expert_count": 8}, "expert_count"),
        ("qwen2", {"qwen2.attention.sliding_window": 64}, "sliding_window"),
        ("gemma2", {"gemma2.attn_logit_softcapping": -2.0}, "attn_softcap"),
        ("gemma3", {"gemma3.rope.freq_base_swa": 0.0}, "freq_base_swa"),
        ("phi3", {"phi3.rope.scaling.attn_factor": 0.0}, "attn_factor"),
        ("phi3", {"phi3.rope.scaling.type": "yarn"}, "scaling.type: expected longrope beside rope_factors_short"),
        ("phi3", {"phi3.rope.scaling.factor": 4.0}, "scaling.factor: expected 1 beside rope_factors_short"),
        ("smollm3", {"smollm3.logit_scale": 0.5}, "logit_scale"),
        ("llama_yarn", {"llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ("llama_yarn", {"llama.rope.scaling.factor": Typed("f32", float("nan"))}, "factor"),
    ],
)  # fmt: skip
def test_keys_of_gguf_files_that_cannot_be_honoured(
    name: str, keys: dict[str, Any], word: str, tmp_path: Path
) -> None:
    path = family_golden.write(name, tmp_path / "a.gguf", keys)
    with pytest.raises(ModelFileError, match=word):
        convert.open_source(path)


def test_two_kinds_of_factors_at_once(tmp_path: Path) -> None:
    path = family_golden.write("phi3", tmp_path / "a.gguf", vectors={"rope_freqs.weight": [1.0] * 6})
    with pytest.raises(
        UnsupportedError, match=r"rope_freqs\.weight: expected no such tensor beside rope_factors"
    ):
        convert.open_source(path)


# Adapters in GGUF


def test_gguf_adapters_by_their_architecture(tmp_path: Path) -> None:
    """Fused tensors have roles of their own, and only some architectures have rows in interleaved order."""
    settings = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}

    def adapter(architecture: str, tensor: str, rows: int) -> Adapter:
        shapes = {"a": (4, 64), "b": (rows, 4)}
        tensors = [
            Tensor(f"{tensor}.lora_{part}", "F32", *shape, float_bytes("F32", np.ones(shape, np.float32)))
            for part, shape in shapes.items()
        ]
        path = tmp_path / f"{architecture}.gguf"
        return Adapter.load(write_gguf(path, {"general.architecture": architecture, **settings}, tensors))

    fused = adapter("phi3", "blk.0.attn_qkv.weight", 96).source
    assert (fused.changes[0].role, fused.interleaved) == ("qkv", False)
    assert adapter("phi3", "blk.1.ffn_up.weight", 128).source.changes[0].role == "gate_up"
    assert adapter("llama", "blk.1.ffn_up.weight", 128).source.changes[0].role == "up"
    assert adapter("smollm3", "blk.0.attn_q.weight", 64).source.interleaved
    assert not adapter("qwen2", "blk.0.attn_q.weight", 64).source.interleaved
    with pytest.raises(UnsupportedError, match="attn_qkv"):
        adapter("llama", "blk.0.attn_qkv.weight", 96)
    with pytest.raises(UnsupportedError, match="ffn_gate"):
        adapter("phi3", "blk.0.ffn_gate.weight", 96)
