"""The shapes of the benchmark models and the work one token costs them. Knows no file format and no engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Dimensions of a LLaMA-like decoder."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_vocab: int
    tied: bool = False
    rope_theta: float = 10000.0
    context: int = 8192

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of the keys, and of the values, of one position in one layer."""
        return self.n_kv_heads * self.head_dim

    @property
    def layer_macs(self) -> int:
        """Multiply-accumulates one token costs in the matrices of all layers, without the head and attention."""
        attention = self.dim * (2 * self.dim + 2 * self.kv_dim)
        return self.n_layers * (attention + 3 * self.dim * self.n_ff)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the f16 keys and values of one position in all layers."""
        return 2 * 2 * self.kv_dim * self.n_layers

    def matrices(self, layer: int) -> list[tuple[str, int, int]]:
        """(GGUF name, rows, columns) of the matrices of one layer, in the order of the forward pass."""
        shapes = [
            ("attn_q", self.dim, self.dim),
            ("attn_k", self.kv_dim, self.dim),
            ("attn_v", self.kv_dim, self.dim),
            ("attn_output", self.dim, self.dim),
            ("ffn_gate", self.n_ff, self.dim),
            ("ffn_up", self.n_ff, self.dim),
            ("ffn_down", self.dim, self.n_ff),
        ]
        return [(f"blk.{layer}.{name}.weight", rows, cols) for name, rows, cols in shapes]


SHAPES: dict[str, Shape] = {
    "tiny": Shape(256, 2, 4, 2, 512, 2048),  # to try the harness itself
    "smollm2-135m": Shape(576, 30, 9, 3, 1536, 49152, tied=True, rope_theta=100000.0),
    "1.1b": Shape(2048, 22, 32, 4, 5632, 32000),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 8192, 128256, tied=True, rope_theta=500000.0),
    "7b": Shape(4096, 32, 32, 32, 11008, 32000),
}
