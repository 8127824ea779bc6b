"""What a family file makes of a checkpoint: the specification and every tensor with its role, in the order of the file.

Must not know names or settings: families give them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core
from pyinfer.convert.checkpoint import (
    FLOAT_SOURCES,
    FUSED_ROLES,
    NO_LAYER,
    VECTOR_ROLES,
    RawTensor,
    ReadRows,
    Spec,
    Tensor,
    array_tensor,
    role_shapes,
)
from pyinfer.convert.families.names import Names
from pyinfer.convert.families.rope import Rope
from pyinfer.convert.families.rotary_order import half_split
from pyinfer.errors import ModelFileError, UnsupportedError

__all__ = ["Model", "assembled", "offset_norms", "split"]

Raw = Mapping[str, RawTensor]


@dataclass(frozen=True)
class Model:
    """A specification and the tensors that it asks for."""

    spec: Spec
    tensors: tuple[Tensor, ...]


def assembled(
    spec: Spec,
    raw: Raw,
    names: Names,
    rope: Rope,
    *,
    interleaved: bool = False,
    ignored: tuple[str, ...] = (),
) -> Model:
    """Gives each tensor its role; a missing, misshaped or unknown one is refused by name.

    Args:
        spec: The numbers, but for those that `rope` brings.
        raw: Every tensor of the checkpoint.
        names: Role -> name.
        rope: How q and k rotate.
        interleaved: Rows of q and k are in interleaved order.
        ignored: Ends of the names of tensors that change nothing.
    """
    spec = rope.put_into(spec).check()
    shapes, left = role_shapes(spec), dict(raw)
    if spec.tied_head:
        left.pop(names["head"], None)  # where it is stored all the same
    tensors = []
    for role, layer in _places(spec):
        name = names[role].format(layer)
        if name not in left:
            raise ModelFileError(f"expected a tensor {name}, found none")
        tensor = _fit(left.pop(name), role, layer, shapes[role])
        tensors.append(half_split(tensor, spec) if interleaved else tensor)
    for name, extra in left.items():
        if not name.endswith(ignored or ("\0",)) and not _adds_nothing(extra):
            kind = "biases are" if name.endswith(".bias") else "this tensor is"
            raise UnsupportedError(f"{name}: {kind} not part of the supported architecture")
    frequencies = [array_tensor(role, values) for role, values in rope.vectors(spec)]
    return Model(spec, (tensors[0], *frequencies, *tensors[1:]))


def _adds_nothing(raw: RawTensor) -> bool:
    """Whether it is a bias of zeros: AutoGPTQ wrote one for every matrix, whether the model had it or not."""
    small = len(raw.shape) == 1 and raw.shape[0] <= 1 << 20 and raw.source in FLOAT_SOURCES
    if not (small and raw.name.endswith(".bias")):
        return False
    return not _core.dequantize(raw.source, raw.read(0, 1), 1, raw.shape[0]).any()


def _places(spec: Spec) -> Iterator[tuple[str, int]]:
    """Every (role, layer) that a checkpoint of the model stores, in the order of the file."""
    yield "embedding", NO_LAYER
    yield from ((role, layer) for layer in range(spec.n_layers) for role in spec.layer_roles)
    yield "final_norm", NO_LAYER
    if not spec.tied_head:
        yield "head", NO_LAYER


def _fit(raw: RawTensor, role: str, layer: int, shape: tuple[int, int]) -> Tensor:
    vector = role in VECTOR_ROLES
    expected = shape[1:] if vector else shape
    if raw.shape != expected:
        raise ModelFileError(f"{raw.name}: expected the shape {list(expected)}, found {list(raw.shape)}")
    if vector and raw.source not in FLOAT_SOURCES:
        kind = "bias" if role.endswith("bias") else "norm"
        raise UnsupportedError(
            f"{raw.name}: expected a {kind} in {', '.join(FLOAT_SOURCES)}, found {raw.source}"
        )
    return Tensor(role, layer, raw.source, *shape, raw.name, raw.read)


def split(raw: Raw, spec: Spec, fused: Names, parts: Names) -> dict[str, RawTensor]:
    """The tensors with fused ones cut into rows: q, k and v, then gate and up.

    `fused` has the names of the roles `qkv` and `gate_up`, `parts` those that the pieces get.
    """
    shapes, cut = role_shapes(spec), dict(raw)
    for fused_role, roles in FUSED_ROLES.items():
        for layer in range(spec.n_layers):
            name = fused[fused_role].format(layer)
            if name not in cut:
                raise ModelFileError(f"expected a tensor {name}, found none")
            whole, first = cut.pop(name), 0
            rows, cols = sum(shapes[role][0] for role in roles), shapes[roles[0]][1]
            if whole.shape != (rows, cols):
                raise ModelFileError(f"{name}: expected the shape {[rows, cols]}, found {list(whole.shape)}")
            for role in roles:
                piece = parts[role].format(layer)
                cut[piece] = RawTensor(piece, whole.source, shapes[role], _from_row(whole.read, first))
                first += shapes[role][0]
    return cut


def _from_row(read: ReadRows, first: int) -> ReadRows:
    return lambda start, stop: read(first + start, first + stop)


def offset_norms(model: Model) -> Model:
    """Norms as 1 + w, where the source has w; in float32."""
    tensors = tuple(_plus_one(tensor) if tensor.role.endswith("norm") else tensor for tensor in model.tensors)
    return Model(model.spec, tensors)


def _plus_one(tensor: Tensor) -> Tensor:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        values = _core.dequantize(tensor.source, tensor.read(start, stop), 1, tensor.cols)
        shifted: NDArray[np.uint8] = (values + np.float32(1)).astype("<f4").reshape(-1).view(np.uint8)
        return shifted

    return replace(tensor, source="F32", read=read)
