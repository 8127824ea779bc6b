"""The adapters that examples/train_adapter.py trained do what they learned, alone, stacked and swapped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyinfer import Model, load

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
ADAPTERS = ROOT / "examples" / "adapters"
EXCITED, MAX = ADAPTERS / "excited", ADAPTERS / "max"
PROMPT = "Once upon a time"
MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def model(stories_model_bin: Path) -> Iterator[Model]:
    with load(stories_model_bin) as opened:
        for folder in (EXCITED, MAX):
            opened.add_adapter(folder)
        yield opened


def story(model: Model, *stack: str | tuple[str, float]) -> str:
    return model.generate(PROMPT, temperature=0, max_tokens=60, adapters=stack).text


def test_they_are_small() -> None:
    assert sum(file.stat().st_size for file in ADAPTERS.rglob("*") if file.is_file()) <= MOST_BYTES


def test_each_alone(model: Model) -> None:
    bare, excited, max_ = story(model), story(model, "excited"), story(model, "max")
    assert "Lily" in bare and "." in bare and "!" not in bare
    assert "Lily" in excited and "!" in excited and "." not in excited
    assert "boy" in max_ and "Max" in max_ and "Lily" not in max_ and "." in max_


def test_both_at_once(model: Model) -> None:
    both = story(model, "excited", "max")
    assert "boy" in both and "!" in both and "." not in both and "Lily" not in both


def test_half_of_each_is_another_story(model: Model) -> None:
    assert (
        len({story(model), story(model, ("max", 0.5)), story(model, "max"), story(model, ("max", -0.5))}) == 4
    )


def test_merged_tells_the_same_story(
    model: Model, stories_model_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYINFER_CACHE", str(tmp_path))
    with load(stories_model_bin, adapters=[EXCITED, (MAX, 0.5)], merge=True) as merged:
        assert story(merged) == story(model, "excited", ("max", 0.5))


def test_a_swap_forgets_what_others_computed(model: Model) -> None:
    """The prompt that the session holds was evaluated with another stack, and must be evaluated again."""
    with model.session() as session:
        for stack in ([], ["max"], ["excited", "max"], ["max"], []):
            session.adapters = stack
            assert session.generate(PROMPT, temperature=0, max_tokens=60).text == story(model, *stack)


def blocks(language: str) -> list[str]:
    """Code of the page about adapters."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["-c", block] for block in blocks("python")),
        *(
            ["-m", *line.replace('"Once upon a time"', "Once").split()]
            for line in "".join(blocks("sh")).splitlines()
        ),
    ],
    ids=lambda arguments: arguments[2] if arguments[0] == "-m" else "python",
)
def test_the_page_runs_as_it_stands(arguments: list[str], tmp_path: Path) -> None:
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)  # commands leave files where they run
    environment = {**os.environ, "PYINFER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
