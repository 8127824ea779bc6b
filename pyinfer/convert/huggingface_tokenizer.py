"""Builds a tokenizer from a Hugging Face directory: tokenizer.json as it is, or tokenizer.model with the
added tokens behind it.

Must not know weights or settings of the model, except for special ids that config.json and
generation_config.json name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyinfer.convert.checkpoint import TokenizerSource, in_file
from pyinfer.convert.gguf_tokenizer import END_TOKENS, as_meant, marks_a_turn
from pyinfer.convert.sentencepiece_model import CONTROL, USER_DEFINED, Piece, encode_pieces
from pyinfer.convert.small_file import optional_json, read_json, read_small
from pyinfer.errors import ModelFileError, UnsupportedError
from pyinfer.tokenizer_json import stages
from pyinfer.vocabulary import adds_space, load_library, put_first

Json = Mapping[str, Any]


def read_tokenizer(
    folder: Path, config: Json, generation: Json, settings: Json, n_vocab: int | None = None
) -> TokenizerSource:
    """The tokenizer of a directory; one without any has kind `none`.

    Added tokens from `n_vocab` on, for which the model has no rows, are left out, such as those of images in the text
    models of Gemma 3: they can be neither read nor written.
    """
    if (folder / "tokenizer.json").exists():
        file, opened = folder / "tokenizer.json", _library(folder / "tokenizer.json", n_vocab)
    elif (folder / "tokenizer.model").exists():
        file, opened = folder / "tokenizer.model", _sentencepiece(folder, settings, n_vocab)
    elif (folder / "tekken.json").exists():
        raise UnsupportedError(
            f"{folder}: expected tokenizer.json or tokenizer.model, found tekken.json alone, which is not supported"
        )
    else:
        return TokenizerSource()
    with in_file(file):
        bos = _stated(opened, "bos", config, settings)
        pad, unk = _stated(opened, "pad", config, settings), _token(opened, settings.get("unk_token"), None)
        return TokenizerSource(
            kind=opened.kind,
            blob=opened.blob,
            size=opened.size,
            byte_level=opened.byte_level,
            space_prefix=opened.space_prefix,
            bos=bos,
            eos=_ends(opened, config, generation, settings),
            pad=_below(pad, n_vocab),
            unk=_below(unk, n_vocab),
            add_bos=_flag(settings, "add_bos_token", opened.adds_bos and bos is not None),
            add_eos=_flag(settings, "add_eos_token", False),
            trim_after=opened.trim_after,
            first_prefix=opened.first_prefix,
        )


def _below(token: int | None, n_vocab: int | None) -> int | None:
    """A token that nothing is computed with, if the model has a row for it."""
    return None if token is None or (n_vocab is not None and token >= n_vocab) else token


def _without_rows(blob: bytes, n_vocab: int) -> bytes:
    """tokenizer.json without added tokens from `n_vocab` on."""
    whole = json.loads(blob)
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < n_vocab]
    return json.dumps(whole, ensure_ascii=False).encode()


def _as_meant(written: Json) -> bytes | None:
    """tokenizer.json with its tokens of turns as control tokens, which messages cannot spell; None if they are."""
    added = written.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    plain = [
        token
        for token in tokens
        if isinstance(token, dict)
        and token.get("special") is False
        and isinstance(token.get("content"), str)
        and marks_a_turn(token["content"])
    ]
    for token in plain:
        token["special"] = True
    return json.dumps(written, ensure_ascii=False).encode() if plain else None


class _Opened:
    """A tokenizer file that its library has accepted."""

    def __init__(self, kind: str, blob: bytes, ids: dict[str, int], special: set[str]) -> None:
        self.kind = kind
        self.blob = blob
        self.ids = ids
        self.special = special
        self.size = max(ids.values(), default=-1) + 1
        self.byte_level = False
        self.space_prefix = False
        self.first_prefix = False
        self.adds_bos = False
        self.trim_after: tuple[int, ...] = ()


def _flag(settings: Json, key: str, default: bool) -> bool:
    value = settings.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelFileError(f"tokenizer_config.json: {key}: expected true or false, found {value!r}")
    return default if value is None else value


def _token(opened: _Opened, spelled: Any, numbered: Any) -> int | None:
    """The id of a special token: by its spelling, else by its number."""
    text = spelled.get("content") if isinstance(spelled, dict) else spelled
    if isinstance(text, str) and text in opened.ids:
        return opened.ids[text]
    numbers = _numbers(numbered)
    return numbers[0] if numbers else None


def _stated(opened: _Opened, name: str, config: Json, settings: Json) -> int | None:
    """The id of `bos` or `pad`: the number in config.json counts where the tokenizer's settings do not say null."""
    spelled = f"{name}_token"
    if spelled in settings and settings[spelled] is None:
        return None
    return _token(opened, settings.get(spelled), config.get(f"{name}_token_id"))


def _numbers(value: Any) -> list[int]:
    """An id or a list of ids; negative ones mean that there is none."""
    if value is None:
        return []
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise ModelFileError(f"token ids: expected an integer or a list of integers, found {value!r}")
    return [number for number in numbers if number >= 0]


def _ends(opened: _Opened, config: Json, generation: Json, settings: Json) -> tuple[int, ...]:
    """The tokenizer's own end is the first, which texts and templates mean; generation_config.json, else config.json,
    knows what else ends an answer, and known end tokens are added.
    """
    own = _token(opened, settings.get("eos_token"), None)
    ends = _numbers(generation.get("eos_token_id", config.get("eos_token_id")))
    named = [opened.ids[token] for token in END_TOKENS if token in opened.special]
    return tuple(dict.fromkeys([*([] if own is None else [own]), *ends, *named]))


def _library(path: Path, n_vocab: int | None) -> _Opened:
    """tokenizer.json: opened by the library that wrote it, which is the check."""
    written = read_json(path)
    with in_file(path):
        blob = _as_meant(written) or read_small(path)
        library = load_library("tokenizers", blob)
        if n_vocab is not None and library.get_vocab_size(with_added_tokens=True) > n_vocab:
            blob = _without_rows(blob, n_vocab)
            library = load_library("tokenizers", blob)
        special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
        opened = _Opened("tokenizers", blob, library.get_vocab(with_added_tokens=True), special)
        opened.byte_level, opened.space_prefix = _spelling(json.loads(library.to_str()).get("decoder"))
        first = put_first(library)
        opened.adds_bos = first is not None and library.id_to_token(first) in special
        return opened


def _spelling(decoder: Any) -> tuple[bool, bool]:
    """How pieces spell text, read off the decoder: (byte-level, leading space removed)."""
    parts = {stage["type"]: stage for stage in stages(decoder, "decoders")}
    kinds = set(parts)
    if kinds == {"ByteLevel"}:
        return True, False
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in kinds:
        return False, parts.get("Strip", {}).get("start", 0) == 1
    if "Metaspace" in kinds and kinds <= {"Metaspace", "ByteFallback", "Fuse"}:
        metaspace = parts["Metaspace"]
        return False, metaspace.get("prepend_scheme", "always") != "never"
    raise UnsupportedError(
        f"decoder: expected ByteLevel, Metaspace or Replace with ByteFallback, found {sorted(kinds)}"
    )


def _sentencepiece(folder: Path, settings: Json, n_vocab: int | None) -> _Opened:
    """tokenizer.model, with the tokens that were added later behind its own."""
    path = folder / "tokenizer.model"
    with in_file(path):
        own = read_small(path)
        size = load_library("sentencepiece", own).GetPieceSize()
        added = _added_tokens(folder, settings, size)
        blob = own + encode_pieces(added if n_vocab is None else added[: max(n_vocab - size, 0)])
        model = load_library("sentencepiece", blob)
        ids = {model.IdToPiece(i): i for i in range(model.GetPieceSize())}
        special = {piece for piece, i in ids.items() if model.IsControl(i)}
        opened = _Opened("sentencepiece", blob, ids, special)
        opened.space_prefix = adds_space(model)
        # Without the "legacy" behaviour that is the default (source: SpmConverter of transformers).
        opened.first_prefix = opened.space_prefix and not _flag(settings, "legacy", True)
        opened.adds_bos = True
        opened.trim_after = _trimming(settings, model)
        return opened


def _trimming(settings: Json, model: Any) -> tuple[int, ...]:
    """Control tokens that swallow the white space after them; before them is not supported."""
    found = []
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        if int(number) < model.GetPieceSize() and model.IsControl(int(number)):
            if token.get("lstrip") is True:
                raise UnsupportedError(f"added_tokens_decoder: expected no lstrip, found it at {number}")
            found += [int(number)] if token.get("rstrip") is True else []
    return tuple(found)


def _added_tokens(folder: Path, settings: Json, size: int) -> list[Piece]:
    """Tokens that the directory adds to the model's own, in order of their ids, which must follow on."""
    added = optional_json(folder / "added_tokens.json")
    if not all(type(i) is int for i in added.values()):
        raise _gaps(size, list(added.values()))
    kinds = {i: (text, as_meant(text, USER_DEFINED)) for text, i in added.items()}
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise ModelFileError(f"added_tokens_decoder: expected a JSON object, found {type(listed).__name__}")
    for number, token in listed.items():
        if not (
            number.isdecimal()
            and len(number) <= 9
            and isinstance(token, dict)
            and isinstance(token.get("content"), str)
        ):
            raise ModelFileError(f"added_tokens_decoder: expected ids and tokens, found {number[:16]!r}")
        control = token.get("special") is True or marks_a_turn(token["content"])
        kinds[int(number)] = (token["content"], CONTROL if control else USER_DEFINED)
    later = [i for i in kinds if i >= size]
    if len(set(added.values())) != len(added) or set(later) != set(range(size, size + len(later))):
        raise _gaps(size, later)
    return [Piece(kinds[i][0], 0.0, kinds[i][1]) for i in range(size, size + len(later))]


def _gaps(size: int, found: list[Any]) -> ModelFileError:
    return ModelFileError(f"added tokens: expected ids from {size} on without gaps, found {found[:8]}"[:200])
