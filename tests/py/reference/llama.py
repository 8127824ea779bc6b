"""The LLaMA forward pass in float64 over dequantised weights, as the paper has it. Knows nothing of pyinfer.

y = x / sqrt(mean(x^2) + eps) * g; q, k rotate in interleaved pairs (2i, 2i + 1) as GGUF stores them; attention is
softmax(q k^T / sqrt(head_dim)) v with n_heads / n_kv_heads query heads a key head; the feed-forward layer is
down(silu(gate(x)) * up(x)). `Features` are what families add to that. `Rounding` adds the two approximations
that the engine makes on purpose, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gguf import Gguf, Tensor
from .model_bin import FLAGS, ModelBin, Record

Doubles = NDArray[np.float64]
FLOAT32_ROUNDING = 2.0**-24
QUERIES = 256  # rows of attention scores held at once
PAGE = 64  # positions that the cache keeps together


@dataclass(frozen=True)
class Rounding:
    """What is rounded on the way; by default nothing."""

    int8_activations: bool = False  # inputs of linear layers whose weights are integers: see `as_int8`
    f16_cache: bool = False  # keys (after rotation) and values as IEEE halves
    i16_cache: bool = False  # both as integers of 13 and 14 bits, see _attend
    float32_noise: int | None = None  # seed: every linear output off by up to what float32 sums may err


@dataclass(frozen=True)
class Features:
    """What a family has besides: norms of heads, norms behind blocks, GeGLU, soft caps, windows, other
    rotations, biases.
    """

    flags: frozenset[str] = frozenset()  # by their names in model.bin
    embedding_scale: float = 0.0  # 0: none, here and below
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    attention_scale: float = 0.0
    rope_magnitude: float = 1.0
    window: int = 0
    windowed: tuple[int, ...] = ()
    unrotated: tuple[int, ...] = ()
    local_frequencies: Doubles | None = None  # of layers with a window


@dataclass(frozen=True)
class Spec:
    """The numbers of one model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int
    norm_eps: float
    features: Features = Features()


@dataclass(frozen=True)
class Weights:
    """A model: its numbers, radians a position of each rotating pair, and float32 tensors by their GGUF name."""

    spec: Spec
    frequencies: Doubles  # (rope_dim / 2,)
    tensor: Callable[[str], NDArray[Any]]  # name without ".weight" -> (rows, cols) or (cols,)
    is_quantized: Callable[[str], bool]  # whether that tensor is stored as integers with scales
    output: Callable[[str, Doubles, Doubles], Doubles] = lambda name, x, y: (
        y
    )  # of a linear layer, from x and W x


def from_gguf(file: Gguf) -> Weights:
    """The model of a GGUF file, with GGUF's defaults for absent keys."""
    kv = file.kv
    n_heads = kv["llama.attention.head_count"]
    head_dim = kv.get("llama.attention.key_length", kv["llama.embedding_length"] // n_heads)
    spec = Spec(
        n_layers=kv["llama.block_count"],
        n_heads=n_heads,
        n_kv_heads=kv.get("llama.attention.head_count_kv", n_heads),
        head_dim=head_dim,
        rope_dim=kv.get("llama.rope.dimension_count", head_dim),
        norm_eps=kv["llama.attention.layer_norm_rms_epsilon"],
    )
    tied = "output.weight" not in file.tensors

    def stored(name: str) -> Tensor:
        return file.tensors[("token_embd" if tied and name == "output" else name) + ".weight"]

    return Weights(
        spec,
        _gguf_frequencies(file, spec),
        lambda name: stored(name).values(),
        lambda name: stored(name).kind not in ("F32", "F16", "BF16"),
    )


def _gguf_frequencies(file: Gguf, spec: Spec) -> Doubles:
    theta = file.kv.get("llama.rope.freq_base", 10000.0)
    base = theta ** (-np.arange(0, spec.rope_dim, 2, dtype=np.float64) / spec.rope_dim)
    divisor = file.tensors.get("rope_freqs.weight")
    return base if divisor is None else base / divisor.values().astype(np.float64)


_ROLES = {
    "token_embd": "embedding", "output_norm": "final_norm", "output": "head",
    "attn_norm": "attn_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_norm": "ffn_norm", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
    "attn_q_norm": "q_norm", "attn_k_norm": "k_norm", "post_attention_norm": "post_attn_norm",
    "post_ffw_norm": "post_ffn_norm", "attn_q_bias": "q_bias", "attn_k_bias": "k_bias", "attn_v_bias": "v_bias",
    "attn_output_bias": "o_bias",
}  # fmt: skip


def from_model_bin(file: ModelBin) -> Weights:
    """The model of a model.bin: q and k rows go back from half-split to interleaved order."""
    s = file.spec
    spec = Spec(
        *(int(s[n]) for n in ("n_layers", "n_heads", "n_kv_heads", "head_dim", "rope_dim")),
        s["norm_eps"],
        _features(file),
    )
    tied = bool(int(s["flags"]) & 1)

    def stored(name: str) -> Record:
        block, _, rest = name.rpartition(".")
        role = "embedding" if tied and name == "output" else _ROLES[rest]
        return file.tensor(role, int(block.removeprefix("blk.")) if block else -1)

    def tensor(name: str) -> NDArray[np.float32]:
        record = stored(name)
        values = record.values()
        if record.role in ("q_bias", "k_bias", "q_norm", "k_norm"):
            return interleaved(values.reshape(-1, 1), spec)[:, 0]
        return interleaved(values, spec) if record.role in ("q", "k") else values.squeeze()

    frequencies = file.tensor("rope_freqs").values()[0] if spec.rope_dim else np.empty(0)
    return Weights(
        spec, frequencies.astype(np.float64), tensor, lambda name: stored(name).format.startswith("q")
    )


def _features(file: ModelBin) -> Features:
    numbers = ("embedding_scale", "attn_softcap", "logit_softcap", "attention_scale", "rope_magnitude")
    local = file.tensor("rope_freqs_local").values()[0] if file.has("local_rope") else None
    return Features(
        flags=frozenset(flag for flag in FLAGS if file.has(flag)),
        window=int(file.spec["window"]),
        local_frequencies=None if local is None else local.astype(np.float64),
        **{name: float(file.spec[name]) for name in numbers},
        **file.marks,
    )


def interleaved(rows: NDArray[Any], spec: Spec) -> NDArray[Any]:
    """Rows of q or k, from half-split order."""
    heads = rows.reshape(-1, spec.head_dim, rows.shape[1]).copy()
    even, odd = heads[:, : spec.rope_dim // 2].copy(), heads[:, spec.rope_dim // 2 : spec.rope_dim].copy()
    heads[:, 0 : spec.rope_dim : 2], heads[:, 1 : spec.rope_dim : 2] = even, odd
    return heads.reshape(rows.shape)


def _integers(x: Doubles, most: float) -> tuple[Doubles, Doubles]:
    """`x` (..., n) as integers up to `most` and their scales (..., 1): scale = max|x| / most, nearest even."""
    scale = (np.abs(x).max(axis=-1, keepdims=True) / most).astype(np.float32).astype(np.float64)
    return np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)), scale


def as_int8(x: Doubles, name: str) -> Doubles:
    """The input `x` (n, cols) of a linear layer as integers represent it.

    With a scale for 32 columns into attention and the head, there with int8 for what that lacks besides, else for 64.
    """
    if name == "output":
        rounded = _quantized(x, 32)
        return rounded + _quantized(x - rounded, 32)
    return _quantized(x, 32 if name.endswith(("attn_q", "attn_k", "attn_v")) else 64)


def _quantized(x: Doubles, shared: int) -> Doubles:
    """`x` (n, cols) as int8 represents it where `shared` columns share a scale: max|x| / 127, nearest even."""
    n, cols = x.shape
    blocks = np.pad(x, ((0, 0), (0, -cols % shared))).reshape(n, -1, shared)
    scale = (np.abs(blocks).max(axis=2, keepdims=True) / 127.0).astype(np.float32).astype(np.float64)
    integers = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    return (integers * scale).reshape(n, -1)[:, :cols]


class _Machine:
    """Linear layers and cache of one model as a given rounding computes them."""

    def __init__(self, weights: Weights, rounding: Rounding) -> None:
        self.weights, self.rounding = weights, rounding
        self.noise = np.random.default_rng(rounding.float32_noise)

    def values(self, name: str) -> Doubles:
        return self.weights.tensor(name).astype(np.float64)

    def linear(self, x: Doubles, *names: str) -> list[Doubles]:
        """Returns x W^T for each named W (rows, cols)."""
        rounded = as_int8(x, names[0]) if self.rounding.int8_activations else x
        return [
            self.weights.output(
                name, x, self._product(rounded if self.weights.is_quantized(name) else x, self.values(name))
            )
            for name in names
        ]

    def _product(self, a: Doubles, w: Doubles) -> Doubles:
        y: Doubles = a @ w.T
        if self.rounding.float32_noise is None:
            return y
        bound = w.shape[1] * FLOAT32_ROUNDING * (np.abs(a) @ np.abs(w).T)  # of any order of summation
        return y + bound * self.noise.uniform(-1, 1, y.shape)

    def cached(self, x: Doubles) -> Doubles:
        return x.astype(np.float16).astype(np.float64) if self.rounding.f16_cache else x


def _norm(x: Doubles, gain: Doubles, eps: float) -> Doubles:
    out: Doubles = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain
    return out


def _rotated(x: Doubles, angles: Doubles, magnitude: float = 1.0) -> Doubles:
    """`x` (n, heads, head_dim), its first 2 * pairs dimensions rotated in pairs (2i, 2i + 1) by `angles` (n, pairs)."""
    n_rotating = 2 * angles.shape[1]
    cos, sin = magnitude * np.cos(angles)[:, None, :], magnitude * np.sin(angles)[:, None, :]
    even, odd = x[..., 0:n_rotating:2], x[..., 1:n_rotating:2]
    out = x.copy()
    out[..., 0:n_rotating:2] = even * cos - odd * sin
    out[..., 1:n_rotating:2] = even * sin + odd * cos
    return out


def _capped(x: Doubles, cap: float) -> Doubles:
    return cap * np.tanh(x / cap) if cap else x


def _rounded(weights: Doubles, scales: Doubles) -> Doubles:
    """`weights` (m, n) as they meet values of scales `scales` (n, 1): times these, page by page of 64 positions, as
    integers up to 8191.
    """
    n = weights.shape[1]
    scaled = np.pad(weights * scales.T, ((0, 0), (0, -n % PAGE))).reshape(len(weights), -1, PAGE)
    integers, pages = _integers(scaled, 8191)
    flat = (integers * pages).reshape(len(weights), -1)[:, :n]
    return np.divide(flat, scales.T, out=np.zeros_like(flat), where=scales.T > 0)


def _attend(
    q: Doubles, k: Doubles, v: Doubles, features: Features, window: int, integers: bool = False
) -> Doubles:
    """Causal attention: q (n, heads, d), k and v (n, kv_heads, d) -> (n, heads * d); `window` 0 sees all.

    With `integers` keys, values and queries have a scale a position and head, weights one a page and query.
    """
    scales = np.zeros((*v.shape[:2], 1))
    if integers:
        (q, q_scale), (k, k_scale), (v, scales) = _integers(q, 4095), _integers(k, 8191), _integers(v, 4095)
        q, k, v = q * q_scale, k * k_scale, v * scales
    n, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    scale = features.attention_scale or 1 / np.sqrt(head_dim)
    out = np.empty_like(q)
    for head in range(n_heads):
        keys, values = k[:, head // group], v[:, head // group]
        for first in range(0, n, QUERIES):
            last = min(first + QUERIES, n)
            scores = _capped(q[first:last, head] @ keys[:last].T * scale, features.attn_softcap)
            behind = np.arange(first, last)[:, None] - np.arange(last)[None, :]
            scores[(behind < 0) | (behind >= (window or n))] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            met = _rounded(weights, scales[:last, head // group]) if integers else weights
            out[first:last, head] = met @ values[:last] / weights.sum(axis=1, keepdims=True)
    return out.reshape(n, n_heads * head_dim)


def _attention(machine: _Machine, layer: int, x: Doubles, angles: Doubles) -> Doubles:
    spec, prefix = machine.weights.spec, f"blk.{layer}."
    features = spec.features
    window = features.window if layer in features.windowed else 0
    magnitude = features.rope_magnitude
    if window and features.local_frequencies is not None:
        angles, magnitude = np.arange(len(x))[:, None] * features.local_frequencies, 1.0
    if layer in features.unrotated:
        angles = angles[:, :0]
    names = [f"{prefix}attn_{name}" for name in "qkv"]
    projections = machine.linear(x, *names)
    if "qkv_bias" in features.flags:
        projections = [y + machine.values(f"{n}_bias") for y, n in zip(projections, names, strict=True)]
    q, k, v = (y.reshape(len(x), -1, spec.head_dim) for y in projections)
    if "qk_norm" in features.flags:
        q, k = (
            _norm(y, machine.values(f"{n}_norm"), spec.norm_eps) for y, n in zip((q, k), names, strict=False)
        )
    q, k = _rotated(q, angles, magnitude), _rotated(k, angles, magnitude)
    mixed = machine.linear(
        _attend(q, machine.cached(k), machine.cached(v), features, window, machine.rounding.i16_cache),
        f"{prefix}attn_output",
    )[0]
    return mixed + machine.values(f"{prefix}attn_output_bias") if "o_bias" in features.flags else mixed


def _feed_forward(machine: _Machine, layer: int, x: Doubles) -> Doubles:
    prefix = f"blk.{layer}."
    gate, up = machine.linear(x, f"{prefix}ffn_gate", f"{prefix}ffn_up")
    if "gelu" in machine.weights.spec.features.flags:
        opened = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    else:
        opened = gate / (1.0 + np.exp(-gate))
    return machine.linear(opened * up, f"{prefix}ffn_down")[0]


def logits(weights: Weights, tokens: list[int], rounding: Rounding | None = None) -> Doubles:
    """Logits after each token, shape (n_tokens, n_vocab)."""
    machine, spec = _Machine(weights, rounding or Rounding()), weights.spec
    angles = np.arange(len(tokens))[:, None] * weights.frequencies[None, :]
    x = weights.tensor("token_embd")[tokens].astype(np.float64) * (spec.features.embedding_scale or 1.0)

    def norm(y: Doubles, name: str) -> Doubles:
        return _norm(y, machine.values(name), spec.norm_eps)

    def behind(y: Doubles, name: str) -> Doubles:
        return norm(y, name) if "post_norms" in spec.features.flags else y

    for layer in range(spec.n_layers):
        p = f"blk.{layer}."
        mixed = _attention(machine, layer, norm(x, f"{p}attn_norm"), angles)
        x = x + behind(mixed, f"{p}post_attention_norm")
        x = x + behind(_feed_forward(machine, layer, norm(x, f"{p}ffn_norm")), f"{p}post_ffw_norm")
    return _capped(machine.linear(norm(x, "output_norm"), "output")[0], spec.features.logit_softcap)


def log_softmax(x: Doubles) -> Doubles:
    """Natural logarithms of the probabilities, over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    out: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def kl(p_logits: Doubles, q_logits: NDArray[Any]) -> Doubles:
    """KL(p || q) of each row in nats, in float64; shape (n,)."""
    p, q = log_softmax(p_logits), log_softmax(q_logits.astype(np.float64))
    out: Doubles = (np.exp(p) * (p - q)).sum(axis=-1)
    return out
