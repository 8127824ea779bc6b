"""The core through its C interface, with cffi in ABI mode: for interpreters without a matching `_core`, such as PyPy.

    from pyinfer import capi

    with capi.Model("stories.bin") as model, model.session() as session:
        sampler = model.sampler(temperature=0)
        logits = session.eval([1, 403, 407])
        for _ in range(20):
            logits = session.step(sampler.pick(logits))

The same exceptions, numbers and bits as `_core`; a number that C cannot hold is a RequestError. What is declared to
cffi is the text of `pyinfer.h` itself. Needs `pip install cffi`. The library is the one that PYINFER_LIBRARY
names, or the one beside this package.
Must not know what is done with tokens and logits.
"""

from __future__ import annotations

import functools
import operator
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyinfer import errors

if TYPE_CHECKING:
    from pyinfer._core import AdapterModule, Kv, MemoryDict, ReplacedTensor

__all__ = ["AdapterSet", "Library", "Model", "Sampler", "Session", "declarations", "library"]

Rows = Literal["none", "last", "all"]
_WANTED = {"none": 0, "last": 1, "all": 2}
_KV = {"auto": 3, "f16": 0, "i16": 2, "q8": 1}
_ACTIVATIONS = {"int8": 0, "f32": 1}
_HUGE_PAGES = {"auto": 0, "on": 1, "off": 2}
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}
_SPEC = "n_layers dim n_heads n_kv_heads head_dim n_ff n_vocab context rope_dim norm_eps rope_magnitude attention_scale"
_FILES = {"darwin": "libpyinfer.dylib", "win32": "pyinfer.dll"}
_OUR_FIELDS = {"size", "n_logit_bias", "reserved"}  # of pyi_sampling; set here, no parameters
_PYI_SYSTEM = 7
_ERRORS: dict[int, type[Exception]] = {
    1: errors.ModelFileError,
    2: errors.UnsupportedError,
    3: errors.RequestError,
    4: errors.ContextFullError,
    5: errors.Cancelled,
    6: errors.MemoryLimitError,
}


def declarations(header: str) -> str:
    """What cffi needs of pyinfer.h: without comments, preprocessor and the braces of C++; its one constant stays."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.DOTALL)
    constant = "\n".join(re.findall(r"^#define PYI_ABI_VERSION \d+$", text, re.MULTILINE))
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE).replace("PYI_API", "")
    return f"{constant}\n{text}"


class Library:
    """A loaded libpyinfer and the header that it was built from."""

    def __init__(self, path: Path, header: Path) -> None:
        """Loads a library. OSError where it cannot be loaded, UnsupportedError where it is not of the header."""
        try:
            from cffi import FFI
        except ImportError:
            raise errors.PyinferError("pyinfer.capi needs cffi: pip install cffi") from None
        self.path = path
        self.ffi: Any = FFI()
        self.ffi.cdef(declarations(header.read_text(encoding="utf-8")))
        self.lib: Any = self.ffi.dlopen(str(path))
        found, expected = self.lib.pyi_abi_version(), self.lib.PYI_ABI_VERSION
        if found != expected:
            raise errors.UnsupportedError(f"{path}: expected ABI version {expected}, found {found}")

    @property
    def version(self) -> str:
        """The version of pyinfer that the library is of."""
        return str(self.ffi.string(self.lib.pyi_version()).decode())

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        name = self.lib.pyi_isa()
        if name == self.ffi.NULL:
            self.check(3)
        return str(self.ffi.string(name).decode())

    def check(self, status: int) -> None:
        """Raises what a status stands for, with the library's sentence."""
        if status == 0:
            return
        message = self.ffi.string(self.lib.pyi_last_error()).decode("utf-8", "replace")
        if status == _PYI_SYSTEM:
            raise OSError(self.lib.pyi_last_error_code(), message)
        raise _ERRORS.get(status, errors.PyinferError)(message)

    def options(self, kind: str, **fields: Any) -> Any:
        """A struct with the library's defaults, and these fields set. RequestError for a value that C cannot hold."""
        made = self.ffi.new(f"{kind}*")
        self.check(getattr(self.lib, f"{kind}_init")(made, self.ffi.sizeof(kind)))
        types = {name: field.type for name, field in self.ffi.typeof(kind).fields}
        for name, value in fields.items():
            simple = types[name].kind == "primitive"
            setattr(made, name, self.held(types[name].cname, name, value) if simple else value)
        return made

    def held(self, kind: str, name: str, value: Any, expected: str = "") -> Any:
        """A number as C's `kind` holds it. RequestError for one that it cannot hold, or not whole where it must be."""
        whole = kind != "float"
        try:
            if whole and isinstance(value, bool):
                raise TypeError
            return self.ffi.new(f"{kind}[1]", [operator.index(value) if whole else value])[0]
        except (OverflowError, TypeError, ValueError):
            expected = expected or f"a {'whole ' if whole else ''}number in range"
            raise errors.RequestError(f"{name}: expected {expected}, found {value!r}") from None

    def open(self, call: str, kind: str, *arguments: Any) -> Any:
        """A handle from an _open call."""
        made = self.ffi.new(f"{kind}**")
        self.check(getattr(self.lib, call)(*arguments, made))
        return made[0]

    def filled(self, call: str, kind: str, *arguments: Any) -> Any:
        """A struct that a call fills in."""
        made = self.ffi.new(f"{kind}*")
        self.check(getattr(self.lib, call)(*arguments, made, self.ffi.sizeof(kind)))
        return made

    def number(self, call: str, kind: str, *arguments: Any) -> int:
        """A number that a call writes."""
        made = self.ffi.new(f"{kind}*")
        self.check(getattr(self.lib, call)(*arguments, made))
        return int(made[0])


@functools.cache
def library() -> Library:
    """The library that PYINFER_LIBRARY names, else the one beside this package; loaded once.

    Raises:
        PyinferError: There is none, or cffi is not installed; UnsupportedError for one of another ABI.
    """
    import pyinfer

    folders = [Path(folder) for folder in pyinfer.__path__]
    header = _first("pyinfer.h", folders)
    named = os.environ.get("PYINFER_LIBRARY")
    path = Path(named) if named else _first(_FILES.get(sys.platform, "libpyinfer.so"), folders)
    try:
        return Library(path, header)
    except OSError as error:
        raise errors.PyinferError(f"expected a libpyinfer that can be loaded, found: {error}") from None


def _first(name: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = ", ".join(map(str, folders))
    raise errors.PyinferError(f"expected {name} in {places}, found none; PYINFER_LIBRARY may name a library")


def _chosen(name: str, value: str, known: Mapping[str, int]) -> int:
    if value not in known:
        *most, last = known
        raise errors.RequestError(f"{name}: expected {', '.join(most)} or {last}, found {value}")
    return known[value]


def _ended(name: str, text: bytes) -> bytes:
    """Text that C does not end early."""
    if b"\0" in text:
        raise errors.RequestError(f"{name}: expected no NUL, found one")
    return text


class _Handle:
    """Something open in the library, closed once."""

    _closer = ""

    def __init__(self, of: Library, handle: Any) -> None:
        self._of = of
        self._close = getattr(of.lib, self._closer)  # here: cffi takes a lock, which __del__ may run within
        self.handle = handle

    def close(self) -> None:
        """Closes it; any later call is a RequestError. What others need of it lives on."""
        self._close(self.handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "handle" in self.__dict__:
            self.close()


class Model(_Handle):
    """A model ready to run: what `_core.ModelFile` and `_core.Engine` are together. May be used by any thread."""

    _closer = "pyi_model_close"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 0,
        activations: Literal["int8", "f32"] = "int8",
        context_limit: int = 0,
        kv: Kv = "auto",
        prefetch: bool = True,
        huge_pages: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        """Opens a model.bin; arguments as of `pyi_model_options`, 0 for the library's choice.

        Raises:
            ModelFileError: It is no sound model.bin.
            OSError: The system refuses the file.
            RequestError: An argument is outside its limits.
        """
        of = library()
        self._reading = threading.RLock()
        name = _ended("path", os.fsencode(path))
        options = of.options(
            "pyi_model_options",
            threads=threads,
            activations=_chosen("activations", activations, _ACTIVATIONS),
            context_limit=context_limit,
            kv=_chosen("kv", kv, _KV),
            prefetch=int(prefetch),
            huge_pages=_chosen("huge_pages", huge_pages, _HUGE_PAGES),
        )
        super().__init__(of, of.open("pyi_model_open", "pyi_model", name, options))
        self.n_vocab = int(self._info().n_vocab)

    def _info(self) -> Any:
        return self._of.filled("pyi_model_get_info", "pyi_model_info", self.handle)

    @property
    def spec(self) -> dict[str, int | float | bool]:
        """Sizes of the architecture: those fields of `_core.ModelFile.spec` that `pyi_model_info` has."""
        info = self._info()
        sizes = {name: getattr(info, name) for name in _SPEC.split()}
        return {**sizes, "tied_head": bool(info.tied_head)}

    @property
    def threads(self) -> int:
        """Threads that work on one step."""
        return int(self._info().threads)

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return int(self._info().file_bytes)

    @property
    def tensors(self) -> list[dict[str, Any]]:
        """Role, layer, format, rows, columns and bytes of every tensor, in the order of the file."""
        return [self._tensor(i) for i in range(self._info().n_tensors)]

    def _tensor(self, index: int) -> dict[str, Any]:
        found = self._of.filled("pyi_model_get_tensor", "pyi_tensor", self.handle, index)
        named = {name: self._of.ffi.string(getattr(found, name)).decode() for name in ("role", "format")}
        return {**named, **{name: int(getattr(found, name)) for name in ("layer", "rows", "cols", "bytes")}}

    def verify(self, tensor: int) -> bool:
        """Whether the bytes of one tensor match its checksum."""
        index = self._of.held("uint64_t", "tensor", tensor, f"0 to {self._info().n_tensors - 1}")
        return self._of.number("pyi_model_verify", "int32_t", self.handle, index) == 1

    def memory(self, context: int, kv: Kv = "auto") -> MemoryDict:
        """Bytes needed with one session of this context."""
        arguments = (self.handle, self._of.held("uint64_t", "context", context), _chosen("kv", kv, _KV))
        needs = self._of.filled("pyi_model_get_memory", "pyi_memory", *arguments)
        return {"weights": needs.weights, "kv_cache": needs.kv_cache, "workspace": needs.workspace}

    def metadata(self) -> bytes:
        """The metadata blob, its checksum verified."""
        return self._blob("pyi_model_get_metadata")

    def tokenizer(self) -> bytes:
        """The tokenizer blob, its checksum verified."""
        return self._blob("pyi_model_get_tokenizer")

    def _blob(self, call: str) -> bytes:
        data, size = self._of.ffi.new("uint8_t**"), self._of.ffi.new("size_t*")
        with self._reading:
            self._of.check(getattr(self._of.lib, call)(self.handle, data, size))
            return bytes(self._of.ffi.buffer(data[0], size[0]))

    def close(self) -> None:
        """Closes it; any later call is a RequestError. Sessions and adapters live on."""
        with self._reading:  # what is copied from the file must stay mapped
            super().close()

    def session(self, context: int = 0, kv: Kv | None = None) -> Session:
        """A session that holds nothing yet; 0 and None: as the model was opened."""
        return Session(self, context, kv)

    def sampler(self, **params: Any) -> Sampler:
        """A sampler for this model's logits; parameters as of `SamplingParams`."""
        return Sampler(self.n_vocab, params)

    def adapters(
        self, modules: Sequence[AdapterModule], replaced: Sequence[ReplacedTensor] = ()
    ) -> AdapterSet:
        """A stack of adapters, packed for this model; arrays as `_core.AdapterSet` takes them."""
        return AdapterSet(self, modules, replaced)


class AdapterSet(_Handle):
    """A stack of adapters, packed for one model; any number of sessions may use it."""

    _closer = "pyi_adapters_close"

    def __init__(
        self, model: Model, modules: Sequence[AdapterModule], replaced: Sequence[ReplacedTensor] = ()
    ) -> None:
        """Packs arrays. RequestError names role, layer, expected and found."""
        of = model._of
        arrays = _Arrays(of)
        linears = of.ffi.new("pyi_adapter_module[]", [arrays.module(dict(one)) for one in modules])
        tensors = of.ffi.new("pyi_replaced_tensor[]", [arrays.replaced(dict(one)) for one in replaced])
        options = of.options(
            "pyi_adapters_options",
            modules=linears,
            n_modules=len(modules),
            replaced=tensors,
            n_replaced=len(replaced),
        )
        super().__init__(of, of.open("pyi_adapters_open", "pyi_adapters", model.handle, options))

    @property
    def bytes(self) -> int:
        """Memory that the packed stack takes."""
        return self._of.number("pyi_adapters_get_bytes", "uint64_t", self.handle)


class _Arrays:
    """Python's arrays as the C interface takes them, kept alive."""

    def __init__(self, of: Library) -> None:
        self._of = of
        self._kept: list[Any] = []

    def module(self, one: dict[str, Any]) -> dict[str, Any]:
        arrays = ("a", "b", "scale", "gain", "bias")
        _check_keys("module", one, ("role", "layer"), arrays)
        views = {name: self._view(one.get(name), name) for name in arrays}
        return {**self._place(one), **views}

    def replaced(self, one: dict[str, Any]) -> dict[str, Any]:
        _check_keys("replaced", one, ("role", "layer", "values"), ("format",))
        values = self._view(one["values"], one["role"])
        return {
            **self._place(one),
            "values": values,
            "format": self._text("format", one.get("format", "f32")),
        }

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        layer = self._of.held("int64_t", "layer", one["layer"])
        return {"role": self._text("role", one["role"]), "layer": layer}

    def _text(self, name: str, text: str) -> Any:
        self._kept.append(self._of.ffi.new("char[]", _ended(name, text.encode())))
        return self._kept[-1]

    def _view(self, given: Any, name: str) -> dict[str, Any]:
        if given is None:
            return {"data": self._of.ffi.NULL, "rows": 0, "cols": 0, "type": 0, "reserved": 0}
        array = np.ascontiguousarray(given)
        if array.dtype not in _TYPES or array.ndim not in (1, 2):
            raise errors.RequestError(
                f"{name}: expected one or two dimensions of float32, float16 or uint16 (bits of bfloat16), "
                f"found {array.ndim} of {array.dtype}"
            )
        self._kept.append(array)
        rows, cols = array.shape if array.ndim == 2 else (1, array.size)
        data = self._of.ffi.from_buffer(array)
        return {"data": data, "rows": rows, "cols": cols, "type": _TYPES[array.dtype], "reserved": 0}


def _check_keys(what: str, given: dict[str, Any], required: Sequence[str], others: Sequence[str]) -> None:
    """Raises RequestError unless the keys that must be there are, and no others but these."""
    for key in required:
        if key not in given:
            raise errors.RequestError(f"{what}: expected the key {key}, found none")
    for key in given:
        if key not in (*required, *others):
            raise errors.RequestError(f"{what}: expected keys of _core.pyi, found {key}")


class Session(_Handle):
    """One timeline of tokens with its KV cache: what `_core.Session` is. One step at a time."""

    _closer = "pyi_session_close"

    def __init__(self, model: Model, context: int = 0, kv: Kv | None = None) -> None:
        """Opens a session; 0 and None: as the model was opened."""
        of = model._of
        chosen = -1 if kv is None else _chosen("kv", kv, _KV)
        options = of.options("pyi_session_options", context=context, kv=chosen)
        super().__init__(of, of.open("pyi_session_open", "pyi_session", model.handle, options))
        self._n_vocab = model.n_vocab
        self._adapters: AdapterSet | None = None

    @property
    def position(self) -> int:
        """Tokens held in the cache."""
        return self._of.number("pyi_session_get_position", "uint64_t", self.handle)

    @property
    def context(self) -> int:
        """Tokens that it can hold."""
        return self._of.number("pyi_session_get_context", "uint64_t", self.handle)

    @property
    def adapters(self) -> AdapterSet | None:
        """What the next step runs with; may be assigned at any time."""
        return self._adapters

    @adapters.setter
    def adapters(self, adapters: AdapterSet | None) -> None:
        handle = self._of.ffi.NULL if adapters is None else adapters.handle
        self._of.check(self._of.lib.pyi_session_set_adapters(self.handle, handle))
        self._adapters = adapters

    def truncate(self, position: int) -> None:
        """Forgets all tokens from `position` on."""
        kept = self._of.held("uint64_t", "position", position, f"0 to {self.position}")
        self._of.check(self._of.lib.pyi_session_truncate(self.handle, kept))

    def eval(
        self, tokens: Iterable[int] | NDArray[np.int32], logits: Rows = "last", chunk: int = 512
    ) -> NDArray[np.float32]:
        """Appends tokens; returns logits of shape (0 | 1 | n, n_vocab), a new array.

        Ctrl-C raises KeyboardInterrupt within a layer. Errors as of `_core.Session.eval`, and RequestError unless
        tokens are whole numbers and `chunk` is from 1 to 512.
        """
        ids = self._ids(tokens)
        interrupt = _Interrupt(self._of)
        wanted = _chosen("logits", logits, _WANTED)
        options = self._of.options("pyi_eval_options", wanted=wanted, chunk=chunk, poll=interrupt.poll)
        n_rows = {"none": 0, "last": min(1, len(ids)), "all": len(ids)}[logits]
        room = np.empty((n_rows if len(ids) <= self.context else 0, self._n_vocab), np.float32)
        given = self._of.ffi.from_buffer("int32_t[]", ids)
        to = self._of.ffi.from_buffer("float[]", room)
        status = self._of.lib.pyi_session_eval(self.handle, given, len(ids), options, to, room.size)
        interrupt.rethrow()
        self._of.check(status)
        return room

    def step(self, token: int) -> NDArray[np.float32]:
        """Appends one token; returns its logits, shape (n_vocab,), a new array."""
        logits = np.empty(
            self._n_vocab, np.float32
        )  # our own: another thread may close the session meanwhile
        to = self._of.ffi.from_buffer("float[]", logits)
        given = self._of.ffi.new("int32_t[]", [self._id(token)])
        self._of.check(
            self._of.lib.pyi_session_eval(self.handle, given, 1, self._of.ffi.NULL, to, self._n_vocab)
        )
        return logits

    def _id(self, token: int) -> int:
        return int(self._of.held("int32_t", "token", token, f"0 to {self._n_vocab - 1}"))

    def _ids(self, tokens: Iterable[int] | NDArray[np.int32]) -> NDArray[np.int32]:
        is_array = hasattr(tokens, "__array__")
        items = list(tokens) if hasattr(tokens, "__iter__") and not is_array else tokens
        given = np.asarray(items) if is_array else np.array(items, object)
        if given.ndim != 1:
            raise errors.RequestError(f"tokens: expected one dimension, found {given.ndim}")
        if is_array and given.size > 0 and given.dtype.kind not in "iu":
            raise errors.RequestError(f"tokens: expected whole numbers, found {given.dtype}")
        if given.dtype == np.int32:
            return np.ascontiguousarray(given, np.int32)
        return np.array([self._id(token) for token in given.tolist()], np.int32)

    def cancel(self) -> None:
        """Makes a running or the next `eval` or `step` raise Cancelled. From any thread."""
        self._of.check(self._of.lib.pyi_session_cancel(self.handle))


class _Interrupt:
    """Lets Ctrl-C end a step: Python runs signal handlers while the library asks whether to go on."""

    def __init__(self, of: Library) -> None:
        self._raised: BaseException | None = None
        self.poll = of.ffi.callback("int32_t(void*)", self._go_on, error=1, onerror=self._keep)

    def _go_on(self, _: object) -> int:
        return 0

    def _keep(self, _: object, value: BaseException, __: object) -> None:
        self._raised = value

    def rethrow(self) -> None:
        """Raises what a signal handler raised meanwhile."""
        if self._raised is not None:
            raise self._raised


class Sampler(_Handle):
    """Picks tokens from logits: what `_core.Sampler` is. One call at a time."""

    _closer = "pyi_sampler_close"

    def __init__(self, n_vocab: int, params: Mapping[str, Any]) -> None:
        """Parameters as of `SamplingParams`. RequestError names the parameter, its value and its limits."""
        of = library()
        vocabulary = of.held("uint32_t", "n_vocab", n_vocab)
        fields = dict(params)
        biases = fields.pop("logit_bias", None) or {}
        unknown = sorted(
            fields.keys() - ({name for name, _ in of.ffi.typeof("pyi_sampling").fields} - _OUR_FIELDS)
        )
        if unknown:
            raise errors.RequestError(f"sampling: expected a parameter of SamplingParams, found {unknown[0]}")
        limits = f"0 to {vocabulary - 1}"
        pairs = [
            (of.held("int32_t", "token of logit_bias", token, limits), of.held("float", "logit_bias", bias))
            for token, bias in biases.items()
        ]
        table = of.ffi.new("pyi_logit_bias[]", pairs)
        options = of.options("pyi_sampling", logit_bias=table, n_logit_bias=len(biases), **fields)
        super().__init__(of, of.open("pyi_sampler_open", "pyi_sampler", vocabulary, options))
        self._n_vocab = int(vocabulary)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token; `logits` of shape (n_vocab,) or (1, n_vocab)."""
        row = np.ascontiguousarray(logits, np.float32).reshape(-1)
        given = self._of.ffi.from_buffer("float[]", row)
        token = self._of.ffi.new("int32_t*")
        self._of.check(self._of.lib.pyi_sampler_pick(self.handle, given, row.size, token))
        return int(token[0])

    def accept(self, token: int) -> None:
        """Tells the penalties of a token of the prompt or of the answer."""
        accepted = self._of.held("int32_t", "accepted token", token, f"0 to {self._n_vocab - 1}")
        self._of.check(self._of.lib.pyi_sampler_accept(self.handle, accepted))
