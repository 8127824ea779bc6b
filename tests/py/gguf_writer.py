"""Writes small GGUF files for tests: well-formed by default, malformed when a test asks for odd values.

Must not know pyinfer: it is the other side of the reader's contract.

    write_gguf(path, {"general.architecture": "llama", "general.name": "x"}, [Tensor("x.weight", "Q8_0", 4, 64, data)])
    write_llama(path, TinyLlama(types={"attn_q": "Q4_0"}), tokenizer="bpe")  # a tiny random model
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALARS = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
"""Scalar value types of GGUF: name -> (type id, struct format)."""
STRING, ARRAY = 8, 9

BLOCKS = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136),
}  # fmt: skip
"""Tensor types: name -> (type id, values a block, bytes a block)."""
_HALF_FIELDS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,), "Q2_K": (80, 82), "Q3_K": (108,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """A key's value with its GGUF type spelled out: `Typed("u64", 5)`; arrays: `Typed("u8", [1, 2])`."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Tensor:
    """A matrix of `rows` x `cols` (`rows` = 0 makes a vector) in the blocks of `kind`, row after row."""

    name: str
    kind: str
    rows: int
    cols: int
    data: NDArray[np.uint8] | bytes

    @property
    def dims(self) -> list[int]:
        """GGUF lists the fastest dimension first."""
        return [self.cols, self.rows] if self.rows else [self.cols]


def pack_string(text: str | bytes) -> bytes:
    """Length (u64) and bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "f32"
    if isinstance(value, int):
        return "u32" if 0 <= value < 2**32 else "i32" if -(2**31) <= value < 0 else "u64"
    raise TypeError(f"no GGUF type for {value!r}")


def pack_value(value: Any) -> bytes:
    """Type id and value; Python's bool, int, float, str, lists of one of them, or `Typed`."""
    kind = None
    if isinstance(value, Typed):
        kind, value = value.kind, value.value
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", STRING) + pack_string(value)
    if isinstance(value, (list, tuple)):
        return struct.pack("<I", ARRAY) + _pack_array(value, kind)
    type_id, layout = SCALARS[kind or _kind_of(value)]
    return struct.pack("<I", type_id) + struct.pack(layout, value)


def _pack_array(items: Sequence[Any], kind: str | None) -> bytes:
    if items and isinstance(items[0], (str, bytes)):
        return struct.pack("<IQ", STRING, len(items)) + b"".join(pack_string(item) for item in items)
    type_id, layout = SCALARS[kind or (_kind_of(items[0]) if items else "u32")]
    return struct.pack("<IQ", type_id, len(items)) + b"".join(struct.pack(layout, item) for item in items)


def gguf_bytes(
    kv: Mapping[str, Any], tensors: Sequence[Tensor] = (), *, version: int = 3, alignment: int = 32
) -> bytes:
    """The bytes of a GGUF file; `general.alignment` is written when `alignment` is not 32."""
    pairs = dict(kv) if alignment == 32 else {**kv, "general.alignment": alignment}
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(pack_string(key) + pack_value(value) for key, value in pairs.items())
    body = b""
    for tensor in tensors:
        body += b"\0" * (-len(body) % alignment)
        head += pack_string(tensor.name) + struct.pack("<I", len(tensor.dims))
        head += b"".join(struct.pack("<Q", n) for n in tensor.dims)
        head += struct.pack("<IQ", BLOCKS[tensor.kind][0], len(body))
        body += bytes(tensor.data)
    return head + b"\0" * (-len(head) % alignment) + body


def write_gguf(
    path: str | Path,
    kv: Mapping[str, Any],
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Writes a GGUF file and returns its path."""
    path = Path(path)
    path.write_bytes(gguf_bytes(kv, tensors, version=version, alignment=alignment))
    return path


def float_bytes(kind: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float32 values as the bytes of F32, F16 or BF16 (BF16 by cutting)."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if kind == "F32":
        return values.reshape(-1).view(np.uint8)
    if kind == "F16":
        return values.astype(np.float16).reshape(-1).view(np.uint8)
    return (values.view(np.uint32) >> 16).astype(np.uint16).reshape(-1).view(np.uint8)


def random_blocks(
    kind: str, rows: int, cols: int, rng: np.random.Generator, scale: float = 0.05
) -> NDArray[np.uint8]:
    """Random bytes that are a valid matrix of `kind`: any integers, finite scales of about `scale`."""
    _, values, size = BLOCKS[kind]
    if values == 1:
        return float_bytes(kind, rng.standard_normal((rows, cols)).astype(np.float32) * scale)
    blocks = rng.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    for at in _HALF_FIELDS[kind]:
        halves = (rng.uniform(0.05, 1.0, len(blocks)) * scale / 8).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


@dataclass(frozen=True)
class TinyLlama:
    """Shape and types of a tiny random LLaMA; `types` maps a short tensor name (attn_q, token_embd ...) to
    a type.
    """

    n_layers: int = 2
    dim: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    n_ff: int = 96
    n_vocab: int = 67
    context: int = 128
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = False
    kind: str = "F32"
    types: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """Dimensions a head."""
        return self.dim // self.n_heads

    def kv(self) -> dict[str, Any]:
        """The hyper-parameters as GGUF keys, without a tokenizer."""
        return {
            "general.architecture": "llama",
            "general.name": "tiny",
            "llama.block_count": self.n_layers,
            "llama.context_length": self.context,
            "llama.embedding_length": self.dim,
            "llama.feed_forward_length": self.n_ff,
            "llama.attention.head_count": self.n_heads,
            "llama.attention.head_count_kv": self.n_kv_heads,
            "llama.rope.freq_base": self.rope_theta,
            "llama.rope.dimension_count": self.head_dim,
            "llama.attention.layer_norm_rms_epsilon": self.norm_eps,
            "llama.vocab_size": self.n_vocab,
        }

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Full tensor name -> (rows, cols); rows is 0 for vectors."""
        kv_dim = self.n_kv_heads * self.head_dim
        shapes = {"token_embd": (self.n_vocab, self.dim), "output_norm": (0, self.dim)}
        if not self.tied:
            shapes["output"] = (self.n_vocab, self.dim)
        layer = {
            "attn_norm": (0, self.dim), "attn_q": (self.dim, self.dim), "attn_k": (kv_dim, self.dim),
            "attn_v": (kv_dim, self.dim), "attn_output": (self.dim, self.dim), "ffn_norm": (0, self.dim),
            "ffn_gate": (self.n_ff, self.dim), "ffn_up": (self.n_ff, self.dim), "ffn_down": (self.dim,
            self.n_ff),
        }  # fmt: skip
        for i in range(self.n_layers):
            shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    def tensors(self) -> list[Tensor]:
        """Random tensors of those shapes; norms near one, always F32."""
        rng = np.random.default_rng(self.seed)
        made = []
        for name, (rows, cols) in self.shapes().items():
            if rows == 0:
                norm = 1 + 0.1 * rng.standard_normal(cols).astype(np.float32)
                made.append(Tensor(name, "F32", 0, cols, float_bytes("F32", norm)))
                continue
            kind = self.types.get(name.split(".")[-2], self.kind)
            made.append(Tensor(name, kind, rows, cols, random_blocks(kind, rows, cols, rng)))
        return made


def spm_kv(n_vocab: int) -> dict[str, Any]:
    """A SentencePiece vocabulary of `n_vocab` pieces (at least 264): control, bytes, letters, filler."""
    letters = ["▁", *"etaoinshrdlu"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    pieces += (letters + [f"▁w{i}" for i in range(n_vocab)])[: n_vocab - len(pieces)]
    kinds += [1] * (n_vocab - len(kinds))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [0.0 if kind != 1 else -float(i) for i, kind in enumerate(kinds)],
        "tokenizer.ggml.token_type": Typed("i32", kinds),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def byte_alphabet() -> list[str]:
    """The 256 printable characters that byte-level BPE writes bytes as, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def bpe_kv(n_vocab: int, pre: str = "smollm") -> dict[str, Any]:
    """A byte-level BPE vocabulary of `n_vocab` tokens (at least 263): bytes, three merges, control tokens,
    filler.
    """
    merges = ["t h", "th e", "Ġ the"]
    tokens = [*byte_alphabet(), "th", "the", "Ġthe", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<user>"]
    kinds = [1] * 259 + [3, 3, 3, 4] + [5] * (n_vocab - 263)
    tokens += [f"[unused{i}]" for i in range(n_vocab - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Typed("i32", kinds),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 261,
    }


def write_llama(
    path: str | Path,
    shape: TinyLlama | None = None,
    *,
    tokenizer: str | None = None,
    extra_kv: Mapping[str, Any] | None = None,
    extra_tensors: Sequence[Tensor] = (),
) -> Path:
    """Writes a tiny random LLaMA; `tokenizer` is "spm", "bpe" or None (then the file has no tokenizer)."""
    shape = shape or TinyLlama()
    kv = shape.kv()
    if tokenizer == "spm":
        kv |= spm_kv(shape.n_vocab)
    elif tokenizer == "bpe":
        kv |= bpe_kv(shape.n_vocab)
    kv |= dict(extra_kv or {})
    return write_gguf(path, kv, [*shape.tensors(), *extra_tensors])
