"""Writes models for benchmarks as GGUF files that every engine reads.

Either random weights at a real model's shape, or a real model with its matrices quantised anew:

    python bench/make_model.py 1.1b q4_k_m 1.1b-q4_k_m.gguf
    python bench/make_model.py --requantize SmolLM2-135M-Instruct.Q4_1.gguf q4_0 smollm2-q4_0.gguf

The mix of block types is the one that llama-quantize chooses for the same name. Random models hold a vocabulary without
meaning: they measure speed, not language.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    ReaderTensor,
    dequantize,
    quantize,
)
from numpy.typing import NDArray

from blocks import Pools, Type
from shapes import SHAPES, Shape

# name: (type of most matrices, type of the head, number of the mix in the file)
MIXES: dict[str, tuple[Type, Type, LlamaFileType]] = {
    "f16": (Type.F16, Type.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (Type.Q8_0, Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Type.Q4_0, Type.Q6_K, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (Type.Q4_1, Type.Q6_K, LlamaFileType.MOSTLY_Q4_1),
    "q4_k_m": (Type.Q4_K, Type.Q6_K, LlamaFileType.MOSTLY_Q4_K_M),
}
NARROW = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}  # for rows that are no multiple of 256
Matrix = NDArray[np.uint8]


def gets_more_bits(layer: int, n_layers: int) -> bool:
    """Whether Q4_K_M stores `attn_v` and `ffn_down` of this layer in Q6_K."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def matrix_type(mix: str, name: str, cols: int, n_layers: int, tied: bool) -> Type:
    """The block type that a mix gives to a matrix of this GGUF name and row length."""
    base, head, _ = MIXES[mix]
    kind = base
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        kind = head
    elif mix == "q4_k_m" and name.split(".")[-2] in ("attn_v", "ffn_down"):
        kind = Type.Q6_K if gets_more_bits(int(name.split(".")[1]), n_layers) else base
    return NARROW[kind] if kind in NARROW and cols % 256 else kind


def tensors(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """(name, rows, columns) of every tensor of a model; norms have one row."""
    yield "token_embd.weight", shape.n_vocab, shape.dim
    for layer in range(shape.n_layers):
        yield f"blk.{layer}.attn_norm.weight", 1, shape.dim
        yield f"blk.{layer}.ffn_norm.weight", 1, shape.dim
        yield from shape.matrices(layer)
    yield "output_norm.weight", 1, shape.dim
    if not shape.tied:
        yield "output.weight", shape.n_vocab, shape.dim


def add_shape(writer: GGUFWriter, shape: Shape, mix: str, name: str) -> None:
    """Writes the keys that describe the architecture."""
    writer.add_name(name)
    writer.add_file_type(MIXES[mix][2])
    writer.add_quantization_version(2)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.n_vocab)


def add_vocabulary(writer: GGUFWriter, n_vocab: int) -> None:
    """Writes a SentencePiece vocabulary: special tokens, bytes, printable ASCII characters, numbered words."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["\u2581", *(chr(code) for code in range(33, 127))]
    words = [f"\u2581w{i}" for i in range(n_vocab - len(special) - len(bytes_) - len(letters))]
    tokens = special + bytes_ + letters + words
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(n_vocab - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (n_vocab - 259))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def spread(name: str, cols: int) -> float:
    """Standard deviation of a matrix's weights: keeps activations near one; a wider head lets logits differ."""
    if name == "token_embd.weight":
        return 2.0 / math.sqrt(cols)
    return (3.0 if name == "output.weight" else 1.0) / math.sqrt(cols)


def write_random(shape: Shape, mix: str, path: Path, seed: int) -> None:
    """Writes a model of random weights, one tensor in memory at a time."""
    writer = GGUFWriter(path, "llama")
    add_shape(writer, shape, mix, f"random {path.stem}")
    add_vocabulary(writer, shape.n_vocab)
    kinds = {}
    for name, rows, cols in tensors(shape):
        if rows == 1:
            writer.add_tensor_info(name, (cols,), np.dtype(np.float32), 4 * cols)
            continue
        kinds[name] = matrix_type(mix, name, cols, shape.n_layers, shape.tied)
        values, width = GGML_QUANT_SIZES[kinds[name]]
        n_bytes = rows * cols // values * width
        writer.add_tensor_info(name, (rows, cols), np.dtype(np.float32), n_bytes, raw_dtype=kinds[name])
    open_data(writer)
    pools = Pools(seed)
    for name, rows, cols in tensors(shape):
        if rows == 1:
            writer.write_tensor_data(np.ones(cols, np.float32))
        else:
            writer.write_tensor_data(pools.matrix(kinds[name], rows, cols, spread(name, cols)))
    writer.close()


def open_data(writer: GGUFWriter) -> None:
    """Writes everything that stands before the weights."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def copy_keys(reader: GGUFReader, writer: GGUFWriter, mix: str) -> None:
    """Copies every key of a source except those that the writer sets itself."""
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in own:
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        value: Any = field.contents()
        writer.add_key_value(key, value, field.types[0], sub_type=sub_type)
    writer.add_file_type(MIXES[mix][2])
    writer.add_quantization_version(2)


def requantized(tensor: ReaderTensor, kind: Type) -> NDArray[Any]:
    """The tensor's data in another block type; unchanged if it has that type already."""
    if tensor.tensor_type == kind:
        return np.asarray(tensor.data)
    values = dequantize(np.asarray(tensor.data), tensor.tensor_type)
    return quantize(values, kind)


def write_requantized(source: Path, mix: str, path: Path) -> None:
    """Writes a copy of a model with its matrices in another mix, one tensor in memory at a time."""
    reader = GGUFReader(source)
    names = [tensor.name for tensor in reader.tensors]
    n_layers = sum(name.endswith(".attn_q.weight") for name in names)
    writer = GGUFWriter(path, "llama")
    copy_keys(reader, writer, mix)
    kinds = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        kinds[tensor.name] = Type.F32
        if len(shape) == 2:
            tied = "output.weight" not in names
            kinds[tensor.name] = matrix_type(mix, tensor.name, shape[1], n_layers, tied)
        values, width = GGML_QUANT_SIZES[kinds[tensor.name]]
        n_bytes = int(tensor.n_elements) // values * width
        writer.add_tensor_info(
            tensor.name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kinds[tensor.name]
        )
    open_data(writer)
    for tensor in reader.tensors:
        writer.write_tensor_data(requantized(tensor, kinds[tensor.name]))
    writer.close()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a GGUF model for benchmarks.")
    parser.add_argument("shape", nargs="?", choices=sorted(SHAPES), help="shape of a random model")
    parser.add_argument("mix", choices=sorted(MIXES), help="block types")
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--requantize", type=Path, metavar="SOURCE", help="take the weights of this GGUF file"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if (args.shape is None) == (args.requantize is None):
        parser.error("expected either a shape or --requantize SOURCE")
    return args


def main() -> int:
    """Writes one model; the output appears under its name only when it is whole."""
    args = parse()
    logging.getLogger("gguf").setLevel(logging.WARNING)
    part = args.output.with_name(args.output.name + ".part")
    start = time.perf_counter()
    try:
        if args.requantize:
            write_requantized(args.requantize, args.mix, part)
        else:
            write_random(SHAPES[args.shape], args.mix, part, args.seed)
        part.rename(args.output)
    finally:
        part.unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
