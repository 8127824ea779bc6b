"""The two tokenizer libraries under one interface: split text into ids, spell an id, know what is special.

Must not know metadata, files or streams. `sentencepiece` and `tokenizers` are imported when a vocabulary is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any, Protocol

from pyinfer.errors import ModelFileError, RequestError
from pyinfer.tokenizer_json import check_growth, stages

_NOT_PANICS = (ImportError, MemoryError, KeyboardInterrupt, SystemExit)
"""What must pass when the tokenizers library fails: it reports some bad input as a panic, which is no Exception."""


class Vocabulary(Protocol):
    """What both libraries offer, under one name each."""

    size: int
    """Number of tokens."""

    def split(self, text: str, parse_special: bool) -> list[int]:
        """Ids of a text; control tokens in it are read as such only when asked for."""

    def join(self, parts: Sequence[str]) -> list[int]:
        """Ids of texts that have the spellings of control tokens between them: text, token, text, and so on; what the
        texts spell is text.
        """

    def piece(self, token: int) -> str:
        """The spelling of a token; empty for an id that stands for nothing."""

    def find(self, piece: str) -> int | None:
        """The token of this spelling."""

    def special(self) -> dict[str, int]:
        """Every control token by its spelling."""

    def is_special(self, token: int) -> bool:
        """Whether a token stands for no text."""

    def is_added(self, token: int) -> bool:
        """Whether a token was put beside the model's own pieces, and so is found in any text."""


def _trimmed(parts: Sequence[str], left: Collection[str], right: Collection[str]) -> list[str]:
    """Texts without the white space that tokens swallow before (`left`) or after (`right`) them."""
    made = list(parts)
    for i in range(1, len(made), 2):
        if made[i] in left:
            made[i - 1] = made[i - 1].rstrip()
        if made[i] in right:
            made[i + 1] = made[i + 1].lstrip()
    return made


def adds_space(model: Any) -> bool:
    """Whether a `SentencePieceProcessor` puts a space in front of a text; a ModelFileError if it splits none."""
    try:
        return "".join(model.EncodeAsPieces("a")) != "a"
    except RuntimeError as error:
        raise ModelFileError(
            f"tokenizer: expected a model that splits text, found one that cannot: {_reason(error)}"
        ) from None


def without_space(blob: bytes) -> bytes:
    """A SentencePiece model that puts no space in front: a later normalizer_spec counts field by field, and
    add_dummy_prefix is its third (source: sentencepiece_model.proto).
    """
    return blob + b"\x1a\x02\x18\x00"


class _SentencePiece:
    def __init__(self, model: Any, trim_after: Sequence[int], further: Any = None) -> None:
        """`further` splits texts behind a control token, if another model does."""
        self._model = model
        self._further = further
        self.size: int = self._model.GetPieceSize()
        self._special = {self.piece(i): i for i in range(self.size) if self._model.IsControl(i)}
        self._trimming = {self.piece(i) for i in trim_after}
        self._adds_space = adds_space(model)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._spelled = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def split(self, text: str, parse_special: bool) -> list[int]:
        if not (parse_special and self._special):
            return self._ids(self._model, text)
        return self.join(self._spelled.split(text))

    def _ids(self, model: Any, text: str) -> list[int]:
        try:
            return list(model.EncodeAsIds(text))
        except RuntimeError as error:
            raise RequestError(
                f"text: expected text that the tokenizer can split, {_reason(error)}"
            ) from None

    def join(self, parts: Sequence[str]) -> list[int]:
        """Each text is split as one of its own, by `further` if it is not the first. The space that it gets in front is
        its own if it has one: no reference tokenizer writes two.
        """
        ids: list[int] = []
        for i, part in enumerate(_trimmed(parts, frozenset(), self._trimming)):
            if i % 2:
                ids.append(self._special[part])
            elif i and self._further is not None:
                ids += self._ids(self._further, part)
            else:
                ids += self._ids(self._model, part.removeprefix(" ") if i and self._adds_space else part)
        return ids

    def piece(self, token: int) -> str:
        return str(self._model.IdToPiece(token)) if token < self.size else ""

    def find(self, piece: str) -> int | None:
        token: int = self._model.PieceToId(piece)
        return token if self.piece(token) == piece else None

    def special(self) -> dict[str, int]:
        return dict(self._special)

    def is_special(self, token: int) -> bool:
        return token < self.size and bool(self._model.IsControl(token) or self._model.IsUnknown(token))

    def is_added(self, token: int) -> bool:
        return False  # all of them are pieces


class _Tokenizers:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._lock = Lock()  # encode_special_tokens is a setting of the shared object
        self.size: int = self._model.get_vocab_size(with_added_tokens=True)
        self._added: dict[int, Any] = self._model.get_added_tokens_decoder()
        self._left = {token.content for token in self._added.values() if token.lstrip}
        self._right = {token.content for token in self._added.values() if token.rstrip}
        self._letters = _letters_alone(model)
        self._further: Any = None  # for texts behind another, made when it is needed

    def split(self, text: str, parse_special: bool) -> list[int]:
        return self._split(self._model, text, parse_special)

    def _split(self, model: Any, text: str, parse_special: bool) -> list[int]:
        try:
            with self._lock:
                model.encode_special_tokens = not parse_special
                ids = list(model.encode(text, add_special_tokens=False).ids)
        except _NOT_PANICS:
            raise
        except BaseException as error:
            raise RequestError(
                f"text: expected text that the tokenizer can split, {_reason(error)}"
            ) from None
        if not parse_special:
            self._require_text(ids, text)
        if self._letters is not None:
            self._require_letters(self._letters, text)
        return ids

    def _require_letters(self, letters: frozenset[str], text: str) -> None:
        normalizer = self._model.normalizer
        written = normalizer.normalize_str(text) if normalizer else text
        odd = next((char for char in written if char not in letters and not char.isspace()), None)
        if odd is not None:
            raise RequestError(
                f"text: expected characters that the vocabulary can write, found U+{ord(odd):04X}"
            )

    def _require_text(self, ids: Sequence[int], text: str) -> None:
        """Some models, such as unigram ones, know control tokens as pieces, and would find them in plain text."""
        for token in ids:
            if self.is_special(token) and self.piece(token) in text:
                raise RequestError(
                    f"text: expected none of the control tokens that the vocabulary cannot write as text, "
                    f"found {self.piece(token)!r}"
                )

    def join(self, parts: Sequence[str]) -> list[int]:
        special, ids = self.special(), list[int]()
        for i, part in enumerate(_trimmed(parts, self._left, self._right)):
            if i % 2:
                ids.append(special[part])
            elif part:
                ids += self._split(self._behind_another() if i else self._model, part, False)
        return ids

    def _behind_another(self) -> Any:
        """What splits a text that does not begin a prompt."""
        if self._further is None:
            self._further = _without_first_prefix(self._model)
        return self._further

    def piece(self, token: int) -> str:
        return self._model.id_to_token(token) or ""

    def find(self, piece: str) -> int | None:
        token: int | None = self._model.token_to_id(piece)
        return token

    def special(self) -> dict[str, int]:
        return {token.content: i for i, token in self._added.items() if token.special}

    def is_special(self, token: int) -> bool:
        return token in self._added and bool(self._added[token].special)

    def is_added(self, token: int) -> bool:
        return token in self._added


def load_library(kind: str, blob: bytes) -> Any:
    """A `SentencePieceProcessor` or `tokenizers.Tokenizer`; a ModelFileError says why a blob is refused."""
    if kind == "tokenizers":
        check_growth(blob)
    try:
        if kind == "sentencepiece":
            from sentencepiece import SentencePieceProcessor

            model = SentencePieceProcessor()
            model.LoadFromSerializedProto(blob)
            return model
        from tokenizers import Tokenizer as Library

        return _as_for_use(Library.from_buffer(blob))
    except _NOT_PANICS:
        raise
    except BaseException as error:
        raise ModelFileError(
            f"tokenizer: expected a {kind} model, found a broken one: {_reason(error)}"
        ) from None


def put_first(model: Any) -> int | None:
    """The token that a `tokenizers.Tokenizer` puts before every text; a ModelFileError says why it cannot be told."""
    try:
        ids = model.encode("", add_special_tokens=True).ids
    except _NOT_PANICS:
        raise
    except BaseException as error:
        raise ModelFileError(
            f"tokenizer: expected tokens around a text that are in the vocabulary, found others: {_reason(error)}"
        ) from None
    return ids[0] if ids else None


def _letters_alone(model: Any) -> frozenset[str] | None:
    """The characters that a BPE model can write, where it leaves out all others without a word: it has neither bytes
    nor a token for the unknown. None elsewhere.
    """
    bpe = model.model
    if (
        type(bpe).__name__ != "BPE"
        or bpe.unk_token
        or bpe.byte_fallback
        or "ByteLevel" in repr(model.pre_tokenizer)
    ):
        return None
    before, behind = bpe.continuing_subword_prefix or "", bpe.end_of_word_suffix or ""
    pieces = (
        piece.removeprefix(before).removesuffix(behind) for piece in model.get_vocab(with_added_tokens=False)
    )
    return frozenset(piece for piece in pieces if len(piece) == 1)


def _without_first_prefix(model: Any) -> Any:
    """The same model, or one like it where the first text alone, behind no token, gets a space in front."""
    made = json.loads(model.to_str())
    parts = stages(made.get("pre_tokenizer"), "pretokenizers")
    first = [stage for stage in parts if stage.get("prepend_scheme") == "first"]
    if not first:
        return model
    for stage in first:
        stage["prepend_scheme"] = "never"
    return _as_for_use(type(model).from_str(json.dumps(made)))


def _as_for_use(model: Any) -> Any:
    """Without what is left on from training: lengths that are cut or filled, merges that are dropped by chance."""
    model.no_truncation()
    model.no_padding()
    if getattr(model.model, "dropout", None) is not None:
        model.model.dropout = None
    return model


def _reason(error: BaseException) -> str:
    """The first line of a library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def open_vocabulary(
    kind: str, blob: bytes, trim_after: Sequence[int] = (), first_prefix: bool = False
) -> Vocabulary | None:
    """The vocabulary that a blob holds; None for the kind `none`. Of a SentencePiece model `trim_after` are control
    tokens that swallow the white space after them, and with `first_prefix` a text behind a control token gets no space
    in front; the `tokenizers` library keeps its own of both.
    """
    if kind == "none":
        return None
    model = load_library(kind, blob)
    if kind == "tokenizers":
        return _Tokenizers(model)
    further = load_library(kind, without_space(blob)) if first_prefix else None
    return _SentencePiece(model, trim_after, further)


def check_ids(
    vocabulary: Vocabulary | None,
    n_vocab: int,
    *,
    bos: int | None,
    eos: tuple[int, ...],
    pad: int | None,
    unk: int | None,
    add_bos: bool,
) -> None:
    """Refuses a vocabulary larger than the model's, and special ids outside of it."""
    size = vocabulary.size if vocabulary else 0
    if size > n_vocab:
        raise ModelFileError(f"tokenizer: expected at most {n_vocab} tokens as the model has, found {size}")
    for name, tokens in (("bos", (bos,)), ("eos", eos), ("pad", (pad,)), ("unk", (unk,))):
        for token in tokens:
            if token is not None and not 0 <= token < n_vocab:
                raise ModelFileError(f"{name}: expected an id below {n_vocab}, found {token}")
    if add_bos and bos is None:
        raise ModelFileError("bos: expected an id as add_bos is true, found none")
