"""Writes a random LoRA adapter for all matrices of a model's layers as a GGUF file that every engine reads.

    python bench/make_adapter.py MODEL.gguf 16 adapter.gguf

Values are halves, as converters write them, of a size that shows in the logits. `write_peft` writes the same values as
a PEFT folder, where rows of q and k have another order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

import gguf_model
from shapes import Shape

PEFT_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
Halves = NDArray[np.float16]


def _factors(shape: Shape, rank: int, seed: int) -> Iterator[tuple[str, Halves, Halves]]:
    """(name of the matrix, A, B) of all matrices."""
    rng = np.random.default_rng(seed)
    for layer in range(shape.n_layers):
        for name, rows, cols in shape.matrices(layer):
            a = rng.standard_normal((rank, cols), np.float32) * cols**-0.5
            b = rng.standard_normal((rows, rank), np.float32) * 0.05
            yield name, a.astype(np.float16), b.astype(np.float16)


def write_peft(shape: Shape, rank: int, folder: Path, seed: int = 0) -> Path:
    """Writes the adapter of this rank as a PEFT folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    tensors: dict[str, NDArray[np.float16]] = {}
    for name, a, b in _factors(shape, rank, seed):
        _, layer, short, _ = name.split(".")
        prefix = f"base_model.model.model.layers.{layer}.{PEFT_NAMES[short]}"
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name.rpartition(".")[2] for name in PEFT_NAMES.values()]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write(shape: Shape, rank: int, path: Path, seed: int = 0) -> Path:
    """Writes the adapter of this rank; the same seed gives the same bytes."""
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for name, a, b in _factors(shape, rank, seed):
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


if __name__ == "__main__":
    write(gguf_model.read(Path(sys.argv[1])).shape, int(sys.argv[2]), Path(sys.argv[3]))
