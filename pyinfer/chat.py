"""Messages to the tokens of a prompt, by the model's own chat template.

Must not know sessions or sampling. What users write never becomes a control token: the spelling of one inside a message
stays plain text. To that end such spellings are broken by a character that occurs nowhere else, the text is rendered,
cut at the control tokens that are whole, which are the template's own, and only then mended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyinfer.errors import RequestError
from pyinfer.template import Template

if TYPE_CHECKING:
    from pyinfer.answering import Turn
    from pyinfer.convert.metadata import Metadata
    from pyinfer.tokenizer import Tokenizer

__all__ = ["ChatFormat", "checked_messages"]

_DEEPEST = 32
_PRIVATE_USE = range(0xE000, 0xF900)


def checked_messages(turn: Turn) -> list[dict[str, Any]]:
    """Messages as plain values of their own; a string is one message of the user."""
    if isinstance(turn, str):
        turn = [{"role": "user", "content": turn}]
    elif isinstance(turn, Mapping):
        turn = [turn]
    if not isinstance(turn, Sequence) or not turn:
        raise RequestError(f"messages: expected a string, a message or several, found {turn!r:.80}")
    return [_checked_message(message, f"messages[{i}]") for i, message in enumerate(turn)]


def _checked_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(
            f"{where}: expected a mapping with role and content, found {type(message).__name__}"
        )
    plain: dict[str, Any] = _plain(message, where, 0)
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{where}['role']: expected a name such as 'user', found {role!r:.80}")
    only_text = plain.keys() <= {"role", "content"}
    if not isinstance(content, str) and (content is not None or only_text):
        raise RequestError(f"{where}['content']: expected a string, found {type(content).__name__}")
    return plain


def _plain(value: Any, where: str, depth: int) -> Any:
    """A copy of a JSON value; anything else is refused."""
    if depth > _DEEPEST:
        raise RequestError(f"{where}: expected at most {_DEEPEST} levels of lists and mappings")
    if isinstance(value, str):
        return _valid(value, where)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(f"{where}: expected keys that are strings")
        return {
            _valid(key, where): _plain(item, f"{where}[{key!r:.40}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise RequestError(f"{where}: expected text, numbers, lists and mappings, found {type(value).__name__}")


def _valid(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: expected valid Unicode, found {text[error.start]!r}") from None
    return str(text)


class ChatFormat:
    """The chat template of one model, compiled.

    Raises:
        RequestError: The model has no chat template.
        ModelFileError: The template is not valid.
    """

    def __init__(self, metadata: Metadata, tokenizer: Tokenizer) -> None:
        if metadata.chat_template is None:
            raise RequestError(
                f"the model {metadata.name!r} has no chat template; write the prompt yourself and use generate"
            )
        self._metadata = metadata
        self._tokenizer = tokenizer
        self._source = metadata.chat_template
        self._template = Template(self._source)
        self._control = {piece: token for piece, token in tokenizer.special_pieces().items() if piece}
        longest_first = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._spelling = "|".join(longest_first) or r"(?!)"

    def tokens(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the prompt that asks for an answer to checked messages."""
        text = self._render(messages, add_generation_prompt)
        written = "\n".join(_strings(messages))
        spelled = re.search(self._spelling, written)
        if spelled is None:
            ids = self._tokenizer.encode(text, add_special=False, parse_special=True)
        else:
            mark = _unused_mark(written + self._source + self._spelling)
            marked = self._marked(messages, add_generation_prompt, mark)
            if marked.replace(mark, "") != text:
                raise RequestError(
                    "messages: expected no control tokens in texts that the model's chat template looks into, "
                    f"found {spelled[0]!r}"
                )
            ids = self._encode_marked(marked, mark)
        bos = self._metadata.bos if self._metadata.add_bos else None
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def _marked(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, mark: str) -> str:
        """The text, with the mark in every control token that messages spell; overlapping ones one after the other."""
        whole = self._whole(mark)

        def broken(text: str) -> str:
            while whole.search(text):
                text = whole.sub(lambda found: found[0][0] + mark + found[0][1:], text)
            return text

        return self._render(_mapped(messages, broken), add_generation_prompt)

    def _encode_marked(self, text: str, mark: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._whole(mark).split(text)):
            plain = part.replace(mark, "")
            ids += [self._control[part]] if i % 2 else self._tokenizer.encode(plain, add_special=False)
        return ids

    def _whole(self, mark: str) -> re.Pattern[str]:
        """Control tokens without a mark."""
        return re.compile(f"({self._spelling})(?!{mark})")

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        names = {"bos": self._metadata.bos, "eos": next(iter(self._metadata.eos), None)}
        names |= {"unk": self._metadata.unk, "pad": self._metadata.pad}
        special = {f"{name}_token": self._spelled(token) for name, token in names.items()}
        asked = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return self._template.render({"messages": list(messages), **asked, **special})

    def _spelled(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.token_to_piece(token)


def _unused_mark(text: str) -> str:
    """A private-use character that does not occur in a text."""
    for code in _PRIVATE_USE:
        if chr(code) not in text:
            return chr(code)
    raise RequestError("messages: expected some private-use character that is not in them, found none")


def _strings(value: Any) -> Iterator[str]:
    """All strings of a plain value, keys of mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a plain value with all its strings changed, keys of mappings included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return value
