"""A conversation that keeps what it has evaluated. Must not know files or how memory is found for it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyinfer.answering import Answering, Message, Prompt, Turn
from pyinfer.arguments import is_whole, plain, shown
from pyinfer.chat import checked_messages
from pyinfer.errors import RequestError
from pyinfer.generation import Chunks, Stream, chunks
from pyinfer.timeline import Timeline

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyinfer.adapters import Adapters, Weighted
    from pyinfer.answering import ChatOptions, Options
    from pyinfer.generation import Request
    from pyinfer.model import Model

__all__ = ["Session"]


class Session(Answering):
    """A timeline of tokens whose KV cache is kept between calls; made by `Model.session`.

    A prompt is always the whole text from its beginning. What it has in common with the tokens that the session holds
    is not evaluated again; the answer is the same, bit for bit, as that of `Model.generate`. To go on where the session
    stands: `session.generate(session.tokens)`.

    `adapters` is the stack that the session answers with. Assigning another one, from any thread, takes effect between
    two tokens: an answer that is being made goes on with it, and what the next prompt has in common with the tokens
    held is evaluated again.

    A chat is kept as `messages`: `chat` takes what is new and adds the answer, also that part of one which was there
    when it was stopped.

    One operation at a time: a second one, while a stream is open, is a RequestError. `cancel` and `close` may be called
    from any thread.
    """

    def __init__(self, model: Model, timeline: Timeline) -> None:
        self._model = model
        self._timeline = timeline
        self._messages: list[dict[str, Any]] = []
        self._stack = model.shelf.default
        self._choosing = threading.Lock()  # what `adapters` says and what the next step takes are one

    @property
    def model(self) -> Model:
        """The model that it was made by."""
        return self._model

    @property
    def adapters(self) -> Weighted:
        """The stack of adapters, in order, with their weights. May be assigned whatever `load` takes as `adapters`."""
        return self._stack.weighted

    @adapters.setter
    def adapters(self, adapters: Adapters) -> None:
        stack = self._model.shelf.stack(adapters)
        with self._choosing:
            self._stack = stack
            self._timeline.use(stack.overlay)

    def _use(self, named: Adapters | None, request: Request) -> None:
        """The stack of an answer: the one that its options name, else the one that the session has by now."""
        with self._choosing:
            self._timeline.use(self._stack.overlay if named is None else request.overlay)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of prompt and answer so far, shape (position,); empty once the session is closed."""
        return self._timeline.tokens

    @property
    def position(self) -> int:
        """How many tokens the session holds."""
        return len(self._timeline.tokens)

    @property
    def context(self) -> int:
        """How many tokens it can hold."""
        return self._timeline.context

    @property
    def messages(self) -> tuple[Message, ...]:
        """The chat so far. Assigning other messages starts a chat from there."""
        return tuple(dict(message) for message in self._messages)

    @messages.setter
    def messages(self, messages: Iterable[Message]) -> None:
        if not isinstance(messages, Iterable):
            raise RequestError(f"messages: expected several, found {type(messages).__name__}")
        new = list(messages)
        with self._timeline.lease():
            self._messages = checked_messages(new) if new else []

    def append(self, prompt: Prompt) -> None:
        """Evaluates more tokens, so that a prompt that begins with all of them is answered at once.

        Text is tokenised on its own; it gets the model's opening token when the session is empty.

        Raises:
            ContextFullError: They do not fit. The session holds what it held before.
            Cancelled: `cancel` was called. The session holds what it held before.
        """
        with self._timeline.lease():
            tokens = self._model.tokens_of(prompt, opens=not self._timeline.tokens)
            self._timeline.use(self._stack.overlay)
            self._timeline.append(tokens)

    def truncate(self, position: int) -> None:
        """Forgets all tokens from `position` on; `messages` stay."""
        with self._timeline.lease():
            held = len(self._timeline.tokens)
            end = plain(position)
            if not is_whole(end) or not 0 <= end <= held:
                raise RequestError(
                    f"position: expected 0 to {held}, the tokens held, found {shown(position)}"
                )
            self._timeline.truncate(end)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Continues a prompt, chunk by chunk."""
        request = self._model.request(prompt, self.context, options, self._stack)
        with self._timeline.lease().handed_on() as lease:
            self._use(options.get("adapters"), request)
            return Stream(lease, chunks(self._timeline, self._model.tokenizer, request))

    def chat_stream(self, messages: Turn, **options: Unpack[ChatOptions]) -> Stream:
        """Answers what is new in a chat, chunk by chunk."""
        new = checked_messages(messages)
        with self._timeline.lease().handed_on() as lease:
            whole = [*self._messages, *new]
            request = self._model.chat_request(whole, self.context, options, self._stack)
            self._use(options.get("adapters"), request)
            return Stream(lease, self._conversed(whole, request))

    def _conversed(self, messages: list[dict[str, Any]], request: Request) -> Chunks:
        """The chunks of an answer, which becomes a message however the stream ends; without any text nothing does."""
        said: list[str] = []
        try:
            for chunk in chunks(self._timeline, self._model.tokenizer, request):
                said.append(chunk.text)
                yield chunk
        finally:
            if any(said):
                self._messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def cancel(self) -> None:
        """Ends the operation under way: a stream comes to its last chunk, `append` raises Cancelled."""
        self._timeline.cancel()

    def close(self) -> None:
        """Frees the cache, when a stream that is open has been cancelled; any later call is a RequestError."""
        self._timeline.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called, here or on the model."""
        return self._timeline.closed

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.position} of {self.context} tokens"
        return f"<pyinfer.Session of {self._model.name}: {state}>"
