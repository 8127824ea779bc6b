"""The compiled core: model files, weight formats, sessions, samplers. Everything here may be called from any thread."""

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str

FORMATS: tuple[str, ...]
"""Names of the matrix formats, f32 first. Index + 1 is the number in the file."""
SOURCES: dict[str, tuple[int, int, str]]
"""Source block types that `repack` reads, by their GGUF name, but for Q4_Z (GPTQ, AWQ) and Q8_F (llama2.c): values a
block, bytes a block, and the format that has room for all its values."""

MOST_THREADS: int
"""Threads that an engine may have."""

PAGE_POSITIONS: int
"""Positions that a KV cache grows by."""

Kv = Literal["auto", "f16", "i16", "q8"]

class SpecDict(TypedDict):
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
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    post_norms: bool
    gelu: bool
    local_rope: bool
    norm_offset: bool
    embedding_scale: float
    attn_softcap: float
    logit_softcap: float
    window: int
    long_context: int
    windowed: tuple[int, ...]
    unrotated: tuple[int, ...]

class TensorDict(TypedDict):
    role: str
    layer: int  # -1 for tensors outside the layers
    format: str
    rows: int
    cols: int
    offset: int
    bytes: int
    crc: int

class MemoryDict(TypedDict):
    weights: int
    kv_cache: int
    workspace: int

class SamplerParams(TypedDict, total=False):
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    logit_bias: dict[int, float]
    seed: int

def isas() -> list[tuple[str, bool]]:
    """Every instruction set this build holds, slowest first, and whether this CPU runs it."""

def active_isa() -> str:
    """The one in use: the best that runs here, or what PYINFER_ISA named when it was first asked for."""

def kv_cache_bytes(
    n_layers: int, n_kv_heads: int, head_dim: int, context: int, kv: Literal["f16", "i16", "q8"]
) -> int:
    """Memory of a session's keys and values when `context` positions are full."""

def usual_kv(activations: Literal["int8", "f32"], biased_keys: bool) -> Literal["f16", "i16"]:
    """How sessions keep keys and values unless told otherwise: what this CPU is faster with, but halves with float
    activations or biased keys.
    """

def default_threads() -> int:
    """Physical cores within the affinity mask and the cgroup's quota; at least 1."""

def peak_memory() -> int:
    """Most bytes that this process had in memory at once."""

def available_memory() -> int | None:
    """Bytes of the machine that can be had without swapping; None on Linux, where control groups count too."""

def packed_bytes(format: str, rows: int, cols: int) -> int:
    """Bytes of a packed matrix of shape (rows, cols)."""

def pack(format: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantises and packs float32 values of shape (rows, cols). Non-finite values raise ValueError."""

def repack(source: str, format: str, data: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    """Packs a matrix from a source's own blocks (row-major), values kept where they fit."""

def dequantize(source: str, data: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """Values of a source's blocks as float32 (rows, cols)."""

def unpack(format: str, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """Values of a packed matrix as float32 (rows, cols)."""

class ModelFile:
    """An opened, checked and mapped model.bin. Raises ModelFileError, or OSError where the system refuses."""

    def __init__(self, path: str, huge_pages: Literal["auto", "on", "off"] = "auto") -> None:
        """RequestError for `on` where the system has no huge pages to give."""
    @property
    def spec(self) -> SpecDict: ...
    @property
    def tensors(self) -> list[TensorDict]: ...
    @property
    def file_bytes(self) -> int: ...
    def metadata(self) -> bytes:
        """The metadata blob, its checksum verified."""
    def tokenizer(self) -> bytes:
        """The tokenizer blob, its checksum verified."""
    def verify(self, tensor: int) -> bool:
        """Whether the bytes of one tensor match its checksum."""
    def read(self, tensor: int) -> NDArray[np.uint8]:
        """A copy of the bytes of one tensor as they lie in the file."""

class Engine:
    """A model ready to run: immutable, shared by threads; their steps take turns on one pool of `threads` threads."""

    def __init__(
        self,
        file: ModelFile,
        threads: int = 0,
        activations: Literal["int8", "f32"] = "int8",
        prefetch: bool = True,
    ) -> None:
        """Reads nothing of the weights, unless told to prefetch: then the system does, in the background."""
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    def memory(self, context: int, kv: Kv = "auto") -> MemoryDict:
        """Bytes needed for one session of this context."""
    def prefetch(self) -> None:
        """Has the system read the weights ahead, in the background; with huge pages `on` copies them now."""

FloatBits = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
"""Values of an adapter in its own type: float32, float16, or uint16 for the bits of bfloat16."""

class AdapterModule(TypedDict, total=False):
    """What a stack does to one linear: y = gain * (W x) + B (scale * (A x)) + bias. Absent or None: left out."""

    role: str  # required: q, k, v, o, gate, up, down, head or embedding
    layer: int  # required: -1 for head and embedding
    a: (
        FloatBits | None
    )  # (rank, in), the stack's A's below one another; embedding: (rank, n_vocab), looked up by token
    b: FloatBits | None  # (out, rank), the stack's B's side by side; together with `a` or not at all
    scale: (
        NDArray[np.float32] | None
    )  # (rank,): weight times scaling of the adapter each row came from; absent: ones
    gain: NDArray[np.float32] | None  # (out,): DoRA
    bias: NDArray[np.float32] | None  # (out,)

class ReplacedTensor(TypedDict, total=False):
    """A tensor that stands in for the base's, of the same shape."""

    role: str  # required: any of model.bin but rope_freqs; a tied head may be replaced alone
    layer: int  # required: -1 outside the layers
    values: NDArray[np.float32]  # required: (rows, cols), or (dim,) for norms
    format: str  # of a matrix: one of FORMATS, by default f32

class AdapterSet:
    """A stack of adapters, packed for one engine: immutable, shared by any number of sessions, freed with the last.

    Raises RequestError that names role, layer, expected and found where a shape, a type or a value does not fit.
    Sessions with sets that replace tensors run in a pass of their own; all others share one pass over the base's
    weights.
    """

    def __init__(
        self,
        engine: Engine,
        modules: Sequence[AdapterModule],
        replaced: Sequence[ReplacedTensor] = (),
    ) -> None: ...
    @property
    def bytes(self) -> int:
        """Memory that the packed stack takes."""

class Session:
    """One timeline of tokens with its KV cache. Not to be stepped by two threads at once (raises RequestError)."""

    def __init__(self, engine: Engine, context: int, kv: Kv = "auto") -> None: ...
    @property
    def position(self) -> int:
        """Tokens held in the cache."""
    @property
    def context(self) -> int: ...
    @property
    def adapters(self) -> AdapterSet | None:
        """What the next `eval`, `step` or `forward` runs with.

        May be set at any time by any thread: a call that runs keeps the set it began with. Tokens in the cache stay
        as they are. RequestError for a set of another engine.
        """
    @adapters.setter
    def adapters(self, adapters: AdapterSet | None) -> None: ...
    def truncate(self, position: int) -> None:
        """Forgets all tokens from `position` on."""
    def eval(
        self,
        tokens: NDArray[np.int32],
        logits: Literal["none", "last", "all"] = "last",
        chunk: int = 512,
    ) -> NDArray[np.float32]:
        """Appends tokens; returns logits of shape (0 | 1 | n, n_vocab), a new array.

        Runs in chunks of `chunk` rows without the GIL. Raises ContextFullError before any work if the tokens do not
        fit, RequestError for an id outside the vocabulary, Cancelled after `cancel()`; Ctrl-C raises
        KeyboardInterrupt. After an exception the position is where the last whole chunk ended.
        """
    def step(self, token: int) -> NDArray[np.float32]:
        """Appends one token; returns a view of shape (n_vocab,) that the next step of this session overwrites."""
    def cancel(self) -> None:
        """Makes a running or the next `eval` or `step` raise Cancelled. From any thread."""
    def close(self) -> None:
        """Frees the cache now. Any later call raises RequestError."""

def forward(
    engine: Engine,
    batch: Sequence[tuple[Session, NDArray[np.int32], Literal["none", "last", "all"]]],
) -> list[NDArray[np.float32]]:
    """Appends tokens to several sessions in one pass over the weights; logits per item as in `Session.eval`."""

class Sampler:
    """Picks tokens from logits by the chain of csrc/sampling/samplers.inc; same seed, same logits, same tokens."""

    def __init__(self, n_vocab: int, params: SamplerParams) -> None:
        """Raises RequestError that names the parameter, its value and its limits."""
    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token; does not change `logits`."""
    def accept(self, token: int) -> None:
        """Tells the penalties of a token of the prompt or of the answer."""
