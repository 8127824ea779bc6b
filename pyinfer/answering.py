"""The four ways to ask for an answer, and their async twins: what `Model` and `Session` have in common.

Must not know how a stream is opened; the two classes say so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from pyinfer import aio
from pyinfer.completion import Chunk, Completion
from pyinfer.generation import Processor, Stream
from pyinfer.sampling import SamplingFields, SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyinfer.adapters import Adapters

__all__ = ["Answering", "ChatFields", "ChatOptions", "Message", "Options", "Prompt", "Turn"]

Message: TypeAlias = Mapping[str, Any]
"""One turn of a chat: `{"role": "user", "content": "…"}`, and what else the template knows."""
Turn: TypeAlias = str | Message | Sequence[Message]
"""What is said: one message, several, or a string that stands for one message of the user."""
Prompt: TypeAlias = str | Sequence[int]
"""Text, which is tokenised with the model's opening token, and in which the spelling of a control token is plain text
unless `parse_special` says otherwise; or token ids as they are."""


class Options(SamplingFields, total=False):
    """What may be asked of an answer, besides the fields of `SamplingParams`."""

    params: SamplingParams
    """Sampling parameters; single fields given beside it win."""
    max_tokens: int | None
    """Tokens of the answer, 0 or more. None: until the model ends or the context is full."""
    stop: str | Iterable[str]
    """Strings that end the answer and are no part of it."""
    logprobs: int | None
    """0 … 1000: record the logarithm of each token's probability, and of so many of the likeliest ones."""
    processors: Iterable[Processor]
    """Called in order before every pick, each with all tokens so far, a tuple, and the logits to change in place."""
    parse_special: bool
    """True reads the spelling of control tokens in a text as those tokens, for prompts with a template of your own.
    False (default) takes it as text, as what users write must be."""
    adapters: Adapters | None
    """The stack of adapters to answer with: names, paths or adapters, each alone or with its weight. None: that of the
    session or the model; empty: none at all."""


class ChatFields(TypedDict, total=False):
    """How messages become a prompt, and what goes with them."""

    format: str | None
    """The prompt format, by name. None: the one the model was loaded with, else its own chat template, else the format
    of models of its name."""
    tools: Sequence[Mapping[str, Any]] | None
    """Descriptions of tools, for templates that know them."""
    documents: Sequence[Mapping[str, Any]] | None
    """Documents, for templates that know them."""
    chat_template_kwargs: Mapping[str, Any] | None
    """What else the model's own template reads, such as `enable_thinking`; JSON values by name."""


class ChatOptions(Options, ChatFields, total=False):
    """What may be asked of an answer to messages."""


class Answering(ABC):
    """Answers prompts and turns of a chat, whole or in chunks, with or without asyncio."""

    @abstractmethod
    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Continues a prompt, chunk by chunk."""

    @abstractmethod
    def chat_stream(self, messages: Turn, **options: Unpack[ChatOptions]) -> Stream:
        """Answers messages, chunk by chunk, in the model's own chat template or a prompt format."""

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """Continues a prompt. Ctrl-C stops it with KeyboardInterrupt, in the prefill too.

        Raises:
            ContextFullError: The prompt is longer than the context.
            RequestError: An argument is outside its limits, or the model or session is closed.
            MemoryLimitError: There is no memory for a session.
        """
        with self.stream(prompt, **options) as stream:
            return stream.finish()

    def chat(self, messages: Turn, **options: Unpack[ChatOptions]) -> Completion:
        """Answers messages in the model's own chat template or a prompt format; errors as of `generate`."""
        with self.chat_stream(messages, **options) as stream:
            return stream.finish()

    async def agenerate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """`generate` in a worker thread; cancelling the task cancels the step under way."""
        return await aio.completion(lambda: self.stream(prompt, **options))

    async def achat(self, messages: Turn, **options: Unpack[ChatOptions]) -> Completion:
        """`chat` in a worker thread; cancelling the task cancels the step under way."""
        return await aio.completion(lambda: self.chat_stream(messages, **options))

    def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncGenerator[Chunk, None]:
        """`stream` in worker threads; cancelling the task or closing the generator cancels the step under way."""
        return aio.chunks(lambda: self.stream(prompt, **options))

    def achat_stream(self, messages: Turn, **options: Unpack[ChatOptions]) -> AsyncGenerator[Chunk, None]:
        """`chat_stream` in worker threads; cancelling the task or closing the generator cancels the step."""
        return aio.chunks(lambda: self.chat_stream(messages, **options))
