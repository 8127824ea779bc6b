"""Reads from a GGUF file what a token costs: the shape, and the bytes of the weights that every token reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from cases import Case
from shapes import Shape


@dataclass(frozen=True)
class Work:
    """What a case must do at least: bytes read from memory and multiply-accumulates in matrices of weights."""

    bytes: float
    macs: float


@dataclass(frozen=True)
class GgufModel:
    """A model file: its shape, its size and the bytes of layers and head."""

    path: Path
    shape: Shape
    file_bytes: int
    weight_bytes: int
    head_macs: int
    types: dict[str, int]

    def work(self, case: Case) -> Work:
        """The least work of a case. Attention counts as the bytes of its cache; the products with it are left out."""
        depths = range(case.depth, case.capacity)
        if case.kind == "prefill":
            cache = self.shape.kv_bytes * case.tokens
            return Work(self.weight_bytes + cache, case.tokens * self.shape.layer_macs + self.head_macs)
        cache = self.shape.kv_bytes * sum(depths) * case.sequences
        macs = case.tokens * case.sequences * (self.shape.layer_macs + self.head_macs)
        return Work(case.tokens * self.weight_bytes + cache, macs)


def read(path: Path) -> GgufModel:
    """Reads the header of a GGUF file of architecture llama."""
    reader = GGUFReader(path)

    def number(key: str) -> Any:
        field = reader.get_field(f"llama.{key}")
        if field is None:
            raise ValueError(f"{path}: expected a key llama.{key}, found none")
        return field.contents()

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tied = "output.weight" not in tensors
    n_vocab = int(tensors["token_embd.weight"].shape[1])
    shape = Shape(
        dim=number("embedding_length"),
        n_layers=number("block_count"),
        n_heads=number("attention.head_count"),
        n_kv_heads=number("attention.head_count_kv"),
        n_ff=number("feed_forward_length"),
        n_vocab=n_vocab,
        tied=tied,
        context=number("context_length"),
    )
    types: dict[str, int] = {}
    read_bytes = 0
    for name, tensor in tensors.items():
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
        if tied or name != "token_embd.weight":
            read_bytes += int(tensor.n_bytes)
    return GgufModel(path, shape, path.stat().st_size, read_bytes, n_vocab * shape.dim, types)
