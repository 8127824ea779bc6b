"""Writes small Hugging Face directories for tests: the tiny random LLaMA of gguf_writer under Hugging Face's names."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_writer import TinyLlama, float_bytes, write_llama
from pyinfer import convert

SHAPE = TinyLlama(n_vocab=300)
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
Arrays = dict[str, NDArray[np.float32]]


def arrays(shape: TinyLlama = SHAPE) -> Arrays:
    """The model of `shape` under Hugging Face's names, q and k in half-split order."""
    found = {}
    for tensor in shape.tensors():
        values = np.frombuffer(bytes(tensor.data), np.float32).reshape(tensor.dims[::-1])
        parts = tensor.name.split(".")
        if parts[-2] in ("attn_q", "attn_k"):
            heads = values.reshape(-1, shape.head_dim // 2, 2, shape.dim)
            values = heads.transpose(0, 2, 1, 3).reshape(values.shape)
        name = f"model.layers.{parts[1]}.{NAMES[parts[2]]}" if parts[0] == "blk" else OUTSIDE[parts[0]]
        found[f"{name}.weight"] = values
    return found


def config(shape: TinyLlama = SHAPE, **changes: Any) -> dict[str, Any]:
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32",
        "hidden_size": shape.dim, "intermediate_size": shape.n_ff, "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads, "num_key_value_heads": shape.n_kv_heads, "vocab_size": shape.n_vocab,
        "max_position_embeddings": shape.context, "rms_norm_eps": shape.norm_eps, "rope_theta": shape.rope_theta,
        "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1,
        "tie_word_embeddings": False, "bos_token_id": 260, "eos_token_id": 261,
    } | changes  # fmt: skip
    return {key: value for key, value in settings.items() if value != "absent"}


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """Name -> (type, shape, data) in the safetensors layout: length of the header, header, data."""
    header, body = {}, b""
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def save(path: Path, tensors: Arrays, kind: str = "F32") -> None:
    made = {
        name: (kind, list(values.shape), float_bytes(kind, values).tobytes())
        for name, values in tensors.items()
    }
    path.write_bytes(safetensors_bytes(made))


def folder(path: Path, kind: str = "F32", **changes: Any) -> Path:
    """A directory with one shard and no tokenizer."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config(**changes)))
    save(path / "model.safetensors", arrays(), kind)
    return path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def tokenizer_json(path: Path) -> None:
    """A byte-level tokenizer.json, as the GGUF reader builds it for the same vocabulary."""
    gguf = write_llama(path.with_suffix(".gguf"), SHAPE, tokenizer="bpe")
    path.write_bytes(convert.open_source(gguf).tokenizer.blob)
