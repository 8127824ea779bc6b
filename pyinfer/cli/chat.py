"""The chat on a terminal: a prompt with history, answers as they come, and a few commands.

Must not know how a model is found or loaded (`run` does), nor how a conversation is kept (`Session` does).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyinfer import cache
from pyinfer.adapters import Adapter
from pyinfer.cli import answer, conversation, options, terminal
from pyinfer.errors import ContextFullError, PyinferError, RequestError, plain

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from pyinfer import Completion, Model, Session, Stream
    from pyinfer.adapters import AdapterLike, Weighted
    from pyinfer.answering import ChatFields, Options

__all__ = ["Chat", "chat"]

KEYS = """\
Enter sends; Alt-Enter, or a backslash at the end of the line, begins a new line.
Ctrl-C stops an answer. Ctrl-D or /exit leaves."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


def chat(
    model: Model, wanted: Options, asked: ChatFields, said: list[dict[str, Any]], *, raw: bool, stats: bool
) -> int:
    """Talks until the person leaves; `said` is the beginning of the conversation, `asked` goes with every turn."""
    if not raw:
        model.chat_format(asked.get("format"))
    with model.session() as session:
        session.messages = said
        talk = Chat(session, wanted, asked, raw=raw, stats=stats)
        mode = "continues your text" if raw else "is ready"
        terminal.note(f"{plain(model.name)} {mode}. /help lists commands, Ctrl-D leaves.")
        _converse(talk, _prompt_session())
    return 0


def _converse(talk: Chat, prompt: PromptSession[str]) -> None:
    while not talk.over:
        try:
            talk.hear(prompt.prompt("> "))
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _prompt_session() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    history: History = InMemoryHistory()
    try:
        path = cache.state_file("history")
        path.touch(mode=0o600)
        history = _history(str(path))
    except (PyinferError, OSError) as error:
        terminal.note(f"pyinfer: the history of this chat is not kept: {error}")
    return PromptSession(
        history=history, multiline=True, key_bindings=_keys(), prompt_continuation=lambda *_: "  "
    )


def _history(path: str) -> History:
    """The history in a file; what cannot be written to it, on a full disk or since it is no UTF-8, is not kept."""
    from prompt_toolkit.history import FileHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError, UnicodeError):
                string.encode()
                super().store_string(string)

    return Kept(path)


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


@dataclass
class Chat:
    """What is said and done in one chat; knows no terminal."""

    session: Session
    wanted: Options
    asked: ChatFields | None = None
    """What goes with the messages."""
    raw: bool = False
    """Continue each text instead of answering it as a turn."""
    stats: bool = False
    """Say the statistics after every answer."""
    over: bool = False
    last: Completion | None = None

    def hear(self, text: str) -> None:
        """A line from the person: a command, or something to answer. Errors are said, not raised."""
        command = _COMMAND.fullmatch(text.strip())
        try:
            if command:
                self._obey(command[1], (command[2] or "").strip())
            elif text.strip():
                self._answer(text)
        except KeyboardInterrupt:
            terminal.note("(stopped)")
        except (PyinferError, OSError) as error:
            terminal.note(f"pyinfer: {terminal.sentence(error)}")

    def _answer(self, text: str) -> None:
        with self._stream(text) as stream:
            self.last = answer.write(stream)
        limit = self.wanted.get("max_tokens")
        for line in answer.remarks(self.last, self.session.context, limit, self.stats):
            terminal.note(line)

    def _stream(self, text: str) -> Stream:
        if self.raw:
            return self.session.stream(text, **self.wanted)
        try:
            return self.session.chat_stream(text, **self.wanted, **(self.asked or {}))
        except ContextFullError:
            if not self._forget_oldest(text):
                raise
        return self.session.chat_stream(text, **self.wanted, **(self.asked or {}))

    def _forget_oldest(self, text: str) -> bool:
        """Leaves out as many turns as it takes for three quarters of the context to hold the rest."""
        messages: list[Any] = list(self.session.messages)
        system = list(itertools.takewhile(lambda one: one["role"] == "system", messages))
        rest, left_out = messages[len(system) :], 0
        turn, room = {"role": "user", "content": text}, self.session.context * 3 // 4
        if self._tokens([*system, turn]) > self.session.context:
            return False
        while rest and self._tokens([*system, *rest, turn]) > room:
            users = [i for i, message in enumerate(rest) if i and message["role"] == "user"]
            gone = users[0] if users else len(rest)
            del rest[:gone]
            left_out += gone
        if left_out:
            self.session.messages = (*system, *rest)
            terminal.note(
                f"The oldest {left_out} messages are left out, the context is full; --ctx makes room."
            )
        return left_out > 0

    def _tokens(self, messages: list[dict[str, Any]]) -> int:
        return len(self.session.model.chat_tokens(messages, **(self.asked or {})))

    def _obey(self, name: str, argument: str) -> None:
        if name not in COMMANDS:
            raise RequestError(f"there is no command /{name}; /help lists those there are")
        COMMANDS[name][1](self, argument)

    def help(self, _: str = "") -> None:
        """Says the commands and keys."""
        rows = [(f"/{name}", line) for name, (line, _) in COMMANDS.items()]
        terminal.note(f"{terminal.table(rows)}\n{KEYS}")

    def clear(self, _: str = "") -> None:
        """Forgets the conversation, not the system message."""
        self.session.messages = self._system()
        terminal.note("The conversation is forgotten.")

    def system(self, text: str) -> None:
        """Sets the system message, or says it."""
        if self.raw:
            raise RequestError("a system message needs a chat template, which is not used here")
        if not text:
            told = self._system()
            lines = str(told[0]["content"]).split("\n") if told else ["There is no system message."]
            terminal.note("\n".join(map(plain, lines)))
            return
        told_anew, rest = {"role": "system", "content": text}, self.session.messages[len(self._system()) :]
        asked = [told_anew, {"role": "user", "content": "?"}]
        self.session.model.chat_tokens(asked, **(self.asked or {}))  # or says that there is no such role
        self.session.messages = (told_anew, *rest)

    def _system(self) -> tuple[Any, ...]:
        """The system message, if there is one."""
        first = self.session.messages[:1]
        return first if first and first[0]["role"] == "system" else ()

    def save(self, name: str) -> None:
        """Writes the conversation to a file that `load` reads."""
        path = _file(name, "/save")
        text = json.dumps({"messages": self.session.messages}, ensure_ascii=False, indent=2)
        cache.write_whole(path, text + "\n")
        terminal.note(f"{len(self.session.messages)} messages are in {path}.")

    def load(self, name: str) -> None:
        """Takes up a conversation from a file."""
        path = _file(name, "/load")
        self.session.messages = conversation.read_messages(path)
        terminal.note(f"{len(self.session.messages)} messages were read from {path}.")

    def lora(self, argument: str) -> None:
        """Says the adapters in use, adds one, takes one off, or gives one another weight."""
        verb, _, rest = argument.partition(" ")
        if verb == "":
            self._say_adapters()
            return
        if verb not in ("add", "remove", "weight") or not rest.strip():
            raise RequestError(
                "expected /lora, /lora add DIR[:WEIGHT], /lora remove NAME or /lora weight NAME WEIGHT"
            )
        self.session.adapters = _restacked(self.session.adapters, verb, rest.strip())
        self._say_adapters()

    def _say_adapters(self) -> None:
        stack = self.session.adapters
        rows = [
            (name, f"{weight:g}", str(adapter.path))
            for name, (adapter, weight) in zip(_names(stack), stack, strict=True)
        ]
        terminal.note(terminal.table(rows) if rows else "There is no adapter in use.")

    def say_stats(self, _: str = "") -> None:
        """Says the statistics of the last answer, and how full the context is."""
        if self.last:
            terminal.note(answer.stats(self.last))
        terminal.note(f"The context holds {self.session.position} of {self.session.context} tokens.")

    def exit(self, _: str = "") -> None:
        """Ends the chat."""
        self.over = True


def _restacked(stack: Weighted, verb: str, argument: str) -> list[tuple[AdapterLike, float]]:
    """The stack with one more adapter, without one, or with another weight."""
    if verb == "add":
        return [*stack, _added(stack, argument)]
    name, weight = _name_and_weight(argument) if verb == "weight" else (argument, "")
    names = _names(stack)
    changed: list[tuple[AdapterLike, float]] = list(stack)
    if name not in names:
        raise RequestError(f"there is no adapter {name!r} in use; /lora lists those there are")
    at = names.index(name)
    if verb == "remove":
        return changed[:at] + changed[at + 1 :]
    try:
        changed[at] = (changed[at][0], float(weight))
    except ValueError:
        raise RequestError(f"expected a number as the weight of {name!r}, found {weight!r}") from None
    return changed


def _names(stack: Weighted) -> list[str]:
    """What the adapters of a stack are called here: a second one of a name has `#2` behind it, and so on."""
    names = [adapter.name for adapter, _ in stack]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}#{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def _added(stack: Weighted, argument: str) -> tuple[AdapterLike, float]:
    """What DIR[:WEIGHT] names; with the folders above it in its name while another adapter in use is called alike."""
    try:
        path, weight = options.lora(argument)
    except argparse.ArgumentTypeError as error:
        raise RequestError(str(error)) from None
    try:
        whole = path.resolve()
    except RuntimeError:  # before Python 3.13, of links that lead to themselves
        raise RequestError(f"{argument}: expected a folder or a file, found a loop of links") from None
    for used, _ in stack:
        if used.path.resolve() == whole:
            raise RequestError(f"{used.name!r} is in use already; /lora weight gives it another weight")
    taken, adapter = {used.name for used, _ in stack}, Adapter.load(path)
    for parent in whole.parents:
        if adapter.name not in taken:
            break
        adapter = replace(adapter, name=f"{parent.name}/{adapter.name}")
    return adapter, weight


def _name_and_weight(argument: str) -> tuple[str, str]:
    words = argument.rsplit(maxsplit=1)
    if len(words) != 2:
        raise RequestError(f"expected /lora weight NAME WEIGHT, found {argument!r} alone")
    return words[0], words[1]


def _file(name: str, command: str) -> Path:
    if not name:
        raise RequestError(f"{command} needs the name of a file")
    if "\0" in name:
        raise RequestError(f"{command}: expected the name of a file, found {name!r}")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise RequestError(f"{command}: expected the home of a user who exists, found {name!r}") from None


COMMANDS: dict[str, tuple[str, Callable[[Chat, str], None]]] = {
    "help": ("say this", Chat.help),
    "clear": ("forget the conversation", Chat.clear),
    "system": (
        "TEXT: tell the model something before the conversation; alone, say what it is told",
        Chat.system,
    ),
    "save": ("FILE: write the conversation to a file, over what it holds", Chat.save),
    "load": ("FILE: go on with a conversation from a file", Chat.load),
    "lora": ("adapters in use; add DIR[:WEIGHT], remove NAME, weight NAME WEIGHT", Chat.lora),
    "stats": ("speed and memory of the last answer", Chat.say_stats),
    "exit": ("leave", Chat.exit),
}
