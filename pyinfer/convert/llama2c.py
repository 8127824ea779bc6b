"""Reads llama2.c files of layout v0: seven int32, then float32 tensors grouped by kind; the tokenizer lies
beside them.

Must not know families: it names tensors by role. Layout: `export.py` and `run.c` of karpathy/llama2.c.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from pyinfer.convert.checkpoint import (
    LAYER_ROLES,
    Checkpoint,
    RawTensor,
    Spec,
    TokenizerSource,
    file_rows,
    in_file,
    open_regular,
    read_exactly,
)
from pyinfer.convert.sentencepiece_model import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, Piece, encode_model
from pyinfer.convert.small_file import read_small
from pyinfer.errors import ModelFileError, UnsupportedError

HEADER = 28
_FIRST_BYTE_TOKEN = 3
_NORM_EPS = 1e-5  # fixed in run.c


@dataclass(frozen=True)
class _Header:
    """The seven numbers; a negative vocabulary means that the head is a tensor of its own."""

    dim: int
    n_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab: int
    context: int

    def spec(self) -> Spec:
        """The model's numbers, checked."""
        if self.n_heads < 1 or self.dim % self.n_heads:
            raise ModelFileError(f"n_heads: expected a divisor of dim {self.dim}, found {self.n_heads}")
        head_dim = self.dim // self.n_heads
        return Spec(
            n_layers=self.n_layers,
            dim=self.dim,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=head_dim,
            n_ff=self.n_ff,
            n_vocab=abs(self.vocab),
            context=self.context,
            rope_dim=head_dim,
            norm_eps=_NORM_EPS,
            rope_magnitude=1.0,
            attention_scale=1 / math.sqrt(head_dim) if head_dim > 0 else 0.0,
            tied_head=self.vocab > 0,
        ).check()


def _groups(spec: Spec) -> list[tuple[str, int, tuple[int, ...]]]:
    """The tensors in file order: (role, how many layers of it, shape of one); `rope` are tables that are
    not needed.
    """
    q_dim, kv_dim = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    n, dim, n_ff = spec.n_layers, spec.dim, spec.n_ff
    groups: list[tuple[str, int, tuple[int, ...]]] = [
        ("embedding", 1, (spec.n_vocab, dim)),
        ("attn_norm", n, (dim,)),
        ("q", n, (q_dim, dim)),
        ("k", n, (kv_dim, dim)),
        ("v", n, (kv_dim, dim)),
        ("o", n, (dim, q_dim)),
        ("ffn_norm", n, (dim,)),
        ("gate", n, (n_ff, dim)),
        ("down", n, (dim, n_ff)),
        ("up", n, (n_ff, dim)),
        ("final_norm", 1, (dim,)),
        ("rope", 2, (spec.context, spec.head_dim // 2)),
    ]
    return groups if spec.tied_head else [*groups, ("head", 1, (spec.n_vocab, dim))]


def looks_like(path: Path) -> bool:
    """Whether the first seven numbers are those of a model whose size is the file's; refuses later layouts
    by name.
    """
    if path.is_dir():
        return False
    with in_file(path):
        descriptor = open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            if size < HEADER:
                return False
            front = read_exactly(descriptor, 0, HEADER).tobytes()
        finally:
            os.close(descriptor)
        if front[:4] == struct.pack("<I", 0x616B3432):
            raise UnsupportedError("expected llama2.c layout v0, found a later layout (magic ak42)")
        try:
            spec = _Header(*struct.unpack("<7i", front)).spec()
        except ModelFileError:
            return False
        return size == HEADER + _data_bytes(spec)


def _data_bytes(spec: Spec) -> int:
    return sum(4 * count * math.prod(shape) for _, count, shape in _groups(spec))


def open_llama2c(path: Path) -> Checkpoint:
    """Opens a file that `looks_like` has accepted, and the tokenizer beside it."""
    from pyinfer.convert.families import LLAMA2C

    with in_file(path):
        with open(path, "rb") as file:
            spec = _Header(*struct.unpack("<7i", file.read(HEADER))).spec()
        model = LLAMA2C(spec, _raw_tensors(path, spec))
        vocabulary = find_tokenizer(path)
        with in_file(vocabulary):
            tokenizer = read_tokenizer(read_small(vocabulary), spec.n_vocab)
    return Checkpoint(
        "llama2c", (path, vocabulary), "llama", path.stem, None, None, model.spec, model.tensors, tokenizer
    )


def _raw_tensors(path: Path, spec: Spec) -> dict[str, RawTensor]:
    raw, offset = {}, HEADER
    for role, count, shape in _groups(spec):
        for i in range(count):
            if role != "rope":
                name = f"{role}.{i}" if role in LAYER_ROLES else role
                raw[name] = RawTensor(name, "F32", shape, file_rows(path, offset, 4 * shape[-1]))
            offset += 4 * math.prod(shape)
    return raw


def find_tokenizer(path: Path) -> Path:
    """tokenizer.bin in the same folder, else the only tok*.bin there."""
    named = path.with_name("tokenizer.bin")
    if named.is_file():
        return named
    found = sorted(item for item in path.parent.glob("tok*.bin") if item.is_file())
    if len(found) != 1:
        names = ", ".join(item.name for item in found) or "none"
        raise ModelFileError(f"expected tokenizer.bin or one tok*.bin in the same folder, found {names}")
    return found[0]


def all_files(path: Path) -> list[Path]:
    """The model and its tokenizer."""
    return [path, find_tokenizer(path)]


def read_tokenizer(raw: bytes, n_vocab: int) -> TokenizerSource:
    """int32 longest piece, then for each token float32 score, int32 length and the bytes.

    The token that begins a text ends one too: these models were trained on stories one behind the other,
    and run.c stops there.
    """
    pieces, at = [], 4
    for i in range(n_vocab):
        if at + 8 > len(raw):
            raise ModelFileError(f"expected {n_vocab} tokens, found the end of the file after {i}")
        score, length = struct.unpack_from("<fi", raw, at)
        text = raw[at + 8 : at + 8 + max(length, 0)]
        if not 0 < length == len(text) or not math.isfinite(score):
            raise ModelFileError(
                f"token {i}: expected a score and a piece, found score {score} and {length} bytes"
            )
        pieces.append(_piece(i, text, score))
        at += 8 + length
    if at != len(raw):
        raise ModelFileError(f"expected {at} bytes for {n_vocab} tokens, found {len(raw)}")
    if [piece.kind for piece in pieces[:_FIRST_BYTE_TOKEN]] != [UNKNOWN, CONTROL, CONTROL]:
        raise ModelFileError(f"expected at least {_FIRST_BYTE_TOKEN} tokens, found {n_vocab}")
    blob = encode_model(pieces, space_prefix=True, byte_fallback=n_vocab >= _FIRST_BYTE_TOKEN + 256)
    return TokenizerSource(
        "sentencepiece", blob, n_vocab, False, True, bos=1, eos=(2, 1), unk=0, add_bos=True
    )


def _piece(i: int, raw: bytes, score: float) -> Piece:
    """The file spells control pieces with newlines around them and spaces plainly; SentencePiece does not."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ModelFileError(f"token {i}: expected UTF-8, found {raw[:16]!r}") from None
    if i < _FIRST_BYTE_TOKEN:
        return Piece(text.strip(), score, UNKNOWN if i == 0 else CONTROL)
    if i < _FIRST_BYTE_TOKEN + 256 and text == f"<0x{i - _FIRST_BYTE_TOKEN:02X}>":
        return Piece(text, score, BYTE)
    return Piece(text.replace(" ", SPACE), score, NORMAL)
