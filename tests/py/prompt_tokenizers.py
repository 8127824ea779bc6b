"""Small tokenizers for tests of prompts: every printable ASCII character is a token, so joined pieces show the text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gguf_writer import byte_alphabet
from pyinfer.convert.metadata import Metadata
from pyinfer.convert.sentencepiece_model import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, Piece, encode_model
from pyinfer.prompt_formats import FORMATS
from pyinfer.tokenizer import Tokenizer

CONTROLS = tuple(dict.fromkeys(piece for one in FORMATS.values() for piece in one.controls))
"""Control tokens that some format needs."""


def metadata(kind: str, *, eos: tuple[int, ...] = (2,), bos: int | None = 1, **fields: object) -> Metadata:
    """What goes with such a tokenizer: begin and end are tokens 1 and 2."""
    return Metadata(name="tiny", architecture="llama", tokenizer=kind, bos=bos, eos=eos, **fields)  # type: ignore[arg-type]


def pieces_tokenizer(
    controls: Sequence[str] = CONTROLS, *, add_bos: bool = True, **fields: object
) -> tuple[Metadata, Tokenizer]:
    """SentencePiece with a space in front of every text, bytes for what is not ASCII."""
    pieces = [Piece("<unk>", 0.0, UNKNOWN), Piece("<s>", 0.0, CONTROL), Piece("</s>", 0.0, CONTROL)]
    pieces += [Piece(piece, 0.0, CONTROL) for piece in controls]
    pieces += [Piece(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
    pieces += [Piece(char, 0.0, NORMAL) for char in (SPACE, *map(chr, range(33, 127)))]
    blob = encode_model(pieces, space_prefix=True, byte_fallback=True)
    meta = metadata("sentencepiece", space_prefix=True, add_bos=add_bos, **fields)
    return meta, Tokenizer(blob, meta, len(pieces))


def bytes_tokenizer(
    controls: Sequence[str] = CONTROLS, *, add_bos: bool = False, begin: str = "<s>", **fields: object
) -> tuple[Metadata, Tokenizer]:
    """Byte-level BPE without merges."""
    names = ["<unk>", begin, "</s>", *controls]
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "merges": [],
        "vocab": {piece: i for i, piece in enumerate([*names, *byte_alphabet()])},
    }  # fmt: skip
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(names)],
        "pre_tokenizer": byte_level, "decoder": byte_level, "model": model,
    }  # fmt: skip
    meta = metadata("tokenizers", byte_level=True, add_bos=add_bos, **fields)
    return meta, Tokenizer(json.dumps(whole).encode(), meta, len(names) + 256)


def joined(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """All pieces as they are spelled."""
    return "".join(map(tokenizer.token_to_piece, ids))
