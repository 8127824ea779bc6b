"""What `run` is asked: the messages from its options, from files and from the pipe.

Must not know how a model is found or loaded, nor what its prompt format takes: that is for the API to refuse.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfer.errors import RequestError
from pyinfer.prompt_formats import FORMATS

if TYPE_CHECKING:
    from pyinfer.answering import ChatFields

__all__ = ["add_conversation", "chat_options", "messages", "read_messages", "refuse_with_raw"]

_CHAT_ONLY = ("format", "system", "input", "messages", "tools", "documents", "chat_template_kwargs")


def add_conversation(parser: argparse.ArgumentParser) -> None:
    """What is said, and how it becomes a prompt."""
    group = parser.add_argument_group("conversation")
    names = f"prompt format, instead of the model's own chat template: {', '.join(FORMATS)}"
    group.add_argument("--format", metavar="NAME", help=names)
    group.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    group.add_argument("--input", metavar="TEXT", help="input to the instruction, for formats such as alpaca")
    group.add_argument(
        "--messages", metavar="FILE", help="the conversation so far: a JSON list, or what /save wrote"
    )
    group.add_argument("--tools", metavar="FILE", help="descriptions of tools: a JSON list")
    group.add_argument(
        "--documents", metavar="FILE", help="documents for templates that take them: a JSON list"
    )
    group.add_argument(
        "--chat-template-kwargs",
        metavar="JSON",
        help='what else the model\'s template reads, such as {"enable_thinking": false}',
    )


def refuse_with_raw(options: argparse.Namespace) -> None:
    """A prompt that is continued as it stands has no place for messages."""
    for name in _CHAT_ONLY:
        if options.raw and getattr(options, name) is not None:
            raise RequestError(f"--{name.replace('_', '-')} needs a prompt format, which --raw leaves out")


def chat_options(options: argparse.Namespace) -> ChatFields:
    """What goes with the messages."""
    tools, documents = (_read_list(getattr(options, name), name) for name in ("tools", "documents"))
    variables = _variables(options.chat_template_kwargs)
    return {
        "format": options.format,
        "tools": tools,
        "documents": documents,
        "chat_template_kwargs": variables,
    }


def _variables(text: str | None) -> dict[str, Any] | None:
    try:
        found = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        found = text
    if found is not None and not isinstance(found, dict):
        raise RequestError(f"--chat-template-kwargs: expected a JSON object, found {text!r:.80}")
    return found


def messages(prompt: str | None, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The conversation that is to be answered: the file's, with a system message before and the prompt behind."""
    said = read_messages(Path(options.messages)) if options.messages else []
    if options.system is not None:
        if said and said[0].get("role") == "system":
            raise RequestError(f"{options.messages}: expected no system message beside --system, found one")
        said = [{"role": "system", "content": options.system}, *said]
    if prompt is None:
        if options.input:
            raise RequestError("--input needs a prompt that it belongs to")
        return said
    turn = {"role": "user", "content": prompt}
    return [*said, turn | {"input": options.input} if options.input else turn]


def read_messages(path: Path) -> list[dict[str, Any]]:
    """Messages from a file: a list of them, or an object that has one as `messages`, as the chat's /save writes it."""
    found = _read_json(path)
    listed = found.get("messages") if isinstance(found, dict) else found
    return _objects(listed, path, "a JSON list of messages, or what /save wrote")


def _read_list(path: str | None, name: str) -> list[dict[str, Any]] | None:
    return None if path is None else _objects(_read_json(Path(path)), Path(path), f"a JSON list of {name}")


def _objects(found: Any, path: Path, wanted: str) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise RequestError(f"{path}: expected {wanted}, found {type(found).__name__}")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: expected JSON, found {type(error).__name__}") from None
