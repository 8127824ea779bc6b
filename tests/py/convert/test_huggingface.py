"""Hugging Face directories: the same values as the GGUF of the same model; settings are honoured or refused."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_writer import TinyLlama, float_bytes, spm_kv, write_gguf, write_llama
from huggingface_writer import (
    SHAPE,
    arrays,
    config,
    folder,
    safetensors_bytes,
    save,
    tokenizer_json,
    write_json,
)
from pyinfer import _core, convert
from pyinfer.convert.huggingface_tokenizer import read_tokenizer
from pyinfer.convert.sentencepiece_model import Piece, encode_model
from pyinfer.errors import ModelFileError, RequestError, UnsupportedError
from pyinfer.tokenizer import Tokenizer


def weights_of(path: Path) -> bytes:
    file = _core.ModelFile(str(path))
    return b"".join(file.read(i).tobytes() for i in range(len(file.tensors)))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("weights", ["q8", "f32"])
def test_same_weights_as_the_gguf_of_the_same_model(kind: str, weights: str, tmp_path: Path) -> None:
    source = write_llama(tmp_path / "a.gguf", SHAPE)
    if kind != "F32":
        rounded = [float_bytes(kind, np.frombuffer(bytes(t.data), np.float32)) for t in SHAPE.tensors()]
        back = [_core.dequantize(kind, data, 1, len(data) // 2)[0] for data in rounded]
        made = [
            replace(t, data=float_bytes("F32", values))
            for t, values in zip(SHAPE.tensors(), back, strict=True)
        ]
        source = write_gguf(tmp_path / "a.gguf", SHAPE.kv(), made)
    convert.convert(source, tmp_path / "gguf.bin", weights=weights)
    convert.convert(folder(tmp_path / "hf", kind), tmp_path / "hf.bin", weights=weights)
    assert weights_of(tmp_path / "gguf.bin") == weights_of(tmp_path / "hf.bin")
    first, second = (_core.ModelFile(str(tmp_path / name)).spec for name in ("gguf.bin", "hf.bin"))
    assert first == second


def test_default_is_q8_and_q4_keeps_the_embedding(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    assert {group.format for group in convert.inspect(source).groups} == {"q8", "vector"}
    formats = {group.format: group.tensors for group in convert.inspect(source, weights="q4").groups}
    assert formats == {"q8": 2, "q4": 14, "vector": 6}


def test_shards_by_index(tmp_path: Path) -> None:
    single, sharded = folder(tmp_path / "one"), folder(tmp_path / "two")
    (sharded / "model.safetensors").unlink()
    tensors = arrays()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(files.values()):
        save(sharded / shard, {name: tensors[name] for name in tensors if files[name] == shard})
    write_json(sharded / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    convert.convert(single, tmp_path / "one.bin")
    metadata = convert.convert(sharded, tmp_path / "two.bin")
    assert weights_of(tmp_path / "one.bin") == weights_of(tmp_path / "two.bin")
    assert [item.name for item in metadata.source.files][-2:] == sorted(set(files.values()))
    key = convert.content_key(sharded)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        convert.open_source(sharded)
    assert len(key) == 32


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors"])
def test_index_must_not_leave_the_folder(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    write_json(source / "model.safetensors.index.json", {"weight_map": {"x": name}})
    with pytest.raises(ModelFileError, match="file names without folders"):
        convert.open_source(source)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    write_json(source / "model.safetensors.index.json", {"weight_map": {"x": name}})
    for look in (convert.open_source, convert.content_key):
        with pytest.raises(ModelFileError, match="makes sense"):
            look(source)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "Qwen2MoeForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"]}, r"q_proj\.bias"),
        ({"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}, r"q_norm\.weight"),
        ({"architectures": ["Phi3ForCausalLM"]}, r"qkv_proj\.weight"),
        ({"architectures": ["Gemma2ForCausalLM"], "hidden_activation": "gelu"}, "hidden_activation"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "text_config"),
        ({"architectures": None}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, r"q_proj\.bias"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"sliding_window": 64}, "sliding_window"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"rope_scaling": {"type": "dynamic", "factor": "2"}}, "factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 3.0}}, "alpha"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "proportional"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate"),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 1}}, "original"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "short_factor"),
        ({"rope_scaling": {"rope_type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_mscale": 1.1}}, "short_mscale"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": math.nan}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"rope_theta": "1e4"}, "rope_theta"),
        ({"hidden_size": 65}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"num_key_value_heads": 0}, "n_kv_heads"),
        ({"num_hidden_layers": 2**31}, "n_layers"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 1}, "layers.1"),
        ({"vocab_size": 301}, "embed_tokens"),
        ({"vocab_size": "absent"}, "vocab_size"),
        ({"head_dim": 1}, "head_dim"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"hidden_size": 10**400, "num_attention_heads": 1}, "hidden_size"),
        ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "expected the type"),
        ({"rope_scaling": {"type": {}, "factor": 2.0}}, "expected the type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e308}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e-320}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 1e308}}, "factor"),
        ({"rope_scaling": {"rope_type": "yarn"}, "max_position_embeddings": 0}, "original_max_position"),
        (
            {"architectures": ["MistralForCausalLM"], "num_hidden_layers": 10**9, "sliding_window": 4},
            "1 to 1024",
        ),
        ({"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 10**9}, "1 to 1024"),
    ],
)
def test_settings_that_cannot_be_honoured(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "hf", **changes)
    with pytest.raises(ModelFileError, match=word) as caught:
        convert.open_source(source)
    assert str(caught.value).startswith(str(source)) and "\n" not in str(caught.value)


def frequencies(source: Path) -> NDArray[np.float32]:
    tensors = convert.open_source(source).tensors
    return next(tensor for tensor in tensors if tensor.role == "rope_freqs").read(0, 1).view(np.float32)


def test_linear_and_plain_frequencies(tmp_path: Path) -> None:
    plain = 10000.0 ** -(np.arange(8) / 8)
    np.testing.assert_allclose(frequencies(folder(tmp_path / "hf")), plain, rtol=1e-6)
    linear = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    np.testing.assert_allclose(frequencies(folder(tmp_path / "hf", **linear)), plain / 4, rtol=1e-6)
    newer = {"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    np.testing.assert_allclose(
        frequencies(folder(tmp_path / "hf", **newer)), 500.0 ** -(np.arange(8) / 8), rtol=1e-6
    )


def test_llama3_frequencies(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling = {**rope, "original_max_position_embeddings": 8192}
    found = frequencies(folder(tmp_path / "hf", rope_theta=500000.0, rope_scaling=scaling))
    for i, value in enumerate(found):
        plain = 500000.0 ** (-i / 8)
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192:
            expected = plain / 8
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert value == pytest.approx(expected, rel=1e-6)
    assert found[0] == 1.0 and found[7] == pytest.approx(500000.0 ** (-7 / 8) / 8, rel=1e-6)


def test_tied_head_is_ignored_and_needed_when_untied(tmp_path: Path) -> None:
    tied = folder(tmp_path / "tied", tie_word_embeddings=True)
    assert convert.open_source(tied).spec.tied_head
    save(tied / "model.safetensors", {k: v for k, v in arrays().items() if k != "lm_head.weight"})
    assert convert.open_source(tied).spec.tied_head
    write_json(tied / "config.json", config())
    with pytest.raises(ModelFileError, match=r"expected a tensor lm_head\.weight"):
        convert.open_source(tied)


def test_odd_tensors_are_refused_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save(source / "model.safetensors", arrays() | old)
    convert.open_source(source)
    save(
        source / "model.safetensors",
        arrays() | {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)},
    )
    with pytest.raises(UnsupportedError, match=r"q_proj\.bias: biases"):
        convert.open_source(source)
    tensors = arrays()
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    save(source / "model.safetensors", tensors)
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight: expected the shape \[64\], found \[63\]"):
        convert.open_source(source)
    integers = safetensors_bytes({"model.norm.weight": ("I8", [64], bytes(64))})
    (source / "model.safetensors").write_bytes(integers)
    with pytest.raises(UnsupportedError, match="found I8"):
        convert.open_source(source)


def test_broken_safetensors_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    file = source / "model.safetensors"
    whole = file.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    bad = [b"", whole[:7], whole[: 8 + header - 1], whole[:-1], whole + b"\0", struct.pack("<Q", 2**64 - 1) + whole[8:],
           struct.pack("<Q", 2**40) + whole[8:], whole[:8] + b"[" * 100_000 + whole[8 + 100_000 :],
           whole.replace(b'"F32"', b'"F16"', 1), whole.replace(b"data_offsets", b"data_0ffsets", 1)]  # fmt: skip
    for data in bad:
        file.write_bytes(data)
        with pytest.raises(ModelFileError, match=r"model\.safetensors"):
            convert.open_source(source)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '"x"', '{"a":' * 100_000, "\xff", '{"bos_token_id": {}, "a": 1}']
)
def test_broken_json_is_refused(name: str, text: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "hf", bos_token_id=0, eos_token_id=0)
    if name != "tokenizer.json":
        tokenizer_json(source / "tokenizer.json")
    (source / name).write_text(text, "latin-1")
    if text.startswith('{"bos') and name != "tokenizer.json" and name != "config.json":
        convert.open_source(source)
        return
    with pytest.raises(ModelFileError, match=str(source)) as caught:
        convert.open_source(source)
    assert "\n" not in str(caught.value)


def _with_tokenizer(path: Path, **changes: Any) -> Tokenizer:
    source = folder(path)
    tokenizer_json(source / "tokenizer.json")
    changed = json.loads((source / "tokenizer.json").read_text())
    write_json(source / "tokenizer.json", changed | changes)
    convert.convert(source, path / "out.bin")
    return Tokenizer.open(_core.ModelFile(str(path / "out.bin")))


def test_lengths_of_training_do_not_cut_or_fill_a_text(tmp_path: Path) -> None:
    text = "the quick brown fox jumps over"
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    filled = {
        "strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 5, "pad_type_id": 0,
        "pad_token": "&",
    }  # fmt: skip
    expected = _with_tokenizer(tmp_path / "plain").encode(text)
    assert 8 < len(expected) < 50
    assert _with_tokenizer(tmp_path / "cut", truncation=cut).encode(text) == expected
    assert _with_tokenizer(tmp_path / "filled", padding=filled).encode(text) == expected


def _tiny_bpe(**settings: Any) -> dict[str, Any]:
    """A model of a few letters, without bytes."""
    pieces = ["<unk>", "\u2581", "t", "h", "e", "\u2581t", "he", "\u2581the"]
    merges = [["\u2581", "t"], ["h", "e"], ["\u2581t", "he"]]
    spelling = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": False, "merges": merges,
        "vocab": {piece: i for i, piece in enumerate(pieces)}, **settings,
    }  # fmt: skip
    return {
        "added_tokens": [],
        "pre_tokenizer": spelling,
        "decoder": spelling,
        "model": model,
        "post_processor": None,
    }


def test_merges_are_not_dropped_by_chance(tmp_path: Path) -> None:
    tokenizer = _with_tokenizer(tmp_path, **_tiny_bpe(dropout=0.5, unk_token="<unk>"))
    assert all(tokenizer.encode("the the the") == [7, 7, 7] for _ in range(20))


def test_letters_that_a_vocabulary_without_the_unknown_lacks(tmp_path: Path) -> None:
    known = _with_tokenizer(tmp_path / "known", **_tiny_bpe(unk_token="<unk>"))
    assert 0 in known.encode("the \u00e9")
    lacking = _with_tokenizer(tmp_path / "lacking", **_tiny_bpe())
    assert lacking.encode("the the") == [7, 7]
    with pytest.raises(RequestError, match=r"found U\+00E9"):
        lacking.encode("the \u00e9")


@pytest.mark.parametrize(
    ("added", "listed"),
    [
        ({"<a>": [300]}, {}),
        ({"<a>": "300"}, {}),
        ({"<a\ud800>": 300}, {}),
        ({}, {"9" * 5000: {"content": "<a>"}}),
        ({}, {"300": {"content": "<\ud800>"}}),
    ],
)
def test_added_tokens_that_are_none(added: dict[str, Any], listed: dict[str, Any], tmp_path: Path) -> None:
    source, gguf = folder(tmp_path / "hf"), write_llama(tmp_path / "a.gguf", SHAPE, tokenizer="spm")
    (source / "tokenizer.model").write_bytes(convert.open_source(gguf).tokenizer.blob)
    write_json(source / "added_tokens.json", added)
    with pytest.raises(ModelFileError, match="token"):
        read_tokenizer(source, {}, {}, {"added_tokens_decoder": listed})


def test_a_folder_of_the_hubs_cache_is_called_as_its_repository(tmp_path: Path) -> None:
    snapshots = tmp_path / "models--org--tiny-1B" / "snapshots"
    snapshots.mkdir(parents=True)
    source = folder(snapshots / ("c0" * 20))
    assert convert.open_source(source).name == "tiny-1B"


def test_templates_by_names_that_are_none(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    named = [{"name": [], "template": "x"}, {"name": "default", "template": "D"}]
    write_json(source / "tokenizer_config.json", {"chat_template": named})
    assert convert.open_source(source).chat_template == "D"


def test_tokenizer_json_with_its_settings(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    tokenizer_json(source / "tokenizer.json")
    templates = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    tokens = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "add_bos_token": True}
    write_json(source / "tokenizer_config.json", {**tokens, "chat_template": templates})
    write_json(source / "generation_config.json", {"eos_token_id": [5, 261]})
    (source / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Model\n")
    metadata = convert.convert(source, tmp_path / "a.bin")
    assert (metadata.tokenizer, metadata.byte_level, metadata.licence, metadata.chat_template) == (
        "tokenizers", True, "mit", "D")  # fmt: skip
    assert (metadata.bos, metadata.eos, metadata.add_bos, metadata.name) == (260, (261, 5, 259), True, "hf")
    tokenizer = Tokenizer.open(_core.ModelFile(str(tmp_path / "a.bin")))
    assert tokenizer.decode(tokenizer.encode("the cat", parse_special=True)) == "the cat"
    assert tokenizer.encode("", add_special=True) == [260]
    (source / "chat_template.jinja").write_text("J")
    assert convert.inspect(source).chat_template == "J"


def test_tokenizer_with_more_tokens_than_rows(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    gguf = write_llama(tmp_path / "big.gguf", TinyLlama(n_vocab=301), tokenizer="bpe")
    (source / "tokenizer.json").write_bytes(convert.open_source(gguf).tokenizer.blob)
    with pytest.raises(ModelFileError, match="expected at most 300 tokens"):
        convert.open_source(source)
    write_json(source / "generation_config.json", {"eos_token_id": 300})
    tokenizer_json(source / "tokenizer.json")
    with pytest.raises(ModelFileError, match="eos: expected an id below 300, found 300"):
        convert.open_source(source)


def test_added_tokens_without_rows_are_left_out(tmp_path: Path) -> None:
    """As in the text models of Gemma 3, whose tokenizer has a token of images."""
    source = folder(tmp_path / "hf")
    tokenizer_json(source / "tokenizer.json")
    whole = json.loads((source / "tokenizer.json").read_text())
    extra = {"id": 300, "content": "<image>", "special": True, "normalized": False}
    whole["added_tokens"].append(extra | {"single_word": False, "lstrip": False, "rstrip": False})
    (source / "tokenizer.json").write_text(json.dumps(whole))
    convert.convert(source, tmp_path / "a.bin")
    tokenizer = Tokenizer.open(_core.ModelFile(str(tmp_path / "a.bin")))
    assert tokenizer.piece_to_id("<image>") is None
    assert tokenizer.decode(tokenizer.encode("a<image>", parse_special=True)) == "a<image>"


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
def test_a_padding_token_without_a_row_is_none(kind: str, tmp_path: Path) -> None:
    """Fine-tunes of 2023 added it and left the model as it was."""
    source = folder(tmp_path / "hf", pad_token_id=300)
    if kind == "tokenizer.json":
        tokenizer_json(source / kind)
        write_json(source / "tokenizer_config.json", {"bos_token": "<|im_start|>"})
    else:
        (source / kind).write_bytes(spm_model(300))
        write_json(source / "added_tokens.json", {"[PAD]": 300})
        write_json(source / "tokenizer_config.json", {"pad_token": "[PAD]"})
    tokenizer = convert.open_source(source).tokenizer
    assert (tokenizer.size <= 300, tokenizer.pad) == (True, None)


def test_tekken_alone_is_refused_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    (source / "tekken.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"found tekken\.json alone"):
        convert.open_source(source)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_biases_of_zeros_are_none(kind: str, tmp_path: Path) -> None:
    """AutoGPTQ wrote one for every matrix."""
    name = "model.layers.1.mlp.up_proj.bias"
    zeros, others = np.zeros(96, np.float32), np.zeros(96, np.float32)
    zeros[1], others[95] = -0.0, 1e-7
    source = folder(tmp_path / "hf")
    save(source / "model.safetensors", arrays(), kind)
    convert.convert(source, tmp_path / "without.bin")
    save(source / "model.safetensors", {**arrays(), name: zeros}, kind)
    convert.convert(source, tmp_path / "with.bin")
    assert weights_of(tmp_path / "with.bin") == weights_of(tmp_path / "without.bin")
    save(source / "model.safetensors", {**arrays(), name: others}, kind)
    with pytest.raises(UnsupportedError, match=r"up_proj\.bias: biases are not part of"):
        convert.convert(source, tmp_path / "with.bin")


def spm_model(n: int) -> bytes:
    kv = spm_kv(n)
    columns = (
        kv["tokenizer.ggml.tokens"],
        kv["tokenizer.ggml.scores"],
        kv["tokenizer.ggml.token_type"].value,
    )
    return encode_model(
        [Piece(*entry) for entry in zip(*columns, strict=True)], space_prefix=True, byte_fallback=True
    )


def test_tokenizer_model_with_added_tokens(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf", bos_token_id=1, eos_token_id=2)
    (source / "tokenizer.model").write_bytes(spm_model(290))
    write_json(source / "added_tokens.json", {"[PAD]": 290, "<extra>": 291})
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}
    added = {"291": {"content": "<end>", "special": True}}
    write_json(source / "tokenizer_config.json", {**tokens, "added_tokens_decoder": added})
    checkpoint = convert.open_source(source)
    opened = checkpoint.tokenizer
    assert (opened.kind, opened.size, opened.bos, opened.eos, opened.pad) == (
        "sentencepiece",
        292,
        1,
        (2,),
        290,
    )
    assert opened.space_prefix and opened.add_bos
    convert.convert(source, tmp_path / "a.bin")
    tokenizer = Tokenizer.open(_core.ModelFile(str(tmp_path / "a.bin")))
    assert tokenizer.encode("<end>", False, parse_special=True) == [291]
    assert 291 not in tokenizer.encode("<end>", False) and 290 in tokenizer.encode("a[PAD]", False)
    assert tokenizer.decode([*tokenizer.encode("to the"), 295]) == "to the"


@pytest.mark.parametrize(
    "added", [{"x": 292}, {"x": 290, "y": 292}, {"x": "290"}, {"x": None}, {"x": 290, "y": 290}]
)
def test_added_tokens_that_do_not_follow_on(added: dict[str, Any], tmp_path: Path) -> None:
    source = folder(tmp_path / "hf", bos_token_id=1, eos_token_id=2)
    (source / "tokenizer.model").write_bytes(spm_model(290))
    write_json(source / "added_tokens.json", added)
    with pytest.raises(ModelFileError, match="expected ids from 290 on"):
        convert.open_source(source)


def test_broken_tokenizer_model_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf", bos_token_id=1, eos_token_id=2)
    whole = spm_model(290)
    for data in (b"", whole[: len(whole) // 2], b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f"):
        (source / "tokenizer.model").write_bytes(data)
        with pytest.raises(ModelFileError, match=r"tokenizer\.model"):
            convert.open_source(source)


def test_llama_style_tokenizer_json(tmp_path: Path) -> None:
    """Pieces with U+2581 for a space and byte fallback, as LLaMA-2 conversions write them."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "▁t",
        "he",
        "▁the",
    ]
    merges = [["▁", "t"], ["h", "e"], ["▁t", "he"]]
    special = [{"id": i, "content": pieces[i], "special": True, "normalized": False, "single_word": False,
                "lstrip": False, "rstrip": False} for i in range(3)]  # fmt: skip
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    written = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                       {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "merges": merges,
                  "vocab": {piece: i for i, piece in enumerate(pieces)}},
    }  # fmt: skip
    source = folder(tmp_path / "hf", bos_token_id=1, eos_token_id=2)
    write_json(source / "tokenizer.json", written)
    convert.convert(source, tmp_path / "a.bin")
    tokenizer = Tokenizer.open(_core.ModelFile(str(tmp_path / "a.bin")))
    ids = tokenizer.encode("the é the")
    assert [tokenizer.token_to_piece(i) for i in ids] == ["▁the", "▁", "<0xC3>", "<0xA9>", "▁the"]
    assert tokenizer.decode(ids) == "the é the"
    write_json(
        source / "tokenizer.json",
        {**written, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
    )
    with pytest.raises(UnsupportedError, match="WordPiece"):
        convert.open_source(source)


def test_folder_without_weights(tmp_path: Path) -> None:
    source = folder(tmp_path / "hf")
    (source / "model.safetensors").unlink()
    with pytest.raises(
        ModelFileError, match=r"expected model\.safetensors or model\.safetensors\.index\.json"
    ):
        convert.open_source(source)
