"""Meta's own names and settings of the LLaMA family, told in those of Hugging Face.

params.json becomes a config.json, tensors get Hugging Face's names, and rows of q and k go from interleaved to
half-split rotary order, so that one set of checks serves both. Must not know how files are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import RawTensor, ReadRows, row_bytes, same_values
from pyinfer.convert.families import llama
from pyinfer.convert.families.model import Model
from pyinfer.convert.families.rotary_order import half_split_order
from pyinfer.convert.joined import join
from pyinfer.errors import ModelFileError, UnsupportedError

_OUTSIDE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_READ = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len",
)  # fmt: skip
_IGNORED = ("max_batch_size", "model_parallel_size")
_TABLES = ("rope.freqs",)  # computed anew
_SMALL_DIM = 3072
"""Llama 3.2 has models of up to this width, whose scaling factor is 32; params.json does not say so."""


def from_meta(params: Mapping[str, Any], parts: Sequence[Mapping[str, RawTensor]], n_tokens: int) -> Model:
    """params.json and the tensors of each part; `n_tokens` is the size of the vocabulary in tokenizer.model."""
    for key in params:
        if key not in _READ and key not in _IGNORED:
            raise UnsupportedError(f"params.json: {key}: this setting is not supported")
    tied = "output.weight" not in parts[0] or _is_copy(parts)
    config = _config(params, n_tokens, tied)
    if tied:
        parts = [{name: part[name] for name in part if name != "output.weight"} for part in parts]
    return llama.from_huggingface(config, _renamed(config, parts, tied))


def _is_copy(parts: Sequence[Mapping[str, RawTensor]]) -> bool:
    """Whether the head is the embedding written twice, as in Llama 3.2 of one part."""
    ends = [parts[0].get(name) for name in ("output.weight", "tok_embeddings.weight")]
    head, embedding = ends
    return len(parts) == 1 and head is not None and embedding is not None and same_values(head, embedding)


def _config(params: Mapping[str, Any], n_tokens: int, tied: bool) -> dict[str, Any]:
    dim, n_heads = _count(params, "dim"), _count(params, "n_heads")
    n_vocab = params.get("vocab_size", -1)
    if n_vocab not in (-1, n_tokens) or isinstance(n_vocab, bool):
        raise ModelFileError(
            f"params.json: vocab_size: expected -1 or {n_tokens} as tokenizer.model has, found {n_vocab!r}"
        )
    theta = params.get("rope_theta", 10000.0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dim,
        "intermediate_size": _hidden(params, dim),
        "num_hidden_layers": _count(params, "n_layers"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads if params.get("n_kv_heads") is None else _count(params, "n_kv_heads"),
        "vocab_size": n_tokens,
        "max_position_embeddings": _context(params, dim, theta),
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": theta,
        "rope_scaling": _scaling(params, dim),
        "tie_word_embeddings": tied,
    }


def _count(params: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 22:
        raise ModelFileError(f"params.json: {key}: expected an integer of 1 or more, found {value!r}")
    return value


def _hidden(params: Mapping[str, Any], dim: int) -> int:
    """Two thirds of 4 · dim, times the multiplier, rounded up to a multiple."""
    hidden, multiple = 2 * 4 * dim // 3, _count(params, "multiple_of", 256)
    factor = params.get("ffn_dim_multiplier")
    if factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1024:
            raise ModelFileError(
                f"params.json: ffn_dim_multiplier: expected a factor above 0, found {factor!r}"
            )
        hidden = int(factor * hidden)
    return -(-hidden // multiple) * multiple


def _context(params: Mapping[str, Any], dim: int, theta: Any) -> int:
    """What the model was trained for, which params.json seldom says: the versions differ in their rotary base,
    and LLaMA 1 in its epsilon (1e-6, but 1e-5 in its largest, which unlike Llama 2's has a key for every query).
    """
    if "max_seq_len" in params:
        return _count(params, "max_seq_len")
    if params.get("use_scaled_rope"):
        return 131072
    if theta != 10000.0:
        return 16384 if theta == 1000000.0 else 8192  # Code Llama; Llama 3
    first = params.get("norm_eps") == 1e-6 or (dim == 8192 and params.get("n_kv_heads") is None)
    return 2048 if first else 4096


def _scaling(params: Mapping[str, Any], dim: int) -> dict[str, Any] | None:
    if not params.get("use_scaled_rope"):
        return None
    return {
        "rope_type": "llama3",
        "factor": params.get("rope_scaling_factor") or (32.0 if dim <= _SMALL_DIM else 8.0),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _shapes(config: Mapping[str, Any], tied: bool) -> dict[str, tuple[int, ...]]:
    """Meta's name of every tensor and the shape of the whole."""
    dim, n_ff, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    inside = {
        "attention_norm": (dim,), "attention.wq": (dim, dim), "attention.wk": (kv, dim), "attention.wv": (kv, dim),
        "attention.wo": (dim, dim), "ffn_norm": (dim,), "feed_forward.w1": (n_ff, dim),
        "feed_forward.w2": (dim, n_ff), "feed_forward.w3": (n_ff, dim),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (n_vocab, dim), "norm.weight": (dim,)}
    if not tied:
        shapes["output.weight"] = (n_vocab, dim)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return shapes


def _renamed(
    config: Mapping[str, Any], parts: Sequence[Mapping[str, RawTensor]], tied: bool
) -> dict[str, RawTensor]:
    """The tensors, joined and named as Hugging Face does."""
    if config["num_hidden_layers"] > 1024:
        raise ModelFileError(
            f"params.json: n_layers: expected at most 1024, found {config['num_hidden_layers']}"
        )
    shapes, found = _shapes(config, tied), {}
    for i, part in enumerate(parts):
        odd = sorted((part.keys() - set(_TABLES)) ^ shapes.keys())
        if odd:
            if odd[0] in part:
                raise UnsupportedError(f"{odd[0]}: this tensor is not part of the supported architecture")
            raise ModelFileError(f"part {i}: expected a tensor {odd[0]}, found none")
    for name, shape in shapes.items():
        whole = join([part[name] for part in parts], shape)
        if whole.shape != shape:
            raise ModelFileError(f"{name}: expected the shape {list(shape)}, found {list(whole.shape)}")
        if name.endswith((".wq.weight", ".wk.weight")):
            head_dim = config["hidden_size"] // config["num_attention_heads"]
            whole = RawTensor(whole.name, whole.source, shape, _half_split(whole, head_dim))
        found[_huggingface_name(name)] = whole
    return found


def _huggingface_name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, layer, inside = name.split(".", 2)
    return f"model.layers.{layer}.{_IN_LAYER[inside.removesuffix('.weight')]}.weight"


def _half_split(tensor: RawTensor, head_dim: int) -> ReadRows:
    """Whole rows move within their head, so no value changes."""
    if head_dim % 2 or math.prod(tensor.shape) == 0:
        raise ModelFileError(f"{tensor.name}: expected an even number of rows a head, found {head_dim}")
    order = half_split_order(tensor.shape[0], head_dim, head_dim)
    size = row_bytes(tensor.source, tensor.shape[1])

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        wanted = order[start:stop]
        first, last = int(wanted.min()), int(wanted.max())
        return tensor.read(first, last + 1).reshape(-1, size)[wanted - first].reshape(-1)

    return read
