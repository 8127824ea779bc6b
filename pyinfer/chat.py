"""Messages to the tokens of a prompt, by the model's own chat template or a prompt format with a name.

Must not know sessions or sampling. What users write never becomes a control token: the spelling of one inside a message
stays plain text. To that end such spellings are broken by a character that occurs nowhere else, the text is rendered,
cut at the control tokens that are whole, which are the template's own, and only then mended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyinfer import prompt_formats
from pyinfer.errors import RequestError
from pyinfer.template import Template

if TYPE_CHECKING:
    from pyinfer.answering import Turn
    from pyinfer.convert.metadata import Metadata
    from pyinfer.prompt_formats import PromptFormat
    from pyinfer.tokenizer import Tokenizer

__all__ = ["ChatFormat", "Conversation", "checked_conversation", "checked_messages"]

_DEEPEST = 32
_OWN_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt")
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


def checked_conversation(
    turn: Turn, tools: object = None, documents: object = None, chat_template_kwargs: object = None
) -> Conversation:
    """What is said and what goes with it, as plain values of their own."""
    name = "chat_template_kwargs"
    if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
        raise RequestError(f"{name}: expected a mapping, found {type(chat_template_kwargs).__name__}")
    variables = _plain(chat_template_kwargs or {}, name, 0)
    return Conversation(
        checked_messages(turn),
        _checked_objects("tools", tools),
        _checked_objects("documents", documents),
        variables,
    )


def _checked_objects(name: str, given: object) -> list[Any] | None:
    """`tools` or `documents`: a list of JSON objects of its own, or None."""
    if given is None:
        return None
    if not isinstance(given, (list, tuple)) or not all(isinstance(item, Mapping) for item in given):
        raise RequestError(f"{name}: expected a list of mappings, found {given!r:.80}")
    return [_plain(item, f"{name}[{i}]", 0) for i, item in enumerate(given)] or None


@dataclass(frozen=True)
class Conversation:
    """What a prompt is made of, checked."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    """What else the template reads, by name."""

    def strings(self) -> Iterator[str]:
        """Every text in it."""
        return _strings([self.messages, self.tools, self.documents, list(self.variables.values())])

    def mapped(self, change: Callable[[str], str]) -> Conversation:
        """The same with every text changed."""
        messages, tools, documents = _mapped([self.messages, self.tools, self.documents], change)
        variables = {name: _mapped(value, change) for name, value in self.variables.items()}
        return Conversation(messages, tools, documents, variables)


class ChatFormat:
    """How one model is asked: its own chat template, or a prompt format, compiled.

    Raises:
        RequestError: The model has no chat template, and no format was named or is known for it; or the named one needs
            tokens that the model does not have.
        ModelFileError: The template is not valid.
    """

    def __init__(self, metadata: Metadata, tokenizer: Tokenizer, name: str | None = None) -> None:
        """Opens the format of this name; None: the model's own template, else the format of models of its name."""
        self._metadata = metadata
        self._tokenizer = tokenizer
        self._format = _chosen(metadata, name)
        source = self._format.template if self._format else str(metadata.chat_template)
        self._template = Template(source, self.what)
        own_for_tools = None if self._format else metadata.tool_template
        self._tool_template = Template(own_for_tools, self.what) if own_for_tools else self._template
        self._control = {piece: token for piece, token in tokenizer.special_pieces().items() if piece}
        longest_first = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._spelling = "|".join(longest_first) or r"(?!)"
        self._special = self._special_tokens()
        self._require_tokens()

    @property
    def what(self) -> str:
        """What errors call it."""
        return f"prompt format {self._format.name}" if self._format else "the model's chat template"

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer in this format."""
        return self._format.stops if self._format else ()

    def _special_tokens(self) -> dict[str, str]:
        """The spellings of special tokens under the names that templates know them by."""
        names = {"bos": self._metadata.bos, "eos": next(iter(self._metadata.eos), None)}
        names |= {"unk": self._metadata.unk, "pad": self._metadata.pad}
        return {f"{name}_token": self._spelled(token) for name, token in names.items()}

    def _spelled(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.token_to_piece(token)

    def _require_tokens(self) -> None:
        """A named format is nothing without its tokens."""
        if self._format is None:
            return
        for piece in self._format.controls:
            if self._tokenizer.piece_to_id(piece) is None:
                raise RequestError(f"{self.what}: expected a vocabulary with {piece!r}, found one without")
        for name in ("bos_token", "eos_token"):
            if name in self._template.variables and not self._special[name]:
                raise RequestError(f"{self.what}: expected a model with {name}, found one without")

    def tokens(self, conversation: Conversation, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the prompt that asks for an answer to a checked conversation."""
        template = self._template if conversation.tools is None else self._tool_template
        for name in ("tools", "documents"):
            if getattr(conversation, name) is not None and name not in template.variables:
                raise RequestError(f"{name}: expected none, as {self.what} has no place for them")

        for name in conversation.variables:
            if self._format or name not in template.variables or name in (*_OWN_VARIABLES, *self._special):
                raise RequestError(
                    f"chat_template_kwargs: expected names that {self.what} reads and that are free, found {name!r:.80}"
                )

        has_input = any(message.get("input") for message in conversation.messages)
        if has_input and self._format is None and "input" not in template.source:
            raise RequestError(f"input: expected none, as {self.what} has no place for it")

        def render(said: Conversation) -> str:
            return self._render(template, said, add_generation_prompt)

        text = render(conversation)
        written = "\n".join(conversation.strings())
        spelled = re.search(self._spelling, written)
        if spelled is None:
            ids = self._tokenizer.encode(text, add_special=False, parse_special=True)
        else:
            mark = _unused_mark(written + template.source + self._spelling)
            marked = render(self._marked(conversation, mark))
            if marked.replace(mark, "") != text:
                raise RequestError(
                    f"messages: expected no control tokens in texts that {self.what} looks into, found {spelled[0]!r}"
                )
            ids = self._encode_marked(marked, mark)
        return self._tokenizer.begun(ids)

    def _marked(self, conversation: Conversation, mark: str) -> Conversation:
        """The same with the mark in every control token that it spells; overlapping ones one after the other."""
        whole = self._whole(mark)

        def broken(text: str) -> str:
            while whole.search(text):
                text = whole.sub(lambda found: found[0][0] + mark + found[0][1:], text)
            return text

        return conversation.mapped(broken)

    def _encode_marked(self, text: str, mark: str) -> list[int]:
        parts = self._whole(mark).split(text)
        parts[::2] = [part.replace(mark, "") for part in parts[::2]]
        return self._tokenizer.encode_parts(parts)

    def _whole(self, mark: str) -> re.Pattern[str]:
        """Control tokens without a mark."""
        return re.compile(f"({self._spelling})(?!{mark})")

    def _render(self, template: Template, conversation: Conversation, add_generation_prompt: bool) -> str:
        messages = conversation.messages
        if self._format:
            return template.render(
                {**self._format.variables(messages, add_generation_prompt), **self._special}
            )
        given = {"messages": list(messages), "tools": conversation.tools, "documents": conversation.documents}
        given |= conversation.variables
        return template.render({**given, "add_generation_prompt": add_generation_prompt, **self._special})


def _chosen(metadata: Metadata, name: str | None) -> PromptFormat | None:
    """The named format; None where the model's own template is to be used."""
    if name is not None:
        return prompt_formats.named(name)
    if metadata.chat_template is not None:
        return None
    found = prompt_formats.recognised(metadata.name)
    if found is None:
        raise RequestError(
            f"the model {metadata.name!r} has no chat template, and its name tells no prompt format; name one with "
            f"format ({', '.join(prompt_formats.FORMATS)}), or have the text continued as it is (generate, run --raw)"
        )
    return found


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
