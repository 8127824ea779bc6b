"""Writes a random LoRA adapter for all matrices of a model's layers as a GGUF file that every engine reads.

    python bench/make_adapter.py MODEL.gguf 16 adapter.gguf

Values are halves, as converters write them, of a size that shows in the logits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

import gguf_model
from shapes import Shape


def write(shape: Shape, rank: int, path: Path, seed: int = 0) -> Path:
    """Writes the adapter of this rank; the same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(shape.n_layers):
        for name, rows, cols in shape.matrices(layer):
            a = rng.standard_normal((rank, cols)).astype(np.float32) * cols**-0.5
            b = rng.standard_normal((rows, rank)).astype(np.float32) * 0.05
            writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
            writer.add_tensor(f"{name}.lora_b", b.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    write(gguf_model.read(Path(sys.argv[1])).shape, int(sys.argv[2]), Path(sys.argv[3]))
