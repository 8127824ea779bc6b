"""Makes the golden files beside it from implementations that are not ours; run it only to change them.

    pip install numpy gguf==0.19.0 llama-cpp-python==0.3.36
    python tests/golden/make.py SmolLM2-135M-Instruct.Q4_1.gguf

dequant.npz  random blocks of every GGUF type that the converter reads, and their values by the `gguf` package
prose.json   the ids of prose.txt in SmolLM2's vocabulary by llama.cpp, and its most likely token after each of them
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TYPES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K",
         "IQ4_NL", "IQ4_XS")  # fmt: skip
HALVES_AT = {
    "F16": (0,), "BF16": (), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,), "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}  # fmt: skip
VALUES = 1024
POSITIONS = 96


def random_blocks(
    rng: np.random.Generator, n_blocks: int, block_bytes: int, halves_at: tuple[int, ...]
) -> np.ndarray:
    """Random bytes whose f16 fields are finite numbers of either sign, subnormal ones among them."""
    blocks = rng.integers(0, 256, (n_blocks, block_bytes), np.uint8)
    for at in halves_at:
        scales = rng.normal(size=n_blocks) * 10.0 ** rng.uniform(-7, 0, n_blocks)
        blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks


def make_dequant() -> None:
    """Writes dequant.npz: `<type>_blocks` as bytes, `<type>_values` as float32."""
    import gguf

    rng, arrays = np.random.default_rng(20), {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random_blocks(rng, VALUES // values, size, HALVES_AT[name])
        if name == "BF16":
            blocks = (rng.normal(size=VALUES).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
        arrays[f"{name}_blocks"] = blocks.reshape(-1)
        arrays[f"{name}_values"] = (
            gguf.quants.dequantize(blocks.reshape(-1), kind).astype(np.float32).reshape(-1)
        )
    np.savez_compressed(HERE / "dequant.npz", **arrays)


def make_prose(model: str) -> None:
    """Writes prose.json."""
    from llama_cpp import Llama

    llama = Llama(model, n_ctx=512, logits_all=True, verbose=False)
    ids = llama.tokenize((HERE / "prose.txt").read_bytes(), add_bos=True, special=False)
    llama.eval(ids[:POSITIONS])
    best = [int(row.argmax()) for row in llama.scores[:POSITIONS]]
    text = json.dumps({"ids": ids, "llama_cpp_best": best})
    (HERE / "prose.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_dequant()
    make_prose(sys.argv[1])
