"""Writes a SentencePiece `ModelProto` from a list of pieces, in the protobuf wire format.

Must not know GGUF or Hugging Face. Field numbers are those of sentencepiece_model.proto in
google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from pyinfer.errors import ModelFileError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces; GGUF uses the same numbers."""
SPACE = "\u2581"
"""What pieces write for a space."""

MOST_BYTES = 4096
"""Of a piece; the library takes ten times that at most."""

_BPE = 2


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _before(field: int, length: int) -> bytes:
    """What stands before so many bytes."""
    return _varint(field << 3 | 2) + _varint(length)


def _bytes(field: int, value: bytes) -> bytes:
    return _before(field, len(value)) + value


def encode_pieces(pieces: Iterable[Piece]) -> bytes:
    """The `pieces` field alone; put behind a whole ModelProto, it extends that model's vocabulary."""
    tails = {kind: _number(3, kind) for kind in range(NORMAL, BYTE + 1)}
    score = struct.Struct("<cf").pack
    out: list[bytes] = []
    for piece in pieces:
        try:
            text = piece.text.encode()
        except UnicodeEncodeError:
            raise ModelFileError(f"tokens: expected text, found {piece.text!r}"[:200]) from None
        if len(text) > MOST_BYTES:
            raise ModelFileError(
                f"tokens: expected at most {MOST_BYTES} bytes a token, found one of {len(text)}"
            )
        out += (_head(len(text)), text, score(b"\x15", piece.score), tails[piece.kind])
    return b"".join(out)


@cache  # vocabularies have hundreds of thousands of pieces
def _head(length: int) -> bytes:
    """What stands before the text of a piece, which is so long: its own length and the text's. Behind the text come a
    score in five bytes and a type in two.
    """
    before = _before(1, length)
    return _before(1, len(before) + length + 7) + before


def encode_model(pieces: list[Piece], *, space_prefix: bool, byte_fallback: bool) -> bytes:
    """A BPE model: merges go by score, text is not normalised but for spaces, which become U+2581."""
    unk = next(i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    trainer = _number(3, _BPE) + _number(4, len(pieces)) + _number(35, int(byte_fallback))
    trainer += _number(40, unk) + _bytes(45, pieces[unk].text.encode())
    normalizer = _bytes(1, b"identity") + _number(3, int(space_prefix)) + _number(4, 0) + _number(5, 1)
    return encode_pieces(pieces) + _bytes(2, trainer) + _bytes(3, normalizer)
