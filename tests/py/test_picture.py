"""The picture of an adapter's changes: what its cells say, and what cannot be drawn."""

from __future__ import annotations

import builtins
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pyinfer import picture
from pyinfer.checking import Looked
from pyinfer.errors import PyinferError, RequestError


def changed(role: str, layer: int, relative: float) -> Looked:
    return Looked(role, layer, 16, relative, 1.0, 0.5)


def svg_words(path: Path) -> list[str]:
    """The texts of a picture in drawing order: each is kept as a comment beside its outlines."""
    return [word.strip() for word in re.findall(r"<!--(.*?)-->", path.read_text(encoding="utf-8"), re.S)]


def test_every_change_is_a_cell(tmp_path: Path) -> None:
    looked = [
        changed("down", 2, 0.25), changed("q", 0, 0.0125), changed("q", 2, math.inf), changed("embedding", -1, 0.5),
    ]  # fmt: skip
    picture.draw(looked, "max on tiny", tmp_path / "changes.svg")
    words = svg_words(tmp_path / "changes.svg")
    assert words.count("50") == 3 + 1  # over all three layers, and on the scale
    assert {"25", "1.2", "∞", "0", "1", "2", "max on tiny", "‖Δ‖ / ‖W‖ in %"} <= set(words)
    rows = [word for word in words if word in ("embedding (no layer)", "q", "down")]
    assert rows == ["embedding (no layer)", "q", "down"]  # in the order of a forward pass


def test_a_deep_model_keeps_room_for_its_labels(tmp_path: Path) -> None:
    looked = [changed("q", layer, 0.01) for layer in range(80)]
    picture.draw(looked, "deep", tmp_path / "deep.svg")
    layers = [int(word) for word in svg_words(tmp_path / "deep.svg") if word.isdecimal()]
    assert layers[:20] == list(range(0, 80, 4))


@pytest.mark.parametrize(("title", "words"), [(r"a$\frac$", r"a$\frac$"), ("b\udcff", "b?")])
def test_titles_are_taken_as_they_are(title: str, words: str, tmp_path: Path) -> None:
    picture.draw([changed("v", 0, 0.1)], title, tmp_path / "changes.svg")
    assert words in svg_words(tmp_path / "changes.svg")


def test_a_png_is_a_png(tmp_path: Path) -> None:
    picture.draw([changed("v", 0, 0.0)], "nothing", tmp_path / "changes.PNG")
    assert (tmp_path / "changes.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    looked = [changed("v", 0, 0.1)]
    with pytest.raises(RequestError, match=r"ends in \.png or \.svg, found '.*changes\.bmp'"):
        picture.draw(looked, "", tmp_path / "changes.bmp")
    with pytest.raises(RequestError, match=r"existing folder for the picture, found '.*nowhere'"):
        picture.draw(looked, "", tmp_path / "nowhere" / "changes.png")
    with pytest.raises(RequestError, match="at least one changed matrix"):
        picture.draw([], "", tmp_path / "changes.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RequestError, match=r"cannot be written to '.*folder\.png'"):
        picture.draw(looked, "", tmp_path / "folder.png")


def test_a_picture_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "changes.svg"
    path.write_text("old")

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RequestError, match=r"written to '.*changes\.svg': No space left on device$"):
        picture.draw([changed("v", 0, 0.1)], "", path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PyinferError, match=r"matplotlib: pip install matplotlib$"):
        picture.draw([changed("v", 0, 0.1)], "", tmp_path / "changes.png")
