"""Integers of 4 bits as GPTQ and AWQ pack them, eight in a word, turned into blocks of 32 along a row: d · (q − z).

Scales are kept exactly as halves and zero points as integers, so no value changes. Must not know tensor names beyond
their last part, nor families. Layouts: AutoGPTQ's `QuantLinear` and AutoAWQ's `WQLinear_GEMM`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.convert.checkpoint import FLOAT_SOURCES, RawTensor
from pyinfer.convert.small_file import optional_json
from pyinfer.errors import ModelFileError, UnsupportedError

PACKING_FILES = ("quantize_config.json", "quant_config.json")
"""Where older checkpoints say how they are packed; newer ones do in config.json."""

BLOCK = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column of each nibble of a word, of eight neighbouring columns."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_KEPT = 2  # whole tensors of words that are held for the ranges of rows to come

Words = NDArray[np.uint32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Packing:
    """How a checkpoint is packed. `one_less`: zero points are stored less one. `symmetric`: all of them are 8."""

    method: str
    group: int  # columns that share a scale; -1: all of a row
    one_less: bool = False
    symmetric: bool = False

    def unpacked(self, tensors: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
        """The tensors with `X.weight` in the place of `X.qweight` and what belongs to it."""
        found: dict[str, RawTensor] = {}
        recent = _Recent()
        for name, tensor in tensors.items():
            module, _, part = name.rpartition(".")
            if part == "qweight":
                tensor = _Matrix.open(self, module, tensors, recent).tensor()
            elif part in _PARTS and f"{module}.qweight" in tensors:
                continue
            elif tensor.source not in FLOAT_SOURCES:
                raise UnsupportedError(
                    f"{name}: expected {' or '.join(FLOAT_SOURCES)}, found {tensor.source}"
                )
            if tensor.name in found:
                raise ModelFileError(f"{tensor.name}: expected it packed or not, found both")
            found[tensor.name] = tensor
        if found.keys() == tensors.keys():
            raise ModelFileError(
                f"quantization_config: expected matrices packed by {self.method}, found none"
            )
        return found


def packing_of(folder: Path, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Packing | None]:
    """The settings without those of the packing, and the packing; None for a checkpoint in floats. Raises
    UnsupportedError that names what cannot be read.
    """
    found = config.get("quantization_config")
    for name in PACKING_FILES:
        found = found or optional_json(folder / name) or None
    if found is None:
        return config, None
    if not isinstance(found, dict):
        raise ModelFileError(f"quantization_config: expected an object, found {type(found).__name__}")
    rest = {key: value for key, value in config.items() if key != "quantization_config"}
    method = found.get("quant_method", "awq" if "w_bit" in found else "gptq" if "desc_act" in found else None)
    if not isinstance(method, str) or method not in _METHODS:
        raise UnsupportedError(f"quantization_config: quant_method: expected gptq or awq, found {method!r}")
    return rest, _METHODS[method](found)


def _only(settings: Mapping[str, Any], key: str, accepted: tuple[Any, ...]) -> Any:
    value = settings.get(key, accepted[0])
    if value not in accepted:
        wanted = " or ".join(repr(item) for item in accepted if item is not None)
        raise UnsupportedError(f"quantization_config: {key}: expected {wanted}, found {value!r}")
    return value


def _bits(value: Any) -> None:
    if value != 4:
        raise UnsupportedError(f"quantization_config: bits: expected 4, found {value!r}")


def _group(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not (value == -1 or (value > 0 and value % BLOCK == 0))
    ):
        raise UnsupportedError(
            f"quantization_config: group_size: expected a multiple of {BLOCK} or -1, found {value!r}"
        )
    return value


def _gptq(settings: Mapping[str, Any]) -> Packing:
    _bits(settings.get("bits"))
    layout = _only(settings, "checkpoint_format", ("gptq", "gptq_v2"))
    _only(settings, "is_marlin_format", (False,))
    _only(settings, "dynamic", (None, {}))
    symmetric = _only(settings, "sym", (False, True))
    return Packing("gptq", _group(settings.get("group_size", -1)), layout == "gptq", symmetric)


def _awq(settings: Mapping[str, Any]) -> Packing:
    _bits(settings.get("bits", settings.get("w_bit")))
    version = settings.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedError(f"quantization_config: version: expected 'gemm', found {version!r}")
    return Packing("awq", _group(settings.get("group_size", settings.get("q_group_size", 128))))


_METHODS: dict[Any, Callable[[Mapping[str, Any]], Packing]] = {"gptq": _gptq, "awq": _awq}


class _Recent:
    """The last whole tensors that were read: a packed matrix lies across the rows that are asked for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[str, NDArray[Any]] = OrderedDict()

    def whole(self, tensor: RawTensor) -> Words:
        """All words of a matrix of I32."""
        with self._lock:
            if tensor.name not in self._kept:
                while len(self._kept) >= _KEPT:
                    self._kept.popitem(last=False)
                self._kept[tensor.name] = _words(tensor)
            self._kept.move_to_end(tensor.name)
            return self._kept[tensor.name]


def _words(tensor: RawTensor) -> Words:
    return tensor.read(0, tensor.shape[0]).view("<u4").reshape(tensor.shape)


def _nibbles(words: Words, order: tuple[int, ...]) -> Bytes:
    """(n, words) -> (n, 8 · words), nibble i of a word at column order[i]."""
    halves = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    columns = np.empty((*words.shape, 8), np.uint8)
    for i, column in enumerate(order):
        byte = halves[..., i // 2]
        columns[..., column] = byte >> 4 if i % 2 else byte & 15
    return columns.reshape(words.shape[0], -1)


@dataclass(frozen=True)
class _Matrix:
    """One packed matrix of `rows` outputs and `cols` inputs; `groups` says for each input which scale it has, None
    if they follow each other.
    """

    packing: Packing
    name: str
    rows: int
    cols: int
    qweight: RawTensor
    qzeros: RawTensor
    scales: RawTensor
    groups: NDArray[np.int64] | None
    recent: _Recent = field(repr=False)

    @staticmethod
    def open(packing: Packing, module: str, tensors: Mapping[str, RawTensor], recent: _Recent) -> _Matrix:
        """Checks shapes and types of what belongs to one module."""
        parts = {part: tensors.get(f"{module}.{part}") for part in _PARTS}
        qweight, qzeros, scales = (_part(module, parts, part, kinds) for part, kinds in _KINDS.items())
        across = (
            packing.method == "gptq"
        )  # words hold eight inputs of one output; AWQ: eight outputs of one input
        cols = qweight.shape[0] * (8 if across else 1)
        rows = qweight.shape[1] * (1 if across else 8)
        group = cols if packing.group == -1 else packing.group
        if cols % group or group % BLOCK or rows % 8:
            raise UnsupportedError(
                f"{module}.qweight: expected rows of a multiple of the group of {group} values, found {rows} x {cols}"
            )
        for part, shape in ((qzeros, (cols // group, rows // 8)), (scales, (cols // group, rows))):
            if part.shape != shape:
                raise ModelFileError(
                    f"{part.name}: expected the shape {list(shape)}, found {list(part.shape)}"
                )
        groups = _act_order(module, parts["g_idx"], cols, group)
        return _Matrix(packing, f"{module}.weight", rows, cols, qweight, qzeros, scales, groups, recent)

    def tensor(self) -> RawTensor:
        """The matrix as a tensor of blocks; where inputs have been reordered, of floats."""
        if self.groups is not None:
            return RawTensor(self.name, "F32", (self.rows, self.cols), self._floats)
        source, read = ("Q4_0", self._symmetric) if self.packing.symmetric else ("Q4_Z", self._with_zeros)
        return RawTensor(self.name, source, (self.rows, self.cols), read)

    def _integers(self, start: int, stop: int) -> Bytes:
        """(stop - start, cols), 0...15."""
        words = self.recent.whole(self.qweight)
        if self.packing.method == "gptq":
            return _nibbles(words[:, start:stop].T, tuple(range(8)))
        first = start // 8
        wide = _nibbles(words[:, first : -(-stop // 8)], AWQ_ORDER)
        return np.ascontiguousarray(wide[:, start - 8 * first : stop - 8 * first].T)

    def _zeros(self, start: int, stop: int) -> Bytes:
        """(stop - start, groups). AutoGPTQ adds one and keeps four bits."""
        order = tuple(range(8)) if self.packing.method == "gptq" else AWQ_ORDER
        zeros: Bytes = _nibbles(_words(self.qzeros), order)[:, start:stop].T
        if self.packing.one_less:
            zeros = np.bitwise_and(zeros + np.uint8(1), np.uint8(15))
        if self.packing.symmetric and (zeros != 8).any():
            raise ModelFileError(
                f"{self.qzeros.name}: expected 8 as sym is true, found {zeros[zeros != 8][0]}"
            )
        return zeros

    def _scales(self, start: int, stop: int) -> NDArray[np.float32]:
        """(stop - start, groups)."""
        n, rows = self.scales.shape
        values = _core.dequantize(self.scales.source, self.scales.read(0, n), n, rows)
        return np.ascontiguousarray(values[:, start:stop].T)

    def _halves(self, start: int, stop: int) -> NDArray[np.float16]:
        """The same as halves, or an error where that would change one."""
        single = self._scales(start, stop)
        with np.errstate(over="ignore"):
            halves = single.astype("<f2")
        changed = single[halves.astype(np.float32) != single]
        if changed.size:
            raise UnsupportedError(f"{self.scales.name}: expected scales that are halves, found {changed[0]}")
        return halves

    def _blocks(self, start: int, stop: int, head: int) -> Bytes:
        """(stop - start, blocks, head + 16): halves at the front, nibbles at the end, as Q4_0 and Q4_Z have them."""
        halves = self._halves(start, stop)
        runs = self._integers(start, stop).reshape(stop - start, -1, 2, 16)
        blocks = np.empty((*runs.shape[:2], head + 16), np.uint8)
        each = runs.shape[1] // halves.shape[1]
        blocks[..., :2] = halves.repeat(each, axis=1)[..., None].view(np.uint8)
        blocks[..., head:] = runs[:, :, 0] | runs[:, :, 1] << 4
        return blocks

    def _symmetric(self, start: int, stop: int) -> Bytes:
        self._zeros(start, stop)
        return self._blocks(start, stop, 2).reshape(-1)

    def _with_zeros(self, start: int, stop: int) -> Bytes:
        blocks, zeros = self._blocks(start, stop, 3), self._zeros(start, stop)
        blocks[..., 2] = zeros.repeat(blocks.shape[1] // zeros.shape[1], axis=1)
        return blocks.reshape(-1)

    def _floats(self, start: int, stop: int) -> Bytes:
        integers = self._integers(start, stop).astype(np.float32)
        zeros = self._zeros(start, stop).astype(np.float32)[:, self.groups]
        values: NDArray[np.float32] = self._scales(start, stop)[:, self.groups] * (integers - zeros)
        return values.reshape(-1).view(np.uint8)


_KINDS = {"qweight": ("I32",), "qzeros": ("I32",), "scales": FLOAT_SOURCES}


def _part(module: str, parts: Mapping[str, RawTensor | None], part: str, kinds: tuple[str, ...]) -> RawTensor:
    found = parts[part]
    if found is None:
        raise ModelFileError(f"expected a tensor {module}.{part}, found none")
    if len(found.shape) != 2 or found.source not in kinds:
        raise ModelFileError(
            f"{found.name}: expected a matrix of {' or '.join(kinds)}, found {list(found.shape)} of {found.source}"
        )
    return found


def _act_order(module: str, g_idx: RawTensor | None, cols: int, group: int) -> NDArray[np.int64] | None:
    """The group of each input where they do not simply follow each other."""
    if g_idx is None:
        return None
    if g_idx.shape != (cols,) or g_idx.source != "I32":
        raise ModelFileError(
            f"{module}.g_idx: expected {cols} of I32, found {list(g_idx.shape)} of {g_idx.source}"
        )
    groups = g_idx.read(0, 1).view("<i4").astype(np.int64)
    if groups.min() < 0 or groups.max() >= cols // group:
        raise ModelFileError(
            f"{module}.g_idx: expected groups of 0 to {cols // group - 1}, found {groups.min()} to {groups.max()}"
        )
    return None if np.array_equal(groups, np.arange(cols) // group) else groups
