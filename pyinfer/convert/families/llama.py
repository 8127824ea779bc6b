"""The LLaMA family: tensor names and settings in GGUF, Hugging Face and llama2.c checkpoints -> `Spec` and
tensors by role.

The only place that knows those names. Must not know how files are read or written. Settings that the
decoder cannot honour are refused by name; the decoder's rotary order is half-split, so q and k rows of
sources in interleaved order are permuted here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer.convert.checkpoint import (
    FLOAT_SOURCES,
    LAYER_ROLES,
    NO_LAYER,
    RawTensor,
    ReadRows,
    Spec,
    Tensor,
    array_tensor,
    role_shapes,
    row_bytes,
)
from pyinfer.convert.gguf import KeyValues
from pyinfer.errors import ModelFileError, UnsupportedError

GGUF_ARCHITECTURES = ("llama",)
HUGGINGFACE_ARCHITECTURES = ("LlamaForCausalLM",)

_GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.weight",
    "k": "blk.{}.attn_k.weight",
    "v": "blk.{}.attn_v.weight",
    "o": "blk.{}.attn_output.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}
_HUGGINGFACE_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
}
_LLAMA2C_NAMES = {role: role for role in ("embedding", "final_norm", "head")} | {
    role: role + ".{}" for role in LAYER_ROLES
}

_GGUF_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "use_parallel_residual": (False,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "pooling_type": (0,),
    "rope.scaling.attn_factor": (1.0,),
}
"""Settings (after the architecture's prefix) that are accepted only where they change nothing."""
_GGUF_READ = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length", "attention.scale", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
)  # fmt: skip
_GGUF_IGNORED = (
    "tensor_data_layout", "attention.layer_norm_epsilon", "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
)  # fmt: skip
"""Settings that describe training or the converter and change no result."""


@dataclass(frozen=True)
class Model:
    """What a family file makes of a checkpoint."""

    spec: Spec
    tensors: tuple[Tensor, ...]


def _places(spec: Spec) -> list[tuple[str, int]]:
    """Every (role, layer) that a model has, in the order of the file: embedding, layers, norm, head."""
    layers = [(role, layer) for layer in range(spec.n_layers) for role in LAYER_ROLES]
    tail = [("final_norm", NO_LAYER)] + ([] if spec.tied_head else [("head", NO_LAYER)])
    return [("embedding", NO_LAYER), *layers, *tail]


def _by_role(
    spec: Spec,
    raw: Mapping[str, RawTensor],
    names: Mapping[str, str],
    interleaved: bool,
    ignored: tuple[str, ...] = (),
) -> tuple[Tensor, ...]:
    """Gives each tensor its role; a missing, misshaped or unknown one is refused by name."""
    shapes, left = role_shapes(spec), dict(raw)
    tensors = []
    for role, layer in _places(spec):
        name = names[role].format(layer)
        if name not in left:
            raise ModelFileError(f"expected a tensor {name}, found none")
        tensor = _fit(left.pop(name), role, layer, shapes[role])
        tensors.append(_half_split(tensor, spec) if interleaved and role in ("q", "k") else tensor)
    unknown = [name for name in left if not name.endswith(ignored)] if ignored else list(left)
    if unknown:
        kind = "biases are" if unknown[0].endswith(".bias") else "this tensor is"
        raise UnsupportedError(f"{unknown[0]}: {kind} not part of the supported architecture")
    return tuple(tensors)


def _fit(raw: RawTensor, role: str, layer: int, shape: tuple[int, int]) -> Tensor:
    vector = shape[0] == 1 and role.endswith("norm")
    expected = shape[1:] if vector else shape
    if raw.shape != expected:
        raise ModelFileError(f"{raw.name}: expected the shape {list(expected)}, found {list(raw.shape)}")
    if vector and raw.source not in FLOAT_SOURCES:
        raise UnsupportedError(
            f"{raw.name}: expected a norm in {', '.join(FLOAT_SOURCES)}, found {raw.source}"
        )
    return Tensor(role, layer, raw.source, *shape, raw.name, raw.read)


def huggingface_module(path: str) -> tuple[str, int] | None:
    """Role and layer of a module by its path in Hugging Face models, `model.layers.3.self_attn.q_proj`; None if the
    family has no such module.
    """
    return _place_of(f"{path}.weight", _HUGGINGFACE_NAMES)


def huggingface_path(role: str, layer: int) -> str:
    """The reverse of `huggingface_module`."""
    return _HUGGINGFACE_NAMES[role].format(layer).removesuffix(".weight")


def gguf_tensor(name: str) -> tuple[str, int] | None:
    """Role and layer of a tensor by its name in GGUF files; None if the family has no such tensor."""
    return _place_of(name, _GGUF_NAMES)


def _place_of(name: str, names: Mapping[str, str]) -> tuple[str, int] | None:
    if "{" in name:
        return None
    number = re.search(r"\.(0|[1-9][0-9]{0,5})\.", name)
    template = name.replace(number[0], ".{}.", 1) if number else name
    role = next((role for role, known in names.items() if known == template), None)
    return (role, int(number[1]) if number else NO_LAYER) if role else None


def half_split_order(rows: int, head_dim: int, rope_dim: int) -> NDArray[np.int64]:
    """For each row in half-split order, its row in interleaved order; dimensions past `rope_dim` stay
    where they are.
    """
    head = np.arange(head_dim)
    head[:rope_dim] = np.concatenate([np.arange(0, rope_dim, 2), np.arange(1, rope_dim, 2)])
    return (np.arange(0, rows, head_dim)[:, None] + head).reshape(-1)


def _half_split(tensor: Tensor, spec: Spec) -> Tensor:
    """The same tensor with its rows in half-split order; whole rows move, so no value changes."""
    order = half_split_order(tensor.rows, spec.head_dim, spec.rope_dim)
    return replace(tensor, read=_reordered(tensor, order))


def _reordered(tensor: Tensor, order: NDArray[np.int64]) -> ReadRows:
    size = row_bytes(tensor.source, tensor.cols)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        wanted = order[start:stop]
        first, last = int(wanted.min()), int(wanted.max())
        rows = tensor.read(first, last + 1).reshape(-1, size)
        return rows[wanted - first].reshape(-1)

    return read


def rope_frequencies(rope_dim: int, theta: float) -> NDArray[np.float64]:
    """Angle a position of each pair: theta^(-2i / rope_dim)."""
    if not (math.isfinite(theta) and theta > 0):
        raise ModelFileError(f"rope_theta: expected a finite number above 0, found {theta}")
    return theta ** (-np.arange(0, rope_dim, 2) / rope_dim)


def _with_rope(spec: Spec, tensors: tuple[Tensor, ...], frequencies: NDArray[np.float64]) -> Model:
    if spec.rope_dim == 0:
        return Model(spec, tensors)
    single = frequencies.astype(np.float32)
    if not np.isfinite(single).all():
        raise ModelFileError(
            f"rope frequencies: expected finite numbers, found {frequencies[~np.isfinite(single)][0]}"
        )
    return Model(spec, (tensors[0], array_tensor("rope_freqs", single), *tensors[1:]))


def from_gguf(keys: KeyValues, raw: Mapping[str, RawTensor], n_tokens: int) -> Model:
    """GGUF of architecture `llama`; `n_tokens` is the size of the tokenizer's vocabulary, 0 if there is
    none.
    """
    _refuse_gguf_settings(keys)
    if "token_embd.weight" not in raw or len(raw["token_embd.weight"].shape) != 2:
        raise ModelFileError("expected a matrix token_embd.weight, found none")
    n_vocab = raw["token_embd.weight"].shape[0]
    for what, count in (
        ("llama.vocab_size", keys.integer("llama.vocab_size", 1, 1 << 22, n_vocab)),
        ("tokens", n_tokens),
    ):
        if count not in (0, n_vocab):
            raise ModelFileError(f"{what}: expected {n_vocab} as token_embd.weight has rows, found {count}")
    spec = _gguf_spec(keys, n_vocab, tied="output.weight" not in raw).check()
    matrices = {name: tensor for name, tensor in raw.items() if name != "rope_freqs.weight"}
    tensors = _by_role(spec, matrices, _GGUF_NAMES, interleaved=True)
    return _with_rope(spec, tensors, _gguf_frequencies(keys, spec, raw))


def _refuse_gguf_settings(keys: KeyValues) -> None:
    for key in keys.names():
        name = key.removeprefix("llama.")
        if name == key or name in _GGUF_READ or name in _GGUF_IGNORED:
            continue
        if name not in _GGUF_NEUTRAL:
            raise UnsupportedError(f"{key}: this setting is not supported")
        if keys.scalar(key) not in _GGUF_NEUTRAL[name]:
            raise UnsupportedError(
                f"{key}: expected {_GGUF_NEUTRAL[name][0]}, found {keys.scalar(key)}, which is not supported"
            )


def _gguf_spec(keys: KeyValues, n_vocab: int, tied: bool) -> Spec:
    dim = keys.integer("llama.embedding_length", 1, 65536)
    n_heads = keys.integer("llama.attention.head_count", 1, 1024)
    head_dim = _gguf_head_dim(keys, dim, n_heads)
    scale = keys.number("llama.attention.scale", 0.0)
    return Spec(
        n_layers=keys.integer("llama.block_count", 1, 1024),
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=keys.integer("llama.attention.head_count_kv", 1, 1024, n_heads),
        head_dim=head_dim,
        n_ff=keys.integer("llama.feed_forward_length", 1, 1 << 20),
        n_vocab=n_vocab,
        context=keys.integer("llama.context_length", 1, 1 << 24),
        rope_dim=keys.integer("llama.rope.dimension_count", 0, 1024, head_dim),
        norm_eps=keys.number("llama.attention.layer_norm_rms_epsilon"),
        rope_magnitude=1.0,
        attention_scale=scale if scale != 0.0 else 1 / math.sqrt(head_dim),
        tied_head=tied,
    )


def _gguf_head_dim(keys: KeyValues, dim: int, n_heads: int) -> int:
    if "llama.attention.key_length" not in keys and dim % n_heads:
        raise ModelFileError(
            f"llama.attention.head_count: expected a divisor of llama.embedding_length {dim}, found {n_heads}"
        )
    head_dim = keys.integer("llama.attention.key_length", 2, 1024, dim // n_heads)
    value_length = keys.integer("llama.attention.value_length", 1, 1024, head_dim)
    if value_length != head_dim:
        raise UnsupportedError(
            f"llama.attention.value_length: expected {head_dim} as llama.attention.key_length, found {value_length}"
        )
    return head_dim


def _gguf_frequencies(keys: KeyValues, spec: Spec, raw: Mapping[str, RawTensor]) -> NDArray[np.float64]:
    frequencies = (
        rope_frequencies(spec.rope_dim, keys.number("llama.rope.freq_base", 10000.0))
        if spec.rope_dim
        else np.empty(0)
    )
    named = keys.text("llama.rope.scaling.type")
    kind = "linear" if named is None else named
    if kind not in ("none", "linear"):
        raise UnsupportedError(f"llama.rope.scaling.type: expected none or linear, found {kind!r}")
    factor = keys.number("llama.rope.scaling.factor", keys.number("llama.rope.scale_linear", 0.0))
    if kind == "linear" and factor != 0.0:
        frequencies = frequencies / _factor("llama.rope.scaling.factor", factor)
    if "rope_freqs.weight" in raw:
        frequencies = frequencies / _frequency_factors(raw["rope_freqs.weight"], spec)
    return frequencies


def _factor(key: str, value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (math.isfinite(value) and value > 0)
    ):
        raise ModelFileError(f"{key}: expected a finite number above 0, found {value!r}")
    return float(value)


def _frequency_factors(raw: RawTensor, spec: Spec) -> NDArray[np.float32]:
    if raw.shape != (spec.rope_dim // 2,) or raw.source != "F32":
        raise ModelFileError(
            f"{raw.name}: expected {spec.rope_dim // 2} values in F32, found {list(raw.shape)} in {raw.source}"
        )
    factors = raw.read(0, 1).view("<f4").astype(np.float32)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(
            f"{raw.name}: expected finite factors above 0, found {factors.min()} to {factors.max()}"
        )
    return factors


_HUGGINGFACE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "logit_scale": (1, None),
    "attention_multiplier": (None,),
    "residual_multiplier": (1, None),
    "embedding_multiplier": (1, None),
}
"""Settings of config.json that are accepted only where they change nothing; what is not listed anywhere,
transformers ignores too."""


class _Config:
    """Typed access to config.json."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelFileError(f"{key}: expected an integer, found {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        return default if value is None else _factor(key, value)


def from_huggingface(config: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Model:
    """Hugging Face directories of architecture LlamaForCausalLM."""
    for key, accepted in _HUGGINGFACE_NEUTRAL.items():
        if config.get(key, accepted[0]) not in accepted:
            raise UnsupportedError(
                f"{key}: expected {accepted[0]!r}, found {config[key]!r}, which is not supported"
            )
    spec = _huggingface_spec(_Config(config)).check()
    wanted = {
        name: tensor for name, tensor in raw.items() if not (spec.tied_head and name == "lm_head.weight")
    }
    tensors = _by_role(spec, wanted, _HUGGINGFACE_NAMES, interleaved=False, ignored=(".rotary_emb.inv_freq",))
    return _with_rope(spec, tensors, _huggingface_frequencies(config, spec))


def _huggingface_spec(config: _Config) -> Spec:
    dim, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if n_heads < 1 or (config.values.get("head_dim") is None and dim % n_heads):
        raise ModelFileError(f"num_attention_heads: expected a divisor of hidden_size {dim}, found {n_heads}")
    head_dim = config.integer("head_dim", dim // n_heads)
    if head_dim < 2:
        raise ModelFileError(f"head_dim: expected 2 or more, found {head_dim}")
    return Spec(
        n_layers=config.integer("num_hidden_layers"),
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=config.integer("num_key_value_heads", n_heads),
        head_dim=head_dim,
        n_ff=config.integer("intermediate_size"),
        n_vocab=config.integer("vocab_size"),
        context=config.integer("max_position_embeddings", 2048),
        rope_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_magnitude=1.0,
        attention_scale=1 / math.sqrt(head_dim),
        tied_head=config.values.get("tie_word_embeddings") is True,
    )


def _huggingface_frequencies(config: Mapping[str, Any], spec: Spec) -> NDArray[np.float64]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ModelFileError(f"rope_scaling: expected an object, found {rope!r}")
    theta = rope.get("rope_theta", config.get("rope_theta"))
    frequencies = rope_frequencies(spec.rope_dim, 10000.0 if theta is None else _factor("rope_theta", theta))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / _factor("rope_scaling.factor", rope.get("factor"))
    if kind == "llama3":
        return _llama3_frequencies(frequencies, rope)
    raise UnsupportedError(f"rope_scaling: expected the type default, linear or llama3, found {kind!r}")


def _llama3_frequencies(frequencies: NDArray[np.float64], rope: Mapping[str, Any]) -> NDArray[np.float64]:
    """Llama 3.1: long waves are slowed by `factor`, short ones stay, those between are blended (source:
    Meta's llama-models).
    """
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (_factor(f"rope_scaling.{name}", rope.get(name)) for name in names)
    if high <= low:
        raise ModelFileError(
            f"rope_scaling.high_freq_factor: expected more than low_freq_factor {low}, found {high}"
        )
    turns = original * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - blend) * frequencies / factor + blend * frequencies


def from_llama2c(spec: Spec, raw: Mapping[str, RawTensor]) -> Model:
    """llama2.c files, whose tensors have no names: the reader names them by role."""
    tensors = _by_role(spec.check(), raw, _LLAMA2C_NAMES, interleaved=True)
    return _with_rope(spec, tensors, rope_frequencies(spec.rope_dim, 10000.0))
