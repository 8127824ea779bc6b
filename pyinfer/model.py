"""A model that is ready to answer: the engine, its tokenizer, its chat format and the sessions it lends.

Must not know formats of other files (`hub` and `convert` do) nor how an answer is made (`generation` does).
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core, memory, prompt_formats
from pyinfer.answering import Answering, ChatFields, ChatOptions, Options, Prompt, Turn
from pyinfer.arguments import is_whole, plain, shown, whole
from pyinfer.chat import ChatFormat, checked_conversation
from pyinfer.convert.metadata import Metadata
from pyinfer.errors import ContextFullError, RequestError
from pyinfer.fitting import (
    Activations,
    Context,
    checked_context,
    chosen_activations,
    chosen_kv,
    fitting_context,
)
from pyinfer.generation import Processor, Request, Stream, chunks
from pyinfer.sampling import SamplingFields, merged
from pyinfer.session import Session
from pyinfer.shelf import Shelf, Stacked
from pyinfer.stopping import checked_stops
from pyinfer.timeline import Lease, Timeline, require_process
from pyinfer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyinfer._core import Kv
    from pyinfer.adapters import Adapter, AdapterLike, Adapters

__all__ = ["Model", "load"]

HugePages: TypeAlias = Literal["auto", "on", "off"]
MOST_IDLE = 2  # sessions kept for the next request
MOST_TOP = 1000


def load(
    path_or_name: str | os.PathLike[str],
    *,
    threads: int | None = None,
    context: Context = None,
    activations: Activations | None = None,
    kv: Kv = "auto",
    huge_pages: HugePages = "auto",
    format: str | None = None,
    adapters: Adapters = (),
    merge: bool = False,
    weights: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """Opens a model by path or name; what is not a model.bin is converted once, into the cache.

    Args:
        path_or_name: A model.bin, a GGUF file, a Hugging Face or Meta folder, a llama2.c file, or a name such as
            `smollm2` or `hf:org/repo:file`.
        threads: Threads that work on one step. None: the physical cores this process may use.
        context: Tokens that prompt and answer may have together, at most what the model was trained for. None: the
            same, but no more than 4096, since memory for the KV cache grows with it. `fit`: as None, or less where
            less fits into the memory that is free.
        activations: `int8` (fast) or `f32` (a slow reference). None: what PYINFER_ACTIVATIONS says, or int8.
        kv: How keys and values are kept: `f16` as halves, `i16` as 16-bit integers with a scale a position and head
            (some 3 % more memory), `q8` as bytes in half the memory, at a small cost in quality. `auto`: `i16` where
            the processor is faster with them (AVX-512 VNNI), activations are `int8` and keys have no bias, else `f16`.
            With any but `auto` logits have the same bits on every processor.
        huge_pages: Pages of 2 MiB for the weights, which are read faster than pages of 4 KiB. `auto`: where the
            system's cache of the file has them, as it does on Linux for files that pyinfer wrote. `on`: in a private
            copy of the file, made while loading; Linux only. `off`: none are asked for.
        format: The prompt format of chats, by name. None: the model's own chat template, else the format that models of
            its name have.
        adapters: The stack of LoRA adapters to answer with, unless a request names others: paths or adapters in order,
            each alone or as (adapter, weight).
        merge: True puts the adapters into the weights, once, into the cache: they cost nothing afterwards, and
            cannot be taken off. Matrices of 8 bits or less that they change are stored in 8 bits.
        weights: The packed format for sources in floats: `q4`, `q8`, `f16`, `bf16` or `f32`. None: `q8` for Hugging
            Face and Meta folders, `f32` for llama2.c's files. Refused for what is quantised already.
        progress: Called with done, total (0: unknown) and a word, while a model is fetched or converted.

    Raises:
        ModelFileError: There is no such file, or it is not a model that can be run; UnsupportedError when it is one
            that asks for something else than pyinfer does.
        DownloadError: The model could not be fetched.
        RequestError: An argument is outside its limits.
        MemoryLimitError: Weights and one session do not fit into the memory that is free, limits of control groups
            included; the message has all figures. Raised before the weights are read.
        OSError: The system refuses a file, or the disk is too small for the converted model.
    """
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise RequestError(f"path_or_name: expected a path or a name, found {type(path_or_name).__name__}")
    threads = whole("threads", threads, 1, _core.MOST_THREADS)
    context = context if context == "fit" else whole("context", context, 1)
    chosen = chosen_activations(activations)
    if kv not in ("auto", "f16", "i16", "q8"):
        raise RequestError(f"kv: expected auto, f16, i16 or q8, found {kv!r}")
    if huge_pages not in ("auto", "on", "off"):
        raise RequestError(f"huge_pages: expected auto, on or off, found {huge_pages!r}")
    if format is not None:
        prompt_formats.named(format)
    from pyinfer import hub

    source = path_or_name if isinstance(path_or_name, str) else Path(path_or_name)
    if merge:
        from pyinfer import merging

        if not adapters:
            raise RequestError("merge: expected adapters to merge, found none")
        if weights is not None:
            raise RequestError(f"weights: expected none beside merge, found {weights!r:.40}")
        path = merging.merged(source, merging.loaded(adapters), progress=progress)
        adapters = ()
    else:
        path = hub.resolve(source, weights=weights, progress=progress)
    model = Model(
        path,
        threads=threads,
        context=context,
        activations=chosen,
        kv=kv,
        huge_pages=huge_pages,
        format=format,
    )
    try:
        model.shelf.set_default(adapters)
    except BaseException:
        model.close()
        raise
    return model


class Model(Answering):
    """A model ready to answer, made by `load`.

    Any number of threads may use it at once; each answer equals its solo run. Outside of a `Session` what was computed
    for the last answer, or the last two that were made at once, is used again where a prompt begins alike: bits stay.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None,
        context: Context,
        activations: Activations,
        kv: Kv = "auto",
        huge_pages: HugePages = "auto",
        format: str | None = None,
    ) -> None:
        """Opens a model.bin; `load` is the way in."""
        file = _core.ModelFile(str(path), huge_pages)
        self.path = path
        self.spec = file.spec
        """Numbers of the architecture."""
        self.metadata = Metadata.from_json(file.metadata())
        """Name, licence, chat template, special tokens and where the model came from."""
        self.tokenizer = Tokenizer.open(file)
        self.activations = activations
        self.kv = chosen_kv(kv, activations, self.spec["qkv_bias"])
        """How keys and values are kept: `f16`, `i16` or `q8`."""
        self.format = format
        """The prompt format that chats use unless they name one; None: the model's own."""
        self._chats: dict[str | None, ChatFormat] = {}
        engine = _core.Engine(file, threads or 0, activations, prefetch=False)
        self._engine: _core.Engine | None = engine
        self.context = fitting_context(context, self.spec["context"], engine, self.kv, self.name)
        """Tokens that prompt and answer may have together."""
        engine.prefetch()
        self.shelf = Shelf(file, self._engine, self.metadata.architecture)
        """The adapters that the model knows by name, and the stack that it answers with."""
        self._process = os.getpid()
        self._idle: deque[Timeline] = (
            deque()
        )  # its methods are atomic, so a garbage collection may return one
        self._lent: weakref.WeakSet[Timeline] = weakref.WeakSet()
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The model's name, as its source gives it."""
        return self.metadata.name

    @property
    def n_vocab(self) -> int:
        """How many different tokens there are."""
        return self.spec["n_vocab"]

    @property
    def threads(self) -> int:
        """Threads that work on one step."""
        return self._open().threads

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._open().isa

    def memory(self, context: int | None = None) -> _core.MemoryDict:
        """Bytes of the weights, and of one session of `context` tokens (None: the model's)."""
        size = self.context if context is None else checked_context(context, self.spec["context"])
        return self._open().memory(size, self.kv)

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """Adapters that requests may name."""
        return self.shelf.known

    def add_adapter(self, adapter: AdapterLike, name: str | None = None) -> Adapter:
        """Makes an adapter known under a name, checked against the model, for requests to use.

        Args:
            adapter: A path, or an adapter that was loaded.
            name: What requests call it. None: its own name.

        Raises:
            ModelFileError: It cannot be read or does not fit the model.
            RequestError: The name is another adapter's.
        """
        self._open()
        return self.shelf.add(adapter, name)

    def remove_adapter(self, name: str) -> None:
        """Forgets a name; sessions that use the adapter keep it."""
        self.shelf.remove(name)

    def session(self, context: int | None = None) -> Session:
        """A conversation that keeps what it has evaluated; `context` as in `load` (None: the model's)."""
        size = self.context if context is None else checked_context(context, self.spec["context"])
        return Session(self, self._new_timeline(size))

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Continues a prompt, chunk by chunk."""
        self._open()
        return self._streamed(self.request(prompt, self.context, options, self.shelf.default))

    def chat_stream(self, messages: Turn, **options: Unpack[ChatOptions]) -> Stream:
        """Answers messages, chunk by chunk, in the model's own chat template or a prompt format."""
        self._open()
        return self._streamed(self.chat_request(messages, self.context, options, self.shelf.default))

    def chat_tokens(
        self,
        messages: Turn,
        *,
        format: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of messages in the model's own chat template or a prompt format; arguments as those of `chat`.

        Control tokens in the messages stay plain text.

        Raises:
            RequestError: There is neither a chat template nor a known format, or it refuses the messages.
            ModelFileError: The template is broken, or reaches for what it may not have.
        """
        conversation = checked_conversation(messages, tools, documents, chat_template_kwargs)
        return self.chat_format(format).tokens(conversation, add_generation_prompt)

    def chat_format(self, name: str | None = None) -> ChatFormat:
        """The format that chats are written in: the named one, or the model's; errors as of `chat_tokens`."""
        name = self.format if name is None else prompt_formats.named(name).name
        if name not in self._chats:
            self._chats[name] = ChatFormat(self.metadata, self.tokenizer, name)
        return self._chats[name]

    def logits(self, tokens: Prompt, *, adapters: Adapters | None = None) -> NDArray[np.float32]:
        """Logits of the next token after each token, shape (n_tokens, n_vocab); `adapters` as for `generate`."""
        self._open()
        stack = self.shelf.default if adapters is None else self.shelf.stack(adapters)
        ids = self._prompt(tokens, self.context)
        memory.require(4 * len(ids) * self.n_vocab, f"logits of {len(ids)} tokens")
        lease = self._lend(ids, least=True)  # since all rows are wanted, nothing that is held is used
        try:
            lease.timeline.truncate(0)
            lease.timeline.use(stack.overlay)
            return lease.timeline.replace(ids, "all")[1]
        finally:
            lease.release()
            self._take_back(lease.timeline)

    def close(self) -> None:
        """Frees the model; its sessions close and its streams are cancelled. Any later call is a RequestError."""
        with self._lock:
            self._engine = None
            lent = list(self._lent)
        for timeline in lent:
            timeline.close()
        self._idle.clear()
        self.shelf.clear()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine is None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        engine, state = self._engine, "closed"
        if engine is not None:
            state = f"{engine.threads} threads, {engine.isa}, {self.context} tokens of context"
        return f"<pyinfer.Model {self.name}: {state}>"

    # Requests: what a caller asks for, checked before any work

    def tokens_of(
        self, prompt: Prompt, *, opens: bool = True, parse_special: bool = False
    ) -> tuple[int, ...]:
        """Token ids of a prompt: those of a text, with the model's opening token if the text opens the timeline, or the
        ids given, checked.
        """
        if isinstance(prompt, str):
            if opens:
                return tuple(self.tokenizer.encode_prompt(prompt, parse_special))
            return tuple(self.tokenizer.encode(prompt, add_special=False, parse_special=parse_special))
        single = isinstance(prompt, (bytes, bytearray)) or getattr(prompt, "shape", None) == ()
        if single or not isinstance(prompt, (Sequence, np.ndarray)):
            raise RequestError(f"prompt: expected text or token ids, found {type(prompt).__name__}")
        tokens = []
        for i, given in enumerate(prompt):
            if isinstance(given, str):
                raise RequestError(
                    "prompt: expected one text or token ids, found a list of texts: ask for each by itself"
                )
            token = plain(given)
            if not is_whole(token) or not 0 <= token < self.n_vocab:
                raise RequestError(
                    f"prompt[{i}]: expected a token id from 0 to {self.n_vocab - 1}, found {shown(given)}"
                )
            tokens.append(token)
        return tuple(tokens)

    def chat_request(self, messages: Turn, context: int, options: ChatOptions, stack: Stacked) -> Request:
        """A request that answers messages, checked; stop strings of the format come before those of the options."""
        given: dict[str, Any] = dict(options)
        asked: dict[str, Any] = {key: given.pop(key) for key in ChatFields.__annotations__ if key in given}
        if given.get("parse_special"):
            raise RequestError(
                "parse_special: expected none, as messages spell no control tokens, found True"
            )
        name, tokens = asked.get("format"), self.chat_tokens(messages, **asked)
        request = self.request(tokens, context, cast(Options, given), stack, ChatFields.__annotations__)
        stops = checked_stops((*self.chat_format(name).stops, *request.stop))
        ends = request.stop_ids.union(self._control_tokens(stops))
        return replace(request, stop=stops, stop_ids=ends, opens=True)

    def request(
        self, prompt: Prompt, context: int, options: Options, stack: Stacked, others: Iterable[str] = ()
    ) -> Request:
        """A request from a prompt, options and the stack to use unless they name one, checked; the answers of `Model`
        and `Session` begin here. `others` are options that were taken already.
        """
        given: dict[str, Any] = dict(options)
        names = ("params", "max_tokens", "stop", "logprobs", "processors", "adapters", "parse_special")
        params, max_tokens, stop, logprobs, processors, adapters, special = (
            given.pop(name, None) for name in names
        )
        max_tokens = whole("max_tokens", max_tokens, 0, none="no limit")
        logprobs = whole("logprobs", logprobs, 0, MOST_TOP)
        sampling = merged(params, cast(SamplingFields, given), (*names, *others)).with_seed()
        _require_biases_below(self.n_vocab, sampling.logit_bias)
        stops = checked_stops(() if stop is None else stop)
        return Request(
            prompt=self._prompt(prompt, context, bool(special)),
            n_vocab=self.n_vocab,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stops,
            stop_ids=frozenset((*self.tokenizer.eos, *self._control_tokens(stops))),
            logprobs=None if logprobs is None else min(logprobs, self.n_vocab),
            processors=_callables(processors),
            overlay=(stack if adapters is None else self.shelf.stack(adapters)).overlay,
        )

    def _prompt(self, prompt: Prompt, context: int, parse_special: bool = False) -> tuple[int, ...]:
        tokens = self.tokens_of(prompt, parse_special=parse_special)
        if not tokens:
            raise RequestError(
                "prompt: expected at least one token, found none, and the model adds no opening token"
            )
        if len(tokens) > context:
            most = self.spec["context"]
            more = f"; up to {most} with context= (--ctx)" if context < most else ""
            raise ContextFullError(f"the prompt has {len(tokens)} tokens, the context holds {context}{more}")
        return tokens

    def _control_tokens(self, stops: tuple[str, ...]) -> list[int]:
        """Stop strings that spell a control token end the answer at the token, which has no text of its own."""
        tokens = (self.tokenizer.piece_to_id(stop) for stop in stops)
        return [token for token in tokens if token is not None and self.tokenizer.is_special(token)]

    # Timelines: lent for one answer each, a few kept for the next

    def _streamed(self, request: Request) -> Stream:
        with self._lend(request.prompt).handed_on() as lease:
            lease.timeline.use(request.overlay)
            return Stream(lease, chunks(lease.timeline, self.tokenizer, request), self._take_back)

    def _lend(self, tokens: Sequence[int], *, least: bool = False) -> Lease:
        """A timeline for a prompt: of those that are idle the one that holds most of its beginning, or least."""
        for timeline in sorted(self._idle, key=lambda idle: idle.shared(tokens), reverse=not least):
            with contextlib.suppress(ValueError):  # another thread has taken it
                self._idle.remove(timeline)
                return timeline.lease()
        return self._new_timeline(self.context).lease()

    def _take_back(self, timeline: Timeline) -> None:
        if len(self._idle) < MOST_IDLE and not self.closed:
            timeline.rest()
            self._idle.append(timeline)
        else:
            timeline.close()

    def _new_timeline(self, context: int) -> Timeline:
        engine = self._open()
        needed = engine.memory(context, self.kv)
        memory.require(needed["kv_cache"] + needed["workspace"], f"a session of {context} tokens")
        timeline = Timeline(engine, context, self.kv)
        with self._lock:
            self._lent.add(timeline)
            if self.closed:  # in this moment, by another thread
                timeline.close()
        return timeline

    def _open(self) -> _core.Engine:
        require_process(self._process)
        engine = self._engine
        if engine is None:
            raise RequestError("the model is closed")
        return engine


def _callables(processors: object) -> tuple[Processor, ...]:
    wanted = "processors: expected several callables that take tokens and logits"
    if processors is None:
        return ()
    if not isinstance(processors, Iterable):
        raise RequestError(f"{wanted}, found {type(processors).__name__}")
    found = tuple(processors)
    for one in found:
        if not callable(one):
            raise RequestError(f"{wanted}, found {type(one).__name__}")
    return found


def _require_biases_below(n_vocab: int, biases: Mapping[int, float]) -> None:
    most = max(biases, default=-1)
    if most >= n_vocab:
        raise RequestError(f"logit_bias: expected token ids from 0 to {n_vocab - 1}, found {most}")
