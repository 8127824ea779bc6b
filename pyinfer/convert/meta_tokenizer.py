"""Builds a tokenizer from Meta's tokenizer.model: a SentencePiece model (LLaMA 1 and 2) or a list of byte strings
and ranks (Llama 3).

Must not know weights or settings of the model.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from pyinfer.convert.checkpoint import TokenizerSource
from pyinfer.convert.pretokenizers import pre_tokenizer
from pyinfer.convert.small_file import read_small
from pyinfer.errors import ModelFileError
from pyinfer.vocabulary import adds_space, load_library

Ranks = dict[bytes, int]

_LINE = re.compile(rb"[A-Za-z0-9+/]{1,344}={0,2} [0-9]{1,7}")
"""A token has at most 256 bytes; the longest of Llama 3 are 128 spaces."""
MOST_PAIRS = 64 << 20
"""Bytes of all pairs that are joined to tokens; those of Llama 3 have some two million."""
_RESERVED = 256
_FIRST = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
)
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>")


def read_tokenizer(path: Path, later: bool) -> TokenizerSource:
    """The tokenizer of a file; `later` chooses the special tokens of Llama 3.1 and after: the file has none."""
    raw = read_small(path)
    if _LINE.fullmatch(raw.split(b"\n", 1)[0].strip()):
        return _byte_level(read_ranks(raw), special_tokens(later))
    model = load_library("sentencepiece", raw)
    size: int = model.GetPieceSize()
    if size < 3 or not (model.IsControl(1) and model.IsControl(2)):
        raise ModelFileError("expected <s> and </s> as pieces 1 and 2, found others")
    return TokenizerSource(
        "sentencepiece",
        raw,
        size,
        False,
        adds_space(model),
        bos=1,
        eos=(2,),
        unk=model.unk_id(),
        add_bos=True,
    )


def special_tokens(later: bool) -> list[str]:
    """The 256 tokens behind the ranks: those of Llama 3, or of 3.1 and after."""
    if later:
        named = [*_FIRST, "<|finetune_right_pad_id|>", "<|step_id|>", *_HEADERS, "<|eom_id|>", "<|eot_id|>"]
        named.append("<|python_tag|>")
        reserved = 2
    else:
        named = [*_FIRST, "<|reserved_special_token_2|>", "<|reserved_special_token_3|>", *_HEADERS]
        named += ["<|reserved_special_token_4|>", "<|eot_id|>"]
        reserved = 5
    return named + [f"<|reserved_special_token_{reserved + i}|>" for i in range(_RESERVED - len(named))]


def read_ranks(raw: bytes) -> Ranks:
    """Lines of a byte string in base64 and its rank, from 0 on in order; all single bytes are there."""
    ranks: Ranks = {}
    for i, line in enumerate(raw.splitlines()):
        if not _LINE.fullmatch(line):
            raise ModelFileError(f"line {i + 1}: expected base64 and a rank, found {line[:40]!r}")
        text, rank = line.split()
        try:
            token = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ModelFileError(f"line {i + 1}: expected base64, found {text[:40]!r}") from None
        if int(rank) != i or token in ranks:
            raise ModelFileError(
                f"line {i + 1}: expected a new token of rank {i}, found {token[:40]!r} of {int(rank)}"
            )
        ranks[token] = i
    missing = next((b for b in range(256) if bytes([b]) not in ranks), None)
    if missing is not None:
        raise ModelFileError(f"expected all 256 bytes as tokens, found none for {missing}")
    return ranks


def merges(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """Pairs in the order in which they are joined, so that joining by this list is joining by rank.

    By rank, the two neighbours whose union is the token of lowest rank are joined, the leftmost on a tie; so every
    way to cut a token in two tokens is a pair. Of two that may overlap, x|y and y|z with xy = yz, the left one comes
    first.
    """
    pairs: list[tuple[bytes, bytes]] = []
    size = 0
    for token in ranks:
        cuts = [i for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        pairs += [(token[:i], token[i:]) for i in _left_first(token, cuts)]
        size += len(cuts) * len(token)
        if size > MOST_PAIRS:
            raise ModelFileError(
                f"expected tokens that pairs of at most {MOST_PAIRS} bytes are joined to, found more"
            )
    return pairs


def _left_first(token: bytes, cuts: list[int]) -> list[int]:
    """Cuts in order, but for those of complementary places of which the later one must come first."""
    ordered, n = list(cuts), len(token)
    for i in cuts:
        j = n - i
        if i < j and j in cuts and token[j:] == token[:i] and token[i:] != token[:j]:
            a, b = ordered.index(i), ordered.index(j)
            ordered[a], ordered[b] = j, i
    return ordered


def _alphabet() -> list[str]:
    """How byte-level vocabularies write each byte as a printable character."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def _byte_level(ranks: Ranks, special: list[str]) -> TokenizerSource:
    alphabet = _alphabet()

    def spelled(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    ids = {name: len(ranks) + i for i, name in enumerate(special)}
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    pairs = [[spelled(left), spelled(right)] for left, right in merges(ranks)]
    blob = json.dumps(_library_json(vocabulary, pairs, ids), ensure_ascii=False).encode()
    ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    return TokenizerSource(
        "tokenizers",
        blob,
        len(ranks) + len(special),
        byte_level=True,
        bos=ids["<|begin_of_text|>"],
        eos=tuple(ids[name] for name in ends if name in ids),
        pad=ids.get("<|finetune_right_pad_id|>"),
        add_bos=True,
    )


def _library_json(
    vocabulary: dict[str, int], pairs: list[list[str]], special: dict[str, int]
) -> dict[str, Any]:
    """What the `tokenizers` library reads. A word that is a token is that token, as ranks have it."""
    added = [
        {"id": i, "content": name, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for name, i in special.items()
    ]
    model = {"type": "BPE", "ignore_merges": True, "vocab": vocabulary, "merges": pairs}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizer("llama-bpe").stages)},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {**model, "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
        | {"continuing_subword_prefix": None, "end_of_word_suffix": None},
    }
