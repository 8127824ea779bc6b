"""A stack of adapters as arrays: what each matrix of a model gains from an ordered list of (adapter, weight).

    W' = W + Σ weight · scaling · B A          in the order of the list

Checks that every change fits the model. Must not know files, nor how the arrays are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.adapters import Weighted
from pyinfer.convert.adapter import AdapterSource, LowRank, Replaced, Values, as_float
from pyinfer.convert.checkpoint import FUSED_ROLES, NO_LAYER, Spec, role_shapes
from pyinfer.convert.families import gguf_architecture
from pyinfer.convert.families.rotary_order import half_split_order
from pyinfer.convert.landing import rounding
from pyinfer.errors import ModelFileError, UnsupportedError

__all__ = ["Change", "NewTensor", "Stack", "base_reader", "stacked"]

Place = tuple[str, int]


class Base(Protocol):
    """Reads the tensors of the model, a head that is the embedding as well."""

    def __call__(self, role: str, layer: int) -> NDArray[np.float32]:
        """The values, (rows, cols)."""

    def rounding(self, role: str, layer: int) -> float:
        """What the length of a row's rounding may be, relative to the row, in the type that the model stores."""


@dataclass(frozen=True, eq=False)
class Change:
    """What one matrix gains: y = gain · (W x) + b (scale · (a x)) + bias.

    Of an embedding, the row of token t gains b (scale · a[:, t]).
    """

    role: str
    layer: int
    a: Values  # (rank, in); rank 0: only a bias
    b: Values  # (out, rank)
    scale: NDArray[np.float32]  # (rank,)
    gain: NDArray[np.float32] | None = None  # (out,)
    bias: NDArray[np.float32] | None = None  # (out,)
    fused: bool = False  # its matrix stands in one module with others

    @property
    def outer(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Left (rows of the matrix, rank) and right (rank, columns), whose product is added to the matrix."""
        a, b = as_float(self.a).astype(np.float64), as_float(self.b).astype(np.float64)
        return (a.T * self.scale, b.T) if self.role == "embedding" else (b * self.scale, a)

    def merged(self, start: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of the base's matrix from `start` on with the change in them."""
        rows = slice(start, start + len(values))
        gain = 1.0 if self.gain is None else self.gain[rows, None].astype(np.float64)
        total = values * gain
        if len(self.a):
            left, right = self.outer
            total = total + left[rows] @ right
        with np.errstate(over="ignore"):
            merged = np.asarray(total, np.float32)
        if not np.isfinite(merged).all():
            raise ModelFileError(
                f"{self.role} of layer {self.layer}: expected finite weights with the adapters in them, found others"
            )
        return merged


@dataclass(frozen=True, eq=False)
class NewTensor:
    """A tensor that stands in place of the base's."""

    role: str
    layer: int
    values: NDArray[np.float32]  # (rows, cols); vectors have one row


@dataclass(frozen=True, eq=False)
class Stack:
    """All that a list of adapters does to a model."""

    changes: tuple[Change, ...]
    replaced: tuple[NewTensor, ...]
    invoked: tuple[str, ...] = ()
    """Adapters that apply only from some tokens on; the stack is what holds once all of them do."""

    @property
    def bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(change.a.nbytes + change.b.nbytes for change in self.changes) + sum(
            new.values.nbytes for new in self.replaced
        )

    @property
    def packing_bytes(self) -> int:
        """Bytes that packing takes: the packed arrays, and a copy of one tensor at a time."""
        return self.bytes + max((new.values.nbytes for new in self.replaced), default=0)

    @property
    def touched(self) -> frozenset[Place]:
        """Tensors whose weights change."""
        changed = {(change.role, change.layer) for change in self.changes}
        return frozenset(changed | {(new.role, new.layer) for new in self.replaced})

    def merged(self, role: str, layer: int, start: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of a tensor of the base, from `start` on, with the stack in them."""
        for new in self.replaced:
            if (new.role, new.layer) == (role, layer):
                values = new.values[start : start + len(values)]
        for change in self.changes:
            if (change.role, change.layer) == (role, layer):
                values = change.merged(start, values)
        return values

    def require_mergeable(self) -> None:
        """Raises UnsupportedError where the stack is more than other weights."""
        self.require_everywhere()
        for change in self.changes:
            if change.bias is not None:
                where = change.role if change.layer == NO_LAYER else f"{change.role} of layer {change.layer}"
                raise UnsupportedError(f"{where}: the change of a bias cannot be merged; attach the adapter")

    def require_everywhere(self) -> None:
        """Raises UnsupportedError where the stack does not apply to all tokens."""
        for name in self.invoked:
            raise UnsupportedError(
                f"adapter {name}: alora_invocation_tokens: it applies only from these tokens on, which weights or "
                "a plain LoRA cannot say; attach the adapter"
            )

    def packed(self, engine: _core.Engine) -> _core.AdapterSet:
        """The stack as the core runs it."""
        modules = [_module(change) for change in self.changes]
        news: list[_core.ReplacedTensor] = [
            {"role": new.role, "layer": new.layer, "values": new.values} for new in self.replaced
        ]
        return _core.AdapterSet(engine, modules, news)


def _module(change: Change) -> _core.AdapterModule:
    made: _core.AdapterModule = {
        "role": change.role,
        "layer": change.layer,
        "gain": change.gain,
        "bias": change.bias,
    }
    return {**made, "a": change.a, "b": change.b, "scale": change.scale} if len(change.a) else made


class _FileBase:
    """The tensors of a model.bin, one at a time."""

    def __init__(self, file: _core.ModelFile) -> None:
        self._file = file
        self._places = {(tensor["role"], tensor["layer"]): i for i, tensor in enumerate(file.tensors)}

    def _index(self, role: str, layer: int) -> int:
        tied = role == "head" and (role, layer) not in self._places
        return self._places["embedding" if tied else role, layer]

    def __call__(self, role: str, layer: int) -> NDArray[np.float32]:
        i = self._index(role, layer)
        tensor = self._file.tensors[i]
        if tensor["format"] == "vector":
            return self._file.read(i).view(np.float32)[None, : tensor["cols"]]
        return _core.unpack(tensor["format"], self._file.read(i), tensor["rows"], tensor["cols"])

    def rounding(self, role: str, layer: int) -> float:
        return rounding(self._file.tensors[self._index(role, layer)]["format"])


def base_reader(file: _core.ModelFile) -> Base:
    """Reads the values of a model.bin, one tensor at a time."""
    return _FileBase(file)


def stacked(weighted: Weighted, spec: Spec, base: Base, architecture: str | None = None) -> Stack:
    """Puts a list of adapters together for a model; with `architecture`, as its metadata has it, adapters that name
    another are refused.

    Raises:
        ModelFileError: An adapter does not fit the model; the message names the adapter, the tensor, what was expected
            and what was found.
    """
    parts = [
        (fitted(adapter.source, spec, adapter.name, architecture), weight)
        for adapter, weight in _summed(weighted)
    ]
    changes: dict[Place, list[tuple[LowRank, float]]] = {}
    news: dict[Place, list[tuple[Replaced, float]]] = {}
    for source, weight in parts:
        for change in source.changes:
            changes.setdefault((change.role, change.layer), []).append((change, weight))
        for item in source.replaced:
            for one in _with_head(item, spec):
                news.setdefault((one.role, one.layer), []).append((one, weight))
    replaced = tuple(filter(None, (_replaced(place, items, base) for place, items in news.items())))
    taken = {(new.role, new.layer) for new in replaced}
    for place, items in changes.items():
        if place in taken and any(change.magnitude is not None for change, _ in items):
            raise UnsupportedError(f"{items[0][0].name}: use_dora beside a replaced tensor is not supported")
    invoked = tuple(adapter.name for adapter, _ in _summed(weighted) if adapter.source.invocation)
    has_bias = role_shapes(spec)
    made = []
    for (role, layer), items in changes.items():
        own = base(f"{role}_bias", layer)[0] if f"{role}_bias" in has_bias else None
        made.append(_change((role, layer), items, base, own))
    return Stack(tuple(made), replaced, invoked)


def _summed(weighted: Weighted) -> Weighted:
    """Weights of an adapter that stands in the list twice add up; those of 0 change nothing."""
    sums: dict[int, float] = {}
    for adapter, weight in weighted:
        sums[id(adapter)] = sums.get(id(adapter), 0.0) + weight
    first = {id(adapter): adapter for adapter, _ in reversed(weighted)}
    order = dict.fromkeys(id(adapter) for adapter, _ in weighted)
    return tuple((first[key], sums[key]) for key in order if sums[key] != 0.0)


# Whether an adapter fits


def fitted(source: AdapterSource, spec: Spec, name: str, architecture: str | None = None) -> AdapterSource:
    """The adapter with q and k in the model's rotary order and fused matrices apart, every shape checked against the
    model.
    """
    shapes = role_shapes(spec)
    try:
        _check_architecture(source, architecture)
        source = _apart(source, shapes)
        for change in source.changes:
            _check_change(change, shapes, spec)
        for item in source.replaced:
            _check_replaced(item, shapes, spec)
        _check_layers(source, spec)
        if max(source.invocation, default=-1) >= spec.n_vocab:
            raise ModelFileError(
                f"alora_invocation_tokens: expected tokens below {spec.n_vocab}, found {max(source.invocation)}"
            )
    except ModelFileError as error:
        raise type(error)(f"adapter {name}: {error}") from None
    if not source.interleaved:
        return source
    return replace(source, changes=tuple(_half_split(change, spec) for change in source.changes))


def _apart(source: AdapterSource, shapes: Mapping[str, tuple[int, int]]) -> AdapterSource:
    """Changes of several matrices at once, as one for each: A is shared, the rows of B are theirs."""
    changes = [
        piece
        for change in source.changes
        for piece in (_pieces(change, shapes) if change.role in FUSED_ROLES else (change,))
    ]
    everywhere = {part for role in source.in_every_layer for part in FUSED_ROLES.get(role, (role,))}
    for item in source.replaced:
        if item.role in FUSED_ROLES:
            raise UnsupportedError(
                f"{item.name}: expected a change of this module, found a whole tensor in its place"
            )
    return replace(source, changes=tuple(changes), in_every_layer=frozenset(everywhere))


def _pieces(change: LowRank, shapes: Mapping[str, tuple[int, int]]) -> list[LowRank]:
    roles = FUSED_ROLES[change.role]
    ends = np.cumsum([shapes[role][0] for role in roles])
    vectors = (change.b if change.rank else None, change.magnitude, change.bias, change.new_bias)
    for values in vectors:
        if values is not None and len(values) != ends[-1]:
            raise ModelFileError(f"{change.name}: expected B with {ends[-1]} rows, found {len(values)}")
    cut = [[None if values is None else values[end - shapes[role][0] : end] for values in vectors]
           for role, end in zip(roles, ends, strict=True)]  # fmt: skip
    return [
        replace(
            change, role=role, b=change.b if b is None else np.ascontiguousarray(b),
            magnitude=magnitude, bias=bias, new_bias=new_bias, fused=True,
        )
        for role, (b, magnitude, bias, new_bias) in zip(roles, cut, strict=True)
    ]  # fmt: skip


def _check_architecture(source: AdapterSource, architecture: str | None) -> None:
    """A file in another family's order of rows would fit, and be wrong."""
    if None in (source.architecture, architecture):
        return
    expected = gguf_architecture(str(architecture))
    if source.architecture != expected:
        raise ModelFileError(
            f"general.architecture: expected {expected} as of the model, found {source.architecture}"
        )


def _check_layer(name: str, layer: int, spec: Spec) -> None:
    if layer != NO_LAYER and layer >= spec.n_layers:
        raise ModelFileError(f"{name}: expected a layer below {spec.n_layers}, found {layer}")


def _check_change(change: LowRank, shapes: Mapping[str, tuple[int, int]], spec: Spec) -> None:
    _check_layer(change.name, change.layer, spec)
    rows, cols = shapes[change.role]
    if change.role == "embedding":
        rows, cols = cols, rows
    if change.rank:
        for letter, found, expected in (("A", change.a.shape[1], cols), ("B", change.b.shape[0], rows)):
            if found != expected:
                side = "columns" if letter == "A" else "rows"
                raise ModelFileError(
                    f"{change.name}: expected {letter} with {expected} {side}, found {found}"
                )
    for bias in (change.bias, change.new_bias):
        if bias is not None and len(bias) != rows:
            raise ModelFileError(f"{change.name}: expected a bias of {rows} values, found {len(bias)}")


def _check_replaced(item: Replaced, shapes: Mapping[str, tuple[int, int]], spec: Spec) -> None:
    _check_layer(item.name, item.layer, spec)
    if item.role not in shapes:
        raise ModelFileError(f"{item.name}: expected a tensor of the model, found one that it has not")
    if spec.norm_offset and item.role.endswith("norm"):
        raise UnsupportedError(
            f"{item.name}: norms of this family cannot be replaced, since the model holds 1 + w for them"
        )
    if item.only_tied and not spec.tied_head:
        raise ModelFileError(
            f"{item.name}: expected trained rows of the head too, since the model has one of its own, found none"
        )
    rows, cols = shapes[item.role]
    found = item.values.shape
    if item.rows is not None:
        if max(item.rows) >= rows:
            raise UnsupportedError(
                f"{item.name}: expected tokens below {rows}, found {max(item.rows)}; "
                "a larger vocabulary comes with a whole embedding"
            )
        rows = len(item.rows)
    elif found[0] > rows and found[1] == cols and item.role in ("embedding", "head"):
        raise UnsupportedError(
            f"{item.name}: expected {rows} tokens, found {found[0]}; a larger vocabulary can be merged, not attached"
        )
    if found != (rows, cols):
        raise ModelFileError(f"{item.name}: expected the shape {[rows, cols]}, found {list(found)}")


def _check_layers(source: AdapterSource, spec: Spec) -> None:
    """A role that is meant to change in every layer does."""
    changed = {(item.role, item.layer) for item in source.changes}
    changed |= {(item.role, item.layer) for item in source.replaced}
    for role in sorted(source.in_every_layer):
        missing = [layer for layer in range(spec.n_layers) if (role, layer) not in changed]
        if missing:
            raise ModelFileError(
                f"expected changes of {role} in {spec.n_layers} layers, found none in layer {missing[0]}"
            )


def _half_split(change: LowRank, spec: Spec) -> LowRank:
    """Rows of B of q and k in half-split order; A needs nothing. Files in interleaved order have no biases."""
    if change.role not in ("q", "k"):
        return change
    order = half_split_order(len(change.b), spec.head_dim, spec.rope_dim)
    return replace(change, b=np.ascontiguousarray(change.b[order]))


# Low-rank changes


def _change(
    place: Place, items: list[tuple[LowRank, float]], base: Base, own_bias: NDArray[np.float32] | None
) -> Change:
    """One matrix: factors side by side, weights and scalings in `scale`, so that A and B keep their own precision."""
    rows = [(change, weight) for change, weight in items if change.rank]
    gains, b_parts = None, [change.b for change, _ in rows]
    if any(change.magnitude is not None for change, _ in rows):
        gains, b_parts = _magnitudes(place, rows, base)
    in_size = rows[0][0].a.shape[1] if rows else 0
    out_size = len(rows[0][0].b) if rows else 0
    scale = [np.full(change.rank, weight * change.scaling, np.float32) for change, weight in rows]
    return Change(
        role=place[0],
        layer=place[1],
        a=_joined([change.a for change, _ in rows], 0) if rows else np.zeros((0, in_size), np.float32),
        b=_joined(b_parts, 1) if rows else np.zeros((out_size, 0), np.float32),
        scale=np.concatenate(scale) if scale else np.zeros(0, np.float32),
        gain=gains,
        bias=_biases(items, own_bias),
        fused=any(change.fused for change, _ in items),
    )


def _joined(parts: list[Values], axis: int) -> Values:
    """Arrays side by side, as float32 where their precisions differ."""
    if len({part.dtype for part in parts}) > 1:
        parts = [as_float(part) for part in parts]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis))


def _biases(
    items: list[tuple[LowRank, float]], own: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """What is added to the outputs; of a bias that replaces the layer's own, the difference."""
    found = [change.bias * np.float32(weight) for change, weight in items if change.bias is not None]
    for change, weight in items:
        if change.new_bias is not None:
            difference = change.new_bias if own is None else change.new_bias - own
            found.append(difference * np.float32(weight))
    return reduce(np.add, found) if found else None


def _magnitudes(
    place: Place, items: list[tuple[LowRank, float]], base: Base
) -> tuple[NDArray[np.float32], list[Values]]:
    """DoRA: each row of W + change gets a length of its own, g times what it has. A weight w adds w (g - 1) W x."""
    weights = base(*place)
    gain = np.ones(len(weights), np.float64)
    parts: list[Values] = []
    for change, weight in items:
        if change.magnitude is None:
            parts.append(change.b)
            continue
        lengths = _row_lengths(weights, change)
        if not (lengths > 0).all():
            raise ModelFileError(f"{change.name}: expected rows of a length above 0, found one of 0")
        factor = change.magnitude / lengths
        gain += weight * (factor - 1)
        parts.append((as_float(change.b) * factor[:, None]).astype(np.float32))
    return gain.astype(np.float32), parts


def _row_lengths(weights: NDArray[np.float32], change: LowRank) -> NDArray[np.float64]:
    """Lengths of the rows of W + scaling B A, some rows at a time."""
    lengths, step = np.empty(len(weights)), 1024
    a = as_float(change.a).astype(np.float64) * change.scaling
    for start in range(0, len(weights), step):
        rows = weights[start : start + step] + as_float(change.b[start : start + step]).astype(np.float64) @ a
        lengths[start : start + step] = np.sqrt(np.square(rows).sum(1))
    return lengths


# Replaced tensors


def _with_head(item: Replaced, spec: Spec) -> tuple[Replaced, ...]:
    """Where embedding and head are one, trained tokens change both."""
    both = item.with_head and spec.tied_head
    return (item, replace(item, role="head")) if both else (item,)


def _replaced(place: Place, items: list[tuple[Replaced, float]], base: Base) -> NewTensor | None:
    """W + Σ weight (new - W); None where nothing changes."""
    values = base(*place)
    total = values.astype(np.float64) if len(items) > 1 or items[0][1] != 1.0 else values.copy()
    changed = False
    for item, weight in items:
        rows = np.arange(len(values)) if item.rows is None else np.array(item.rows)
        new = item.values
        if item.of_base and _is_copy(new, values, item.trained, base.rounding(*place)):
            rows = np.array(item.trained, np.int64)
            new = new[rows]
        changed = changed or len(rows) > 0
        total[rows] = new if total.dtype == np.float32 else total[rows] + weight * (new - values[rows])
    return NewTensor(*place, np.ascontiguousarray(total, np.float32)) if changed else None


def _is_copy(
    new: NDArray[np.float32], old: NDArray[np.float32], trained: Sequence[int], rounding: float
) -> bool:
    """Whether all rows but the trained ones are those of the base, which may have been rounded. If not, the whole
    tensor counts, as it does for PEFT: nobody has trained with some rows of one and some of the other.
    """
    with np.errstate(over="ignore"):
        error, size = np.square(new - old).sum(1), np.square(new).sum(1)
    differs = (error > rounding**2 * size) | np.isinf(error)
    differs[list(trained)] = False
    return not differs.any()
