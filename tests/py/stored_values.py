"""What a model.bin holds, as numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyinfer import _core


def stored(path: Path) -> dict[tuple[str, int], NDArray[np.float32]]:
    """(role, layer) -> the values of that tensor, (rows, cols)."""
    file = _core.ModelFile(str(path))
    found = {}
    for i, tensor in enumerate(file.tensors):
        data, shape = file.read(i), (tensor["rows"], tensor["cols"])
        found[tensor["role"], tensor["layer"]] = (
            data.view(np.float32).reshape(shape)
            if tensor["format"] == "vector"
            else _core.unpack(tensor["format"], data, *shape)
        )
    return found
