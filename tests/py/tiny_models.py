"""Random models of every shape as GGUF files, for tests that compare the engine with the reference.

Knows GGUF and the reference's block types, nothing of pyinfer. Weights are scaled so that activations stay near one and
logits spread over a few units: a wrong bit then shows in the probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_writer import Tensor, bpe_kv, float_bytes, spm_kv, write_gguf
from reference.dequant import BLOCKS, dequantize

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82),
    "Q3_K": (108,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where the f16 fields of a block are."""
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
         "IQ4_XS")  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One architecture; `types` maps a tensor's last name (attn_q, token_embd ...) to a type other than `kind`."""

    name: str
    dim: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_layers: int = 2
    n_vocab: int = 300
    head_dim: int = 0  # 0: dim / n_heads
    rope_dim: int = 0  # 0: head_dim
    rope_theta: float = 10000.0
    rope_divisors: bool = False
    tied: bool = False
    kind: str = "Q8_0"
    types: Mapping[str, str] = field(default_factory=dict)
    context: int = 512

    @property
    def d(self) -> int:
        """Dimensions a head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def rotating(self) -> int:
        """Dimensions of a head that rotate."""
        return self.rope_dim or self.d


_FLOAT = {"ffn_down": "F32"}  # a hidden size that is no multiple of 32 has no blocks
SHAPES = (
    Shape("smallest", 32, 2, 1, 32, n_layers=1, tied=True),
    Shape("heads_of_8", 64, 8, 4, 172, n_layers=3, tied=True, types=_FLOAT),
    Shape("one_kv_head", 64, 4, 1, 96, kind="Q4_0"),
    Shape("every_head_its_own", 128, 2, 2, 352, kind="Q4_1"),
    Shape("heads_of_80", 160, 2, 1, 224, kind="Q4_0", types={"output": "Q8_0"}),
    Shape("heads_of_128", 256, 4, 2, 288, head_dim=128, kind="Q4_1"),
    Shape("half_rotates", 64, 2, 2, 128, rope_dim=16, kind="Q5_1"),
    Shape("divided_frequencies", 64, 2, 1, 128, rope_theta=500000.0, rope_divisors=True, kind="Q5_0"),
    Shape("vocabulary_32001", 64, 2, 2, 64, n_layers=1, n_vocab=32001, kind="Q4_0"),
    Shape("vocabulary_32001_tied", 64, 2, 2, 64, n_layers=1, n_vocab=32001, tied=True),
    Shape("rows_of_576", 576, 9, 3, 1536, n_layers=1, tied=True, kind="Q4_1", types={"token_embd": "Q8_0"}),
    Shape("odd_everything", 36, 3, 1, 50, head_dim=10, n_vocab=301, kind="F16"),
    Shape(
        "mixed_types", 256, 4, 2, 256,
        types={"attn_q": "Q4_0", "attn_k": "Q4_1", "attn_v": "F16", "ffn_gate": "Q5_0", "ffn_up": "BF16",
               "ffn_down": "Q5_1", "attn_output": "F32", "token_embd": "F16", "output": "Q4_1"},
    ),
)  # fmt: skip
TYPE_SHAPES = tuple(Shape(f"all_{kind}", 256, 4, 2, 512, n_vocab=301, kind=kind) for kind in TYPES)


def named(name: str) -> Shape:
    """One of the shapes above."""
    return next(shape for shape in SHAPES + TYPE_SHAPES if shape.name == name)


def matrix(kind: str, rows: int, cols: int, spread: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bytes of a random matrix of one type whose values have the standard deviation `spread`."""
    values, size = BLOCKS[kind]
    if values == 1:
        return float_bytes(kind, (rng.standard_normal((rows, cols)) * spread).astype(np.float32))
    blocks = rng.integers(0, 256, (rows * cols // values, size), np.uint8)
    scales = rng.uniform(0.5, 1.5, (len(HALVES[kind]), len(blocks)))
    scales *= rng.choice([-1.0, 1.0], scales.shape)
    _set_halves(blocks, kind, scales)
    scales *= spread / float(dequantize(kind, blocks.reshape(-1)).std())
    _set_halves(blocks, kind, scales)
    return blocks.reshape(-1)


def _set_halves(blocks: NDArray[np.uint8], kind: str, scales: NDArray[np.float64]) -> None:
    for at, column in zip(HALVES[kind], scales, strict=True):
        blocks[:, at : at + 2] = column.astype("<f2").view(np.uint8).reshape(-1, 2)


def keys(shape: Shape) -> dict[str, Any]:
    """GGUF key/values of a shape, with a tokenizer of its vocabulary's size."""
    return {
        "general.architecture": "llama",
        "general.name": shape.name,
        "llama.block_count": shape.n_layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.dim,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv_heads,
        "llama.attention.key_length": shape.d,
        "llama.attention.value_length": shape.d,
        "llama.rope.dimension_count": shape.rotating,
        "llama.rope.freq_base": shape.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": shape.n_vocab,
        **(bpe_kv(shape.n_vocab) if shape.tied else spm_kv(shape.n_vocab)),
    }


def _matrices(shape: Shape) -> dict[str, tuple[int, int, float]]:
    """Full name -> (rows, cols, standard deviation)."""
    q, kv, into = shape.n_heads * shape.d, shape.n_kv_heads * shape.d, shape.dim**-0.5
    made = {"token_embd": (shape.n_vocab, shape.dim, 3 * into if shape.tied else 1.0)}
    if not shape.tied:
        made["output"] = (shape.n_vocab, shape.dim, 3 * into)
    for i in range(shape.n_layers):
        made |= {
            f"blk.{i}.attn_q": (q, shape.dim, 1.5 * into),
            f"blk.{i}.attn_k": (kv, shape.dim, 1.5 * into),
            f"blk.{i}.attn_v": (kv, shape.dim, into),
            f"blk.{i}.attn_output": (shape.dim, q, q**-0.5),
            f"blk.{i}.ffn_gate": (shape.n_ff, shape.dim, 1.5 * into),
            f"blk.{i}.ffn_up": (shape.n_ff, shape.dim, 1.5 * into),
            f"blk.{i}.ffn_down": (shape.dim, shape.n_ff, shape.n_ff**-0.5),
        }
    return made


def _vectors(shape: Shape) -> list[str]:
    return [
        "output_norm",
        *(f"blk.{i}.{n}" for i in range(shape.n_layers) for n in ("attn_norm", "ffn_norm")),
    ]


def write(shape: Shape, path: Path, seed: int = 0) -> Path:
    """Writes the GGUF file of a shape; the same seed gives the same bytes."""
    rng = np.random.default_rng([seed, *shape.name.encode()])
    tensors = []
    for name, (rows, cols, spread) in _matrices(shape).items():
        kind = shape.types.get(name.rpartition(".")[2], shape.kind)
        tensors.append(Tensor(f"{name}.weight", kind, rows, cols, matrix(kind, rows, cols, spread, rng)))
    for name in _vectors(shape):
        gain = (1 + 0.2 * rng.standard_normal(shape.dim)).astype(np.float32)
        tensors.append(Tensor(f"{name}.weight", "F32", 0, shape.dim, float_bytes("F32", gain)))
    if shape.rope_divisors:
        divisors = np.geomspace(1, 8, shape.rotating // 2).astype(np.float32)
        tensors.append(Tensor("rope_freqs.weight", "F32", 0, len(divisors), float_bytes("F32", divisors)))
    return write_gguf(path, keys(shape), tensors)


def tokens(shape: Shape, n: int, seed: int = 0) -> list[int]:
    """`n` random ids of the vocabulary; the last id is among them."""
    ids = np.random.default_rng(seed).integers(0, shape.n_vocab, n)
    ids[n // 2] = shape.n_vocab - 1
    return [int(i) for i in ids]
