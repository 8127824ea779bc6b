"""Builds a tokenizer from GGUF's `tokenizer.ggml.*` keys: a SentencePiece model or the JSON of the
`tokenizers` library.

Must not know tensors or hyper-parameters; it works on files that have none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from pyinfer.convert.checkpoint import TokenizerSource
from pyinfer.convert.gguf import KeyValues
from pyinfer.convert.pretokenizers import PreTokenizer, pre_tokenizer
from pyinfer.convert.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    encode_model,
)
from pyinfer.errors import ModelFileError, UnsupportedError

END_TOKENS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<end_of_turn>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
"""Control tokens that end an answer wherever a vocabulary has them."""
_TURN = "<start_of_turn>"
_MARKS = re.compile(r"<\|.+\|>|<\uff5c.+\uff5c>", re.DOTALL)
_TURNS = re.compile(
    r"<\|(?:im_start|start_header_id|end_header_id|system|user|assistant)\|>|<\uff5c(?:User|Assistant)\uff5c>"
)
_NO_TOKEN = 0xFFFFFFFF
"""What llama.cpp writes where there is no such token: -1 as an unsigned number."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_PREFIX = "tokenizer.ggml."


def tokenizer_from_keys(keys: KeyValues) -> TokenizerSource:
    """The tokenizer of a file; one without any has kind `none`, an unknown kind is refused by name."""
    model = keys.text(f"{_PREFIX}model")
    if model is None or model == "none":
        return TokenizerSource()
    if model not in _BUILDERS:
        raise UnsupportedError(
            f"{_PREFIX}model: expected one of {', '.join(_BUILDERS)}, none; found {model[:64]!r}"
        )
    vocabulary = _Vocabulary(keys)
    return _BUILDERS[model](keys, vocabulary)


class _Vocabulary:
    """Tokens and their types, checked against each other; entries that stand for nothing have the type
    `unused`.
    """

    def __init__(self, keys: KeyValues) -> None:
        tokens, kinds = keys.texts(f"{_PREFIX}tokens"), keys.integers(f"{_PREFIX}token_type")
        if not tokens:
            raise ModelFileError(f"{_PREFIX}tokens: expected an array of strings, found none")
        if kinds is None or len(kinds) != len(tokens):
            raise _wrong_length("token_type", len(tokens), kinds)
        if kinds.min() < NORMAL or kinds.max() > BYTE:
            raise ModelFileError(
                f"{_PREFIX}token_type: expected {NORMAL} to {BYTE}, found {kinds.min()} to {kinds.max()}"
            )
        self.kinds: list[int] = kinds.tolist()
        self.tokens = tokens
        self._mark_fillers()
        self.kinds = [as_meant(token, kind) for token, kind in zip(tokens, self.kinds, strict=True)]
        self.ids = _unique(tokens)

    def _mark_fillers(self) -> None:
        """Empty tokens, and `[PAD7]` at place 7, only fill up the embedding."""
        for i, token in enumerate(self.tokens):
            if not token:
                self.tokens[i] = f"[EMPTY_{i}]"
            if not token or token == f"[PAD{i}]":
                self.kinds[i] = UNUSED

    def of_kind(self, *kinds: int) -> Iterable[tuple[int, str]]:
        """Ids and tokens of these types."""
        return ((i, self.tokens[i]) for i, kind in enumerate(self.kinds) if kind in kinds)


def as_meant(token: str, kind: int) -> int:
    """The type of a token, where it is named user-defined or plain though it marks turns or ends answers: converters of
    2023, of the first days of some families and of Gemma 3's own files wrote that. As llama.cpp's loader and converter
    have it, but for Gemma's.
    """
    is_known = kind in (NORMAL, USER_DEFINED) and token in (_TURN, *END_TOKENS)
    return CONTROL if is_known or (kind == USER_DEFINED and _MARKS.fullmatch(token)) else kind


def marks_a_turn(token: str) -> bool:
    """Whether a token ends an answer or marks who speaks, whatever a Hugging Face folder calls it: what users write
    must not spell it. Others there, such as those of code that is to be filled in, are what they are called.
    """
    return token in (_TURN, *END_TOKENS) or _TURNS.fullmatch(token) is not None


def _wrong_length(key: str, wanted: int, found: Any) -> ModelFileError:
    have = 0 if found is None else len(found)
    return ModelFileError(f"{_PREFIX}{key}: expected {wanted} entries as there are tokens, found {have}")


def _unique(tokens: list[str]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if ids.setdefault(token, i) != i:
            raise ModelFileError(
                f"{_PREFIX}tokens: expected each token once, found {token!r} at {ids[token]} and {i}"
            )
    return ids


def _with_ids(
    keys: KeyValues,
    vocabulary: _Vocabulary,
    opened: TokenizerSource,
    *,
    bos: int | None,
    eos: int | None,
    add_bos: bool,
) -> TokenizerSource:
    """The same with its special ids; the last three are what files of this kind mean when they say nothing."""

    def read(name: str, default: int | None = None) -> int | None:
        found = _token_id(keys, name, vocabulary)
        return default if found is None else found

    named = [i for i in (vocabulary.ids.get(token) for token in END_TOKENS) if i is not None]
    ends = [read("eos", eos), read("eot"), read("eom"), *(i for i in named if vocabulary.kinds[i] == CONTROL)]
    begin = read("bos", bos)
    return replace(
        opened,
        bos=begin,
        eos=tuple(dict.fromkeys(i for i in ends if i is not None)),
        pad=read("padding"),
        unk=read("unknown"),
        add_bos=keys.flag(f"{_PREFIX}add_bos_token", add_bos and begin is not None),
        add_eos=keys.flag(f"{_PREFIX}add_eos_token", False),
    )


def _token_id(keys: KeyValues, name: str, vocabulary: _Vocabulary) -> int | None:
    """The id of a special token, if the file has one that is in the vocabulary."""
    key = f"{_PREFIX}{name}_token_id"
    said = keys.optional_integer(key, -(1 << 63), (1 << 64) - 1)
    beyond = name in ("padding", "unknown") and said is not None and said >= len(vocabulary.tokens)
    if said == _NO_TOKEN or beyond:  # nothing is computed with those two
        return None
    return keys.optional_integer(key, 0, len(vocabulary.tokens) - 1)


def _sentencepiece(keys: KeyValues, vocabulary: _Vocabulary) -> TokenizerSource:
    scores = keys.floats(f"{_PREFIX}scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise _wrong_length("scores", len(vocabulary.tokens), scores)
    if f"{_PREFIX}precompiled_charsmap" in keys or keys.flag(f"{_PREFIX}remove_extra_whitespaces", False):
        raise UnsupportedError(
            "tokenizer.ggml.model llama: expected text as it is, found a normaliser, which is not supported"
        )
    last = len(vocabulary.tokens) - 1
    kinds = _with_one_unknown(vocabulary, _token_id(keys, "unknown", vocabulary))
    if (ranks := scores[np.array(kinds) == NORMAL]).size > 1 and np.all(ranks == ranks[0]):
        # Converters that had no scores wrote one for all. Ids follow the order of merges, as scores otherwise do.
        scores = -np.arange(len(kinds), dtype=np.float32)
    texts = [_stored(token, kind) for token, kind in zip(vocabulary.tokens, kinds, strict=True)]
    pieces = [Piece(*entry) for entry in zip(texts, scores.tolist(), kinds, strict=True)]
    # Vocabularies of Gemma have none, which not all of its files say.
    space_prefix = keys.flag(f"{_PREFIX}add_space_prefix", _TURN not in vocabulary.ids)
    blob = encode_model(pieces, space_prefix=space_prefix, byte_fallback=_has_bytes(vocabulary))
    trim_after = _trimming(vocabulary)
    opened = TokenizerSource(
        "sentencepiece", blob, len(pieces), space_prefix=space_prefix, trim_after=trim_after
    )
    return _with_ids(keys, vocabulary, opened, bos=min(1, last), eos=min(2, last), add_bos=True)


def _trimming(vocabulary: _Vocabulary) -> tuple[int, ...]:
    """Control tokens that swallow the white space after them. GGUF does not say it; vocabularies with these turns do it
    (source: added tokens of microsoft/Phi-3-mini-4k-instruct).
    """
    control = {token: i for i, token in vocabulary.of_kind(CONTROL)}
    if not {"<|user|>", "<|assistant|>", "<|end|>"} <= control.keys():
        return ()
    return tuple(i for token, i in control.items() if token not in ("<s>", "<|endoftext|>"))


def _stored(token: str, kind: int) -> str:
    """Pieces that are looked for in text are stored as text looks inside: with U+2581 for a space."""
    return token.replace(" ", SPACE) if kind == USER_DEFINED else token


def _with_one_unknown(vocabulary: _Vocabulary, unk: int | None) -> list[int]:
    """The types with exactly one unknown piece: the one that the file names, else the first of that type,
    else piece 0.
    """
    if unk is None:
        unk = next((i for i, _ in vocabulary.of_kind(UNKNOWN)), 0)
    kinds = [UNUSED if kind == UNKNOWN else kind for kind in vocabulary.kinds]
    kinds[unk] = UNKNOWN
    return kinds


def _has_bytes(vocabulary: _Vocabulary) -> bool:
    """Whether unknown characters can be written as bytes: all 256 byte pieces, or none."""
    found = set()
    for i, token in vocabulary.of_kind(BYTE):
        match = _BYTE_PIECE.fullmatch(token)
        if not match:
            raise ModelFileError(
                f"{_PREFIX}tokens: expected a byte token like <0x0A> at {i}, found {token!r}"
            )
        found.add(match[1])
    if len(found) not in (0, 256):
        raise ModelFileError(f"{_PREFIX}tokens: expected 256 byte tokens or none, found {len(found)}")
    return bool(found)


def _byte_level(keys: KeyValues, vocabulary: _Vocabulary) -> TokenizerSource:
    name = keys.text(f"{_PREFIX}pre")
    if name is None:
        raise UnsupportedError(f"{_PREFIX}pre: expected the name of a pre-tokenizer, found no such key")
    pre = pre_tokenizer(name)
    merges = keys.texts(f"{_PREFIX}merges")
    if merges is None:
        raise ModelFileError(f"{_PREFIX}merges: expected an array of strings, found none")
    blob = json.dumps(_library_json(vocabulary, _pairs(merges), pre), ensure_ascii=False).encode()
    opened = TokenizerSource("tokenizers", blob, len(vocabulary.tokens), byte_level=True)
    return _with_ids(keys, vocabulary, opened, bos=None, eos=None, add_bos=pre.add_bos)


def _pairs(merges: list[str]) -> list[list[str]]:
    pairs = [merge.split(" ") for merge in merges]
    for i, pair in enumerate(pairs):
        if len(pair) != 2 or not all(pair):
            raise ModelFileError(
                f"{_PREFIX}merges: expected two tokens and a space at {i}, found {merges[i][:64]!r}"
            )
    return pairs


def _library_json(vocabulary: _Vocabulary, merges: list[list[str]], pre: PreTokenizer) -> dict[str, Any]:
    """What the `tokenizers` library reads; control tokens are special there, user-defined ones are found
    in any text.
    """
    added = [
        {"id": i, "content": token, "special": vocabulary.kinds[i] != USER_DEFINED, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, token in vocabulary.of_kind(CONTROL, USER_DEFINED, UNKNOWN)
    ]
    model = {"type": "BPE", "ignore_merges": pre.ignore_merges, "vocab": vocabulary.ids, "merges": merges}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.stages)},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {**model, "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
        | {"continuing_subword_prefix": None, "end_of_word_suffix": None},
    }


_BUILDERS = {"llama": _sentencepiece, "gpt2": _byte_level}
