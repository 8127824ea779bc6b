"""What every reader returns: numbers, tensors by role and a tokenizer, with no trace of the file they came
from.

Must not know any file format or model family. Tensor data is read on demand, a range of rows at a time, so
that a conversion holds a few megabytes whatever the size of the model.
"""

from __future__ import annotations

import itertools
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core, files
from pyinfer.convert.metadata import Metadata, told
from pyinfer.errors import ModelFileError, PyinferError, UnsupportedError, plain

ReadRows = Callable[[int, int], NDArray[np.uint8]]
"""read(start, stop) -> the bytes of rows start...stop-1 as the source stores them."""

FLOAT_SOURCES = ("F32", "F16", "BF16")

LAYER_ROLES = ("attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "up", "down")
"""Tensors that every layer of every model has."""
FAMILY_ROLES = {
    "qkv_bias": ("q_bias", "k_bias", "v_bias"),
    "o_bias": ("o_bias",),
    "qk_norm": ("q_norm", "k_norm"),
    "post_norms": ("post_attn_norm", "post_ffn_norm"),
}
"""Tensors that every layer has where a flag of `Spec` says so."""
FUSED_ROLES = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Matrices that some families store as one: role of the whole -> roles of the pieces, from the first row on."""
VECTOR_ROLES = (
    "attn_norm", "ffn_norm", "final_norm", "rope_freqs", "rope_freqs_local", "rope_freqs_long",
    *(role for roles in FAMILY_ROLES.values() for role in roles),
)  # fmt: skip
NO_LAYER = -1
MOST_TOLD = 480
"""Characters of a sentence about a file: names in it may be of any length."""


def row_bytes(source: str, cols: int) -> int:
    """Bytes of one row of `cols` values, which must be whole blocks."""
    values, size, _ = _core.SOURCES[source]
    return cols // values * size


@dataclass(frozen=True)
class RawTensor:
    """A tensor as a file names it; `shape` has the rows first."""

    name: str
    source: str
    shape: tuple[int, ...]
    read: ReadRows


def same_values(first: RawTensor, second: RawTensor) -> bool:
    """Whether two tensors are stored alike, to the byte; reads up to the first difference."""
    if (first.source, first.shape) != (second.source, second.shape):
        return False
    rows = first.shape[0]
    step = max(1, (1 << 22) // max(1, row_bytes(first.source, first.shape[-1])))
    edges = [0, *range(min(16, rows), rows, step), rows]
    return all(
        np.array_equal(first.read(start, stop), second.read(start, stop))
        for start, stop in itertools.pairwise(edges)
        if stop > start
    )


@dataclass(frozen=True)
class Tensor:
    """A tensor by its role in the model: `rows` outputs x `cols` inputs; vectors have one row."""

    role: str
    layer: int  # NO_LAYER outside the layers
    source: str
    rows: int
    cols: int
    name: str  # as the file calls it, for messages
    read: ReadRows
    lands: str | None = None  # the format to store it in, whatever else is asked for

    @property
    def packed(self) -> bool:
        """Whether `read` gives tiles of a weight format, `source`, in ranges that begin at multiples of 16 rows."""
        return self.source in _core.FORMATS

    @property
    def bytes(self) -> int:
        """Bytes in the source."""
        if self.packed:
            return _core.packed_bytes(self.source, self.rows, self.cols)
        return self.rows * row_bytes(self.source, self.cols)

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start...stop-1 as numbers; `start` is a multiple of 16."""
        data, rows = self.read(start, stop), stop - start
        if self.packed:
            return _core.unpack(self.source, data, rows, self.cols)
        return _core.dequantize(self.source, data, rows, self.cols)


@dataclass(frozen=True)
class Spec:
    """The numbers of a model; meanings and limits are those of docs/model-file.md."""

    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int
    context: int
    rope_dim: int
    norm_eps: float
    rope_magnitude: float
    attention_scale: float
    tied_head: bool
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    gelu: bool = False
    local_rope: bool = False
    norm_offset: bool = False
    embedding_scale: float = 0.0
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    window: int = 0
    long_context: int = 0
    windowed: tuple[int, ...] = ()  # layers, ascending
    unrotated: tuple[int, ...] = ()  # layers, ascending

    def check(self) -> Spec:
        """Itself, or a ModelFileError naming the number that is outside its limits."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ModelFileError(f"{name}: expected {low} to {high}, found {value}")
        if self.n_heads % self.n_kv_heads:
            raise ModelFileError(
                f"n_kv_heads: expected a divisor of n_heads {self.n_heads}, found {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelFileError(f"head_dim: expected an even number, found {self.head_dim}")
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ModelFileError(
                f"rope_dim: expected an even number up to head_dim {self.head_dim}, found {self.rope_dim}"
            )
        for name in ("norm_eps", "rope_magnitude", "attention_scale"):
            _check_factor(name, getattr(self, name))
        for name in ("embedding_scale", "attn_softcap", "logit_softcap"):
            if getattr(self, name) != 0.0:
                _check_factor(name, getattr(self, name))
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        """Layers that are marked are there, and a window and the layers that have it come together."""
        for name in ("windowed", "unrotated"):
            last = max(getattr(self, name), default=0)
            if last >= MARKED_LAYERS:
                raise UnsupportedError(f"{name}: expected layers below {MARKED_LAYERS}, found {last}")
            if last >= self.n_layers:
                raise ModelFileError(f"{name}: expected layers below {self.n_layers}, found {last}")
        if bool(self.window) != bool(self.windowed):
            raise ModelFileError(
                f"window: expected one where layers have it, found {self.window} and {len(self.windowed)} layers"
            )
        if (self.local_rope and not (self.window and self.rope_dim)) or (
            self.long_context and not self.rope_dim
        ):
            raise ModelFileError("rope_dim: expected rotating dimensions and a window, found none")

    @property
    def layer_roles(self) -> tuple[str, ...]:
        """The roles of the tensors that each layer has."""
        added = (roles for flag, roles in FAMILY_ROLES.items() if getattr(self, flag))
        return LAYER_ROLES + tuple(role for roles in added for role in roles)


LIMITS = {
    "n_layers": (1, 1024),
    "dim": (1, 65536),
    "n_heads": (1, 1024),
    "n_kv_heads": (1, 1024),
    "head_dim": (2, 1024),
    "n_ff": (1, 1048576),
    "n_vocab": (1, 4194304),
    "context": (1, 16777216),
    "rope_dim": (0, 1024),
    "window": (0, 16777216),
    "long_context": (0, 16777216),
}
MARKED_LAYERS = 128
"""Layers that a specification can mark one by one."""


def _check_factor(name: str, value: float) -> None:
    single = float(np.float32(value))
    good = 0 <= single < 1 if name == "norm_eps" else 0 < single < math.inf
    if not good:
        wanted = "from 0 to below 1" if name == "norm_eps" else "finite and above 0"
        raise ModelFileError(f"{name}: expected a number {wanted}, found {value}")


def role_shapes(spec: Spec) -> dict[str, tuple[int, int]]:
    """Role -> (rows, cols) of every tensor that checkpoints of this model store; vectors have one row. The head
    is there also where it is the embedding.
    """
    q_dim, kv_dim = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    shapes = {
        "embedding": (spec.n_vocab, spec.dim),
        "final_norm": (1, spec.dim),
        "head": (spec.n_vocab, spec.dim),
        "attn_norm": (1, spec.dim),
        "q": (q_dim, spec.dim),
        "k": (kv_dim, spec.dim),
        "v": (kv_dim, spec.dim),
        "o": (spec.dim, q_dim),
        "ffn_norm": (1, spec.dim),
        "gate": (spec.n_ff, spec.dim),
        "up": (spec.n_ff, spec.dim),
        "down": (spec.dim, spec.n_ff),
    }
    lengths = {
        "q_bias": q_dim,
        "k_bias": kv_dim,
        "v_bias": kv_dim,
        "q_norm": spec.head_dim,
        "k_norm": spec.head_dim,
    }
    return shapes | {role: (1, lengths.get(role, spec.dim)) for role in spec.layer_roles[len(LAYER_ROLES) :]}


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer ready to be stored; the fields are those of `Metadata`, `blob` is what the library
    serialises.
    """

    kind: str = "none"
    blob: bytes = b""
    size: int = 0  # tokens it knows; at most n_vocab
    byte_level: bool = False
    space_prefix: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    unk: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    trim_after: tuple[int, ...] = ()
    first_prefix: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A model that was opened and checked but not read."""

    kind: str  # the reader's name
    files: tuple[Path, ...]
    architecture: str
    name: str
    licence: str | None
    chat_template: str | None
    spec: Spec
    tensors: tuple[Tensor, ...]  # in the order in which they are written
    tokenizer: TokenizerSource
    tool_template: str | None = None  # the chat template where tools are described, if it is another one
    options: Mapping[str, str] = field(default_factory=dict)  # how it came to be, for the record


def describe(checkpoint: Checkpoint) -> Metadata:
    """The metadata as far as the checkpoint decides it: all but checksums, landings and options."""
    tokenizer = checkpoint.tokenizer
    return Metadata(
        name=told(checkpoint.name),
        architecture=checkpoint.architecture,
        licence=checkpoint.licence,
        chat_template=checkpoint.chat_template,
        tool_template=checkpoint.tool_template,
        tokenizer=tokenizer.kind,
        byte_level=tokenizer.byte_level,
        space_prefix=tokenizer.space_prefix,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
        unk=tokenizer.unk,
        add_bos=tokenizer.add_bos,
        add_eos=tokenizer.add_eos,
        trim_after=tokenizer.trim_after,
        first_prefix=tokenizer.first_prefix,
    )


def array_tensor(role: str, values: NDArray[np.float32]) -> Tensor:
    """A vector that was computed rather than read."""
    data = np.ascontiguousarray(values, dtype="<f4").view(np.uint8)
    return Tensor(role, NO_LAYER, "F32", 1, len(values), role, lambda start, stop: data)


def open_regular(path: Path) -> int:
    """A descriptor of a regular file; FIFOs, devices and folders are refused without waiting on them."""
    descriptor = files.open_to_read(path)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelFileError(f"{path}: expected a regular file, found something else")
    return descriptor


def read_exactly(descriptor: int, offset: int, size: int) -> NDArray[np.uint8]:
    """`size` bytes at `offset`; a file that became shorter is an error, not a crash."""
    data = np.empty(size, np.uint8)
    view, done = data.data, 0
    while done < size:
        got = files.read_at(descriptor, view[done:], offset + done)
        if got == 0:
            raise ModelFileError(
                f"expected {size} bytes at offset {offset}, found the end of the file after {done}"
            )
        done += got
    return data


def file_rows(path: Path, offset: int, size: int) -> ReadRows:
    """Reads rows of `size` bytes that start at `offset`. Each read opens the file anew: nothing is held,
    and nothing is mapped, so a file that shrinks meanwhile is an error.
    """

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        descriptor = open_regular(path)
        try:
            return read_exactly(descriptor, offset + start * size, (stop - start) * size)
        finally:
            os.close(descriptor)

    return read


@contextmanager
def in_file(path: Path | str) -> Iterator[None]:
    """Puts the file's name in front of a ModelFileError raised inside, and makes one line of what the file gave."""
    try:
        yield
    except ModelFileError as error:
        text = str(error)
        raise (error if text.startswith(str(path)) else type(error)(f"{path}: {_short(text)}")) from None


def _short(text: str) -> str:
    """Both ends of what is longer than MOST_TOLD characters, spelled out."""
    if len(text) > MOST_TOLD:
        text = f"{text[: MOST_TOLD // 2]} ... {text[-MOST_TOLD // 2 :]}"
    return plain(text)


@contextmanager
def sensible(what: str) -> Iterator[None]:
    """Turns errors of other kinds, which values that make no sense lead to, into a ModelFileError."""
    try:
        yield
    except PyinferError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ModelFileError(
            f"expected {what} that makes sense, found one with which {found[:200]}"
        ) from error
