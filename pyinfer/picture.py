"""Draws what `checking.look` found: how large an adapter's changes are, layer by layer, as a heat map in a file.

Must not print. matplotlib is an extra and imported only when something is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyinfer import cache
from pyinfer.checking import Looked
from pyinfer.convert.adapter import LINEAR_ROLES
from pyinfer.convert.metadata import told
from pyinfer.errors import PyinferError, RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SUFFIXES", "checked", "draw"]

SUFFIXES = (".png", ".svg")
CELL = 0.44  # inches, room for three digits
MOST_LABELLED = 64  # layers; beyond that a cell has no room for its number
ABSENT = "0.85"


def checked(path: Path) -> Path:
    """The path, if it can be drawn to: RequestError for another suffix or folder, PyinferError without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"expected a picture's name that ends in {' or '.join(SUFFIXES)}, found '{path}'")
    if not path.parent.is_dir():
        raise RequestError(f"expected an existing folder for the picture, found '{path.parent}'")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PyinferError("drawing needs matplotlib: pip install matplotlib") from None
    return path


def draw(looked: Sequence[Looked], title: str, path: Path) -> None:
    """Writes ‖Δ‖ / ‖W‖ of each matrix as a cell, a row a kind of matrix and a column a layer.

    Args:
        looked: the changed matrices, of any number of layers.
        title: a line above the map.
        path: a .png or .svg file, replaced if it is there; written whole or not at all.

    Raises:
        RequestError: nothing to draw, another suffix, or a file that cannot be written.
        PyinferError: matplotlib is not there.
    """
    checked(path)
    if not looked:
        raise RequestError("expected at least one changed matrix to draw, found none")
    from matplotlib.figure import Figure

    order = {role: at for at, role in enumerate(("embedding", *LINEAR_ROLES))}
    roles = sorted({one.role for one in looked}, key=lambda role: (order.get(role, len(order)), role))
    shares = _shares(looked, roles)
    n_layers = shares.shape[1]
    figure = Figure(figsize=(3.2 + CELL * max(n_layers, 12), 1.7 + CELL * len(roles)), layout="constrained")
    axes = figure.subplots()
    finite = shares[np.isfinite(shares)]
    top = float(finite.max(initial=0.0)) or 1.0
    axes.set_facecolor(ABSENT)
    cells = np.ma.masked_invalid(shares)
    image = axes.imshow(cells, cmap="viridis", vmin=0.0, vmax=top, aspect="auto")
    outside = {one.role for one in looked if one.layer < 0}
    names = [f"{role} (no layer)" if role in outside else role for role in roles]
    axes.set_yticks(range(len(roles)), names)
    step = 1 if n_layers <= MOST_LABELLED else 4
    axes.set_xticks(range(0, n_layers, step), [str(layer) for layer in range(0, n_layers, step)], fontsize=8)
    axes.set_xlabel("layer (grey: not changed)")
    axes.set_title(told(title), fontsize=10, loc="left", parse_math=False)
    if n_layers <= MOST_LABELLED:
        _number(axes, shares, top)
    figure.colorbar(image, label="‖Δ‖ / ‖W‖ in %", pad=0.01)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower().removeprefix("."), dpi=150)
    try:
        cache.write_whole(path, drawn.getvalue())
    except OSError as error:
        raise RequestError(f"the picture cannot be written to '{path}': {error.strerror}") from error


def _shares(looked: Sequence[Looked], roles: Sequence[str]) -> NDArray[np.float64]:
    """(roles, layers) of per cents, NaN where nothing is changed; what has no layer fills its row."""
    shares = np.full((len(roles), 1 + max(0, *(one.layer for one in looked))), math.nan)
    for one in looked:
        columns = slice(None) if one.layer < 0 else slice(one.layer, one.layer + 1)
        shares[roles.index(one.role), columns] = 100 * one.relative
    return shares


def _number(axes: Axes, shares: NDArray[np.float64], top: float) -> None:
    """Writes each cell's value into it."""
    for (row, column), share in np.ndenumerate(shares):
        if not math.isnan(share):
            colour = "black" if share > 0.6 * top else "white"
            text = "∞" if math.isinf(share) else f"{share:.2g}" if share < 100 else f"{share:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
