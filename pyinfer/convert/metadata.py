"""The metadata blob of model.bin: what Python needs to know about a model besides its numbers and weights.

Must not know how the blob is stored or where a checkpoint came from; a strict reader and a writer of one
JSON object.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_args, get_origin, get_type_hints

from pyinfer.errors import ModelFileError

CONVERTER_VERSION = 5
"""Goes up when a conversion of the same source would give another file; part of every cache key."""

_MOST = 2.0**63
TOKENIZER_KINDS = ("sentencepiece", "tokenizers", "none")


def told(name: str) -> str:
    """A file's name as text: what in it is no UTF-8 becomes a question mark."""
    return name.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class SourceFile:
    """One file that was read: its name without folders, its size and its SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where the weights came from: `kind` is a reader's, `gguf` for one, or `model.bin` for a merged one."""

    kind: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class Landing:
    """How the tensors of one source type were stored.

    `rms_error` is the root mean square of the differences over the root mean square of the source's
    values, measured on sampled rows; it is 0 where every value was kept.
    """

    source: str
    format: str
    tensors: int
    bytes_in: int
    bytes_out: int
    rms_error: float


@dataclass(frozen=True)
class Metadata:
    """All fields of the blob; one that is missing, as in files of earlier versions, has its default. Token ids are
    checked against the vocabulary when the tokenizer is opened.
    """

    name: str
    architecture: str
    licence: str | None = None
    chat_template: str | None = None
    tool_template: str | None = None  # the chat template where tools are described, if it is another one
    tokenizer: str = "none"
    byte_level: bool = False  # pieces are written in the byte-level alphabet, else with U+2581 for a space
    space_prefix: bool = False  # text gets a leading space before it is split, and loses it when decoded
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    unk: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    trim_after: tuple[int, ...] = ()  # control tokens that swallow the white space after them
    first_prefix: bool = (
        False  # the leading space is for a text at the beginning alone, not for one behind a control token
    )
    source: Source = field(default_factory=lambda: Source("unknown", ()))
    landed: tuple[Landing, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    converter: int = CONVERTER_VERSION

    def to_json(self) -> bytes:
        """The blob: one UTF-8 JSON object without what has its default, but for the converter's version; ModelFileError
        where a text is none that UTF-8 can hold.
        """
        plain = asdict(Metadata(self.name, self.architecture))
        said = {name: value for name, value in asdict(self).items() if value != plain[name]}
        needed = {"name": self.name, "architecture": self.architecture, "converter": self.converter}
        text = json.dumps({**needed, **said}, ensure_ascii=False, allow_nan=False)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise ModelFileError(
                f"metadata: expected characters that UTF-8 can hold, found {text[error.start]!r}"
            ) from None

    @staticmethod
    def from_json(blob: bytes) -> Metadata:
        """Reads a blob; any unknown or mistyped field, and a missing one without a default, is a ModelFileError that
        names it.
        """
        try:
            raw = json.loads(blob, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(
                f"expected metadata as a JSON object, found {type(error).__name__}: {error}"
            ) from None
        metadata: Metadata = _read(Metadata, raw, "metadata")
        _check_ids(metadata)
        return metadata


def _no_number(name: str) -> float:
    raise ValueError(f"{name}, which is no number of JSON")


def _check_ids(metadata: Metadata) -> None:
    if metadata.tokenizer not in TOKENIZER_KINDS:
        raise ModelFileError(
            f"metadata.tokenizer: expected one of {', '.join(TOKENIZER_KINDS)}, found {metadata.tokenizer!r}"
        )
    for name in ("bos", "pad", "unk"):
        value = getattr(metadata, name)
        if value is not None and value < 0:
            raise ModelFileError(f"metadata.{name}: expected a token id of 0 or more, found {value}")
    for name in ("eos", "trim_after"):
        tokens = getattr(metadata, name)
        if any(token < 0 for token in tokens):
            raise ModelFileError(f"metadata.{name}: expected token ids of 0 or more, found {list(tokens)}")


def _read(kind: Any, raw: Any, where: str) -> Any:
    """Checks a JSON value against a type and turns objects into dataclasses and lists into tuples."""
    if hasattr(kind, "__dataclass_fields__"):
        return _read_object(kind, raw, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(raw, list):
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin is dict and isinstance(raw, dict):
        return {key: _read(args[1], value, f"{where}.{key}") for key, value in raw.items()}
    if type(raw) in (int, float) and not -_MOST < raw < _MOST:
        raise ModelFileError(f"{where}: expected a number of less than 2^63, found one beyond")
    if kind is float and type(raw) in (int, float):
        return float(raw)
    allowed = args if args and origin not in (tuple, dict) else (kind,)
    if type(raw) in allowed:
        return raw
    wanted = " or ".join(
        "null" if item is type(None) else getattr(item, "__name__", str(item)) for item in allowed
    )
    raise ModelFileError(f"{where}: expected {wanted}, found {type(raw).__name__}")


def _read_object(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ModelFileError(f"{where}: expected a JSON object, found {type(raw).__name__}")
    names = {item.name for item in fields(kind)}
    needed = {
        item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING
    }
    for word, odd in (("unknown", raw.keys() - names), ("missing", needed - raw.keys())):
        if odd:
            raise ModelFileError(f"{where}: {word} field {sorted(odd)[0]!r}")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], value, f"{where}.{name}") for name, value in raw.items()})
