"""Reads llama2.c files; the tokenizer lies beside them. Layout v0: seven int32, then float32 tensors grouped by kind.
v1: a header of 256 bytes that begins with `ak42`, then float32 tensors in another order. v2: such a header, then norms
in float32 and for each matrix its int8 integers and the float32 scales of their groups.

Must not know families: it names tensors by role. Layout: `export.py`, `run.c` and `runq.c` of karpathy/llama2.c.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
LATER_MAGIC = struct.pack("<I", 0x616B3432)
LATER_HEADER = 256
BLOCK = 32  # values of a block of Q8_F
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


def _shapes(spec: Spec) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Role -> (how many there are, shape of one)."""
    q_dim, kv_dim = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    n, dim, n_ff = spec.n_layers, spec.dim, spec.n_ff
    return {
        "embedding": (1, (spec.n_vocab, dim)),
        "attn_norm": (n, (dim,)),
        "q": (n, (q_dim, dim)),
        "k": (n, (kv_dim, dim)),
        "v": (n, (kv_dim, dim)),
        "o": (n, (dim, q_dim)),
        "ffn_norm": (n, (dim,)),
        "gate": (n, (n_ff, dim)),
        "down": (n, (dim, n_ff)),
        "up": (n, (n_ff, dim)),
        "final_norm": (1, (dim,)),
        "rope": (2, (spec.context, spec.head_dim // 2)),  # tables that are not needed
        "head": (1, (spec.n_vocab, dim)),
    }


_ORDER = (
    "embedding", "attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "down", "up", "final_norm", "rope", "head",
)  # fmt: skip
_LATER_ORDER = (
    "attn_norm", "ffn_norm", "final_norm", "embedding", "q", "k", "v", "o", "gate", "down", "up", "head",
)  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """Where everything lies; `group` is 0 for a file in floats."""

    spec: Spec
    header: int
    order: tuple[str, ...]
    group: int = 0

    def tensors(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Name -> (offset, shape), in file order; the last entry, "", is where the file ends."""
        found: dict[str, tuple[int, tuple[int, ...]]] = {}
        at, shapes = self.header, _shapes(self.spec)
        for role in self.order:
            count, shape = shapes[role]
            for i in range(0 if role == "head" and self.spec.tied_head else count):
                found[f"{role}.{i}" if role in (*LAYER_ROLES, "rope") else role] = (at, shape)
                at += self.bytes(shape)
        return found | {"": (at, ())}

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape."""
        n = math.prod(shape)
        return n + 4 * (n // self.group) if self.group and len(shape) == 2 else 4 * n


def _read_front(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size."""
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        return read_exactly(descriptor, 0, min(size, LATER_HEADER)).tobytes(), size
    finally:
        os.close(descriptor)


def looks_like(path: Path) -> bool:
    """Whether the file begins as the later layouts do, or with seven numbers that a model can have."""
    if path.is_dir():
        return False
    with in_file(path):
        front, size = _read_front(path)
        if front[:4] == LATER_MAGIC:
            return True
        if size < HEADER:
            return False
        try:
            _first_layout(front)
        except ModelFileError:
            return False
        return True


def _first_layout(front: bytes) -> _Layout:
    return _Layout(_Header(*struct.unpack_from("<7i", front)).spec(), HEADER, _ORDER)


def _layout(front: bytes, size: int) -> _Layout:
    """The layout of a file that `looks_like` has accepted, checked against its size."""
    layout = _later_layout(front) if front[:4] == LATER_MAGIC else _first_layout(front)
    if layout.group:
        for role, (_, shape) in _shapes(layout.spec).items():
            if len(shape) == 2 and role != "rope" and math.prod(shape) % layout.group:
                raise ModelFileError(
                    f"{role}: expected whole groups of {layout.group} values, found {list(shape)}"
                )
    end = layout.tensors()[""][0]
    if size != end:
        raise ModelFileError(f"expected a llama2.c file of {end} bytes, as its header says, found {size}")
    return layout


def _later_layout(front: bytes) -> _Layout:
    if len(front) < LATER_HEADER:
        raise ModelFileError(f"expected a header of {LATER_HEADER} bytes, found {len(front)}")
    _, version, *numbers, tied = struct.unpack_from("<Ii7iB", front)
    if version not in (1, 2):
        raise UnsupportedError(f"version: expected 1 or 2, found {version}")
    header = _Header(*numbers)
    if header.vocab < 1 or tied > 1:
        raise ModelFileError(
            f"expected a vocabulary of 1 or more and a flag, found {header.vocab} and {tied}"
        )
    spec = replace(header.spec(), tied_head=bool(tied))
    used = struct.calcsize("<Ii7iB")
    group = 0
    if version == 2:
        (group,) = struct.unpack_from("<i", front, used)
        used += 4
        if not 1 <= group <= 1 << 20:
            raise ModelFileError(f"group_size: expected 1 or more, found {group}")
    if any(front[used:]):
        raise ModelFileError("expected zeros after the numbers in the header, found others")
    return _Layout(spec, LATER_HEADER, _LATER_ORDER, group)


def open_llama2c(path: Path) -> Checkpoint:
    """Opens a file that `looks_like` has accepted, and the tokenizer beside it."""
    from pyinfer.convert.families import LLAMA2C

    with in_file(path):
        layout = _layout(*_read_front(path))
        model = LLAMA2C(layout.spec, _raw_tensors(path, layout))
        vocabulary = find_tokenizer(path)
        with in_file(vocabulary):
            tokenizer = read_tokenizer(read_small(vocabulary), layout.spec.n_vocab)
    return Checkpoint(
        "llama2c", (path, vocabulary), "llama", path.stem, None, None, model.spec, model.tensors, tokenizer
    )


def _raw_tensors(path: Path, layout: _Layout) -> dict[str, RawTensor]:
    raw = {}
    for name, (offset, shape) in layout.tensors().items():
        if not name or name.startswith("rope"):
            continue
        if layout.group and len(shape) == 2:
            raw[name] = _grouped(path, name, offset, (shape[0], shape[1]), layout.group)
        else:
            raw[name] = RawTensor(name, "F32", shape, file_rows(path, offset, 4 * shape[-1]))
    return raw


def _grouped(path: Path, name: str, offset: int, shape: tuple[int, int], group: int) -> RawTensor:
    """A matrix of integers and scales: blocks where groups are whole blocks within rows, else the floats meant."""
    rows, cols = shape
    integers, scales = file_rows(path, offset, 1), file_rows(path, offset + rows * cols, 4)

    def blocks(start: int, stop: int) -> NDArray[np.uint8]:
        made = np.empty((stop - start, cols // BLOCK, 4 + BLOCK), np.uint8)
        made[..., 4:] = integers(start * cols, stop * cols).reshape(stop - start, -1, BLOCK)
        each = scales(start * cols // group, stop * cols // group).reshape(stop - start, -1, 4)
        made[..., :4] = each.repeat(group // BLOCK, axis=1)
        return made.reshape(-1)

    def floats(start: int, stop: int) -> NDArray[np.uint8]:
        first, last = start * cols, stop * cols
        which = np.arange(first, last) // group
        scale = scales(int(which[0]), int(which[-1]) + 1).view("<f4")[which - which[0]]
        values: NDArray[np.float32] = integers(first, last).view(np.int8).astype(np.float32) * scale
        return values.view(np.uint8)

    if group % BLOCK or cols % group:
        return RawTensor(name, "F32", shape, floats)
    return RawTensor(name, "Q8_F", shape, blocks)


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
