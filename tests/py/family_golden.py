"""The tiny models of families that tests/golden/make_families.py made with `transformers`, and GGUF files of them.

Knows the file formats and llama.cpp's names, nothing of pyinfer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_writer import Tensor, float_bytes, write_gguf
from reference import lora

FOLDER = Path(__file__).parents[1] / "golden" / "families"
NAMES = tuple(sorted(path.name for path in FOLDER.iterdir()))


@dataclass(frozen=True)
class Text:
    """Tokens and what `transformers` makes of them."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]  # (positions, vocabulary)


def texts(name: str) -> Iterator[Text]:
    """The texts of a family, shortest first."""
    with np.load(FOLDER / name / "logits.npz") as kept:
        for i in range(len(kept.files) // 3):
            yield Text(kept[f"tokens{i}"].astype(np.int32), kept[f"positions{i}"], kept[f"logits{i}"])


def config(name: str) -> dict[str, Any]:
    """config.json."""
    found: dict[str, Any] = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
    return found


# GGUF, as llama.cpp's converter writes it

_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_GEMMA_LAYER = {
    **_LAYER, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ARCHITECTURES = {
    "llama": "llama", "llama_linear": "llama", "llama_yarn": "llama", "mistral": "llama", "qwen2": "qwen2",
    "qwen3": "qwen3", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3", "smollm3": "smollm3",
}  # fmt: skip
"""What a GGUF file can say of the families: dynamic scaling it cannot."""


def gguf_name(name: str, gemma: bool) -> str:
    """llama.cpp's name of a tensor."""
    stem, _, leaf = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{leaf}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{(_GEMMA_LAYER if gemma else _LAYER)[inner]}.{leaf}"


def interleaved(values: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of q or k, or values of their biases, with the halves of each head interleaved."""
    heads = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)


def write(
    name: str,
    path: Path,
    more: Mapping[str, Any] | None = None,
    vectors: Mapping[str, list[float]] | None = None,
) -> Path:
    """Writes the GGUF file of a family: matrices in F16, vectors in F32; `more` are keys to add, replace or, with None,
    leave out, `vectors` tensors to add.
    """
    architecture, settings = ARCHITECTURES[name], config(name)
    gemma = architecture.startswith("gemma")
    tensors = []
    for source, values in lora.safetensors(FOLDER / name / "model.safetensors").items():
        if architecture in ("llama", "smollm3") and ("q_proj" in source or "k_proj" in source):
            values = interleaved(values, settings["head_dim"])
        if gemma and source.endswith("norm.weight"):
            values = values.astype(np.float32) + np.float32(1)
        kind, rows = ("F16", values.shape[0]) if values.ndim == 2 else ("F32", 0)
        data = float_bytes(kind, values.astype(np.float32))
        tensors.append(Tensor(gguf_name(source, gemma), kind, rows, values.shape[-1], data))
    keys = {f"{architecture}.{key}": value for key, value in _keys(name, settings).items()}
    keys |= {"general.architecture": architecture, **(more or {})}
    wanted = {key: value for key, value in keys.items() if value is not None}
    return write_gguf(path, wanted, [*tensors, *_vectors(_factors(settings) | dict(vectors or {}))])


def _vectors(values: Mapping[str, list[float]]) -> list[Tensor]:
    return [
        Tensor(name, "F32", 0, len(array), float_bytes("F32", np.array(array, np.float32)))
        for name, array in values.items()
    ]


def _rope(settings: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = settings["rope_parameters"]
    return found.get("full_attention", found)


def _keys(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    rope = _rope(settings)
    keys: dict[str, Any] = {
        "block_count": settings["num_hidden_layers"],
        "context_length": settings["max_position_embeddings"],
        "embedding_length": settings["hidden_size"],
        "feed_forward_length": settings["intermediate_size"],
        "attention.head_count": settings["num_attention_heads"],
        "attention.head_count_kv": settings["num_key_value_heads"],
        "attention.key_length": settings["head_dim"],
        "attention.value_length": settings["head_dim"],
        "attention.layer_norm_rms_epsilon": settings["rms_norm_eps"],
        "rope.dimension_count": int(settings["head_dim"] * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": settings["vocab_size"],
    }
    if rope["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        keys |= {f"rope.scaling.yarn_{beta}": rope[beta] for beta in ("beta_fast", "beta_slow")}
    if "original_max_position_embeddings" in rope and rope["rope_type"] != "llama3":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = settings["max_position_embeddings"] / original
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(stretch) / math.log(original))
    if name in ("mistral", "phi3", "gemma2", "gemma3"):
        keys["attention.sliding_window"] = settings["sliding_window"]
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if settings.get(cap) is not None:
            keys[cap] = settings[cap]
    return keys


def _factors(settings: dict[str, Any]) -> dict[str, list[float]]:
    """Divisors of frequencies, where llama.cpp's converter stores them as tensors."""
    rope = _rope(settings)
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in ("short", "long")}
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(settings["head_dim"], rope)}
    return {}


def _llama3_divisors(head_dim: int, rope: dict[str, Any]) -> list[float]:
    """Wavelengths beyond original / low are divided by the factor, those below original / high are not."""
    original, low, high = (
        rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    divisors = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = min(max((original / wave - low) / (high - low), 0), 1)
        divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return divisors
