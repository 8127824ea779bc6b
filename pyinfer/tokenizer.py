"""Text to token ids and back, over the tokenizer that a model.bin carries.

Must not know sessions, chat or files: it is built from a blob and the metadata. The splitting itself is
the work of the `sentencepiece` and `tokenizers` libraries, which are imported when a tokenizer is opened.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pyinfer.errors import RequestError
from pyinfer.vocabulary import Vocabulary, check_ids, open_vocabulary

if TYPE_CHECKING:
    from pyinfer._core import ModelFile
    from pyinfer.convert.metadata import Metadata

SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level vocabularies write bytes as (source: GPT-2's encoder)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """Encodes and decodes with the model's own vocabulary. Safe to use from several threads.

    Attributes:
        n_vocab: rows of the model's output; ids at or above the tokenizer's own size decode to nothing.
        bos: the id that begins a text, or None.
        eos: the ids that end an answer.
    """

    def __init__(self, blob: bytes, metadata: Metadata, n_vocab: int) -> None:
        """Opens a tokenizer; a ModelFileError says what is wrong with a broken one."""
        self.n_vocab = n_vocab
        self.bos = metadata.bos
        self.eos = metadata.eos
        self.pad = metadata.pad
        self.unk = metadata.unk
        self._metadata = metadata
        self._library = open_vocabulary(metadata.tokenizer, blob, metadata.trim_after, metadata.first_prefix)
        self._alphabet = _byte_alphabet() if metadata.byte_level else {}
        self._unwritable = bytes(b for c, b in self._alphabet.items() if self.piece_to_id(c) is None)
        self._bytes: dict[int, bytes] = {}
        check_ids(
            self._library,
            n_vocab,
            bos=self.bos,
            eos=self.eos,
            pad=self.pad,
            unk=self.unk,
            add_bos=metadata.add_bos,
        )

    @classmethod
    def open(cls, file: ModelFile) -> Tokenizer:
        """The tokenizer of an opened model.bin."""
        from pyinfer.convert.metadata import Metadata

        return cls(file.tokenizer(), Metadata.from_json(file.metadata()), file.spec["n_vocab"])

    def _opened(self) -> Vocabulary:
        if self._library is None:
            raise RequestError(
                "tokenizer: expected a model with a tokenizer, found one without; use token ids"
            )
        return self._library

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text that UTF-8 can hold.
            add_special: put the begin and end tokens around it, as far as the model wants them and the text has not
                spelled them.
            parse_special: read the spelling of control tokens as those tokens; otherwise it is plain text. Leave it off
                for text that comes from users.
        """
        self._check_text(text)
        ids = self._opened().split(text, parse_special) if text else []
        meta = self._metadata
        if add_special:
            ids = self.begun(ids)
        if add_special and meta.add_eos and meta.eos and ids[-1:] != [meta.eos[0]]:
            ids = [*ids, meta.eos[0]]
        return ids

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        """Token ids of a text that is to be continued: the begin token before it where the model wants one, and no end
        token behind; `parse_special` as of `encode`.
        """
        return self.begun(self.encode(text, add_special=False, parse_special=parse_special))

    def begun(self, ids: list[int]) -> list[int]:
        """The same with the begin token before them, where the model wants one and they have none."""
        bos = self._metadata.bos if self._metadata.add_bos else None
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def encode_parts(self, parts: Sequence[str]) -> list[int]:
        """Token ids of texts with control tokens between them: a text, the spelling of a token, a text, and so on.

        What the texts spell is text; texts may be empty. Nothing is put around it.
        """
        for text in parts[::2]:
            self._check_text(text)
        return self._opened().join(parts)

    def _check_text(self, text: str) -> None:
        """Some vocabularies lack bytes of unassigned characters, which the library would leave out without
        a word.
        """
        if not isinstance(text, str):
            raise RequestError(f"text: expected a str, found {type(text).__name__}")
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"text: expected characters that UTF-8 can hold, found {text[error.start]!r}"
            ) from None
        if self._unwritable and len(raw.translate(None, self._unwritable)) != len(raw):
            odd = next(c for c in text if set(c.encode()) & set(self._unwritable))
            raise RequestError(
                f"text: expected characters that the vocabulary can write, found U+{ord(odd):04X}"
            )

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        With `skip_special` control tokens leave nothing, otherwise they are spelled out.
        """
        stream = self.stream(skip_special=skip_special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, after: Sequence[int] = (), skip_special: bool = True) -> TextStream:
        """A decoder that takes one id at a time; `after` are the ids that the text continues."""
        self._opened()
        return TextStream(self, after, skip_special)

    def answer_stream(self, after: Sequence[int] = ()) -> TextStream | None:
        """The same for an answer; None for a model without a tokenizer, whose answers are token ids alone."""
        return None if self._library is None else self.stream(after)

    def token_to_piece(self, token: int) -> str:
        """The vocabulary's own spelling of a token; empty for rows that the tokenizer does not know."""
        self._check(token)
        return self._opened().piece(token)

    def piece_to_id(self, piece: str) -> int | None:
        """The token with this spelling, or None."""
        return self._opened().find(piece)

    def is_special(self, token: int) -> bool:
        """Whether this is a control token, which stands for no text."""
        self._check(token)
        return self._opened().is_special(token)

    def special_pieces(self) -> dict[str, int]:
        """Every control token by its spelling."""
        return self._opened().special()

    def _check(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise RequestError(f"token: expected an id of 0 to {self.n_vocab - 1}, found {token}")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; those of a control token spell its name."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._spell(token)
        return found

    def _spell(self, token: int) -> bytes:
        piece, library = self.token_to_piece(token), self._opened()
        if library.is_special(token):
            return piece.encode()
        if self._alphabet:
            literal = library.is_added(token) or not all(c in self._alphabet for c in piece)
            return piece.encode() if literal else bytes(self._alphabet[c] for c in piece)
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


class TextStream:
    """Turns ids into text as they come. No chunk ends inside a character; all chunks together are the
    whole text.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int], skip_special: bool) -> None:
        """`after` decides whether the text begins here, where a leading space is the tokenizer's own."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer._metadata.space_prefix and all(tokenizer.is_special(token) for token in after)

    def push(self, token: int) -> str:
        """The text that has become certain with this token; may be empty."""
        if self._tokenizer.is_special(token):
            return self._decoder.decode(b"" if self._skip_special else self._tokenizer.token_bytes(token))
        raw = self._tokenizer.token_bytes(token)
        if self._strip and raw:
            raw, self._strip = raw.removeprefix(b" "), False
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """What is left: U+FFFD if the last character was cut, else nothing."""
        return self._decoder.decode(b"", True)
