from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyinfer.errors import RequestError
from pyinfer.stopping import StopMatcher, checked_stops

LETTERS = st.text(alphabet="ab\n🙂", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n🙂", min_size=1, max_size=5), max_size=4, unique=True)


def before_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: reading character by character, cut the longest stop string that is complete first."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(text=LETTERS, stops=STOPS, places=st.lists(st.integers(0, 1000), max_size=8))
@example(text="xabcdef", stops=["abcdef", "bc"], places=[])
@example(text="aab", stops=["ab"], places=[1, 2])
def test_any_cutting_of_a_text_stops_at_the_same_place(
    text: str, stops: list[str], places: list[int]
) -> None:
    matcher = StopMatcher(tuple(stops))
    shown = "".join(matcher.push(piece) for piece in cut(text, places)) + matcher.flush()
    assert (shown, matcher.stopped) == before_stop(text, stops)


@given(text=LETTERS, stops=STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(tuple(stops))
    shown = "".join(map(matcher.push, text))
    if not matcher.stopped:
        held = text[len(shown) :]
        assert text.startswith(shown)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_comes_after_a_stop_string() -> None:
    matcher = StopMatcher(("##",))
    assert [matcher.push("a#"), matcher.push("#b"), matcher.push("c"), matcher.flush()] == ["a", "", "", ""]


def test_a_single_string_is_one_stop_string() -> None:
    assert checked_stops("ab") == ("ab",)
    assert checked_stops(["ab", "c", "ab"]) == ("ab", "c")


@pytest.mark.parametrize("stop", ["", 5, b"a", ["a", ""], [1], [None], [b"a"], [str(i) for i in range(65)]])
def test_bad_stop_strings_are_refused(stop: object) -> None:
    with pytest.raises(RequestError, match=r"^stop: expected .* found "):
        checked_stops(stop)  # type: ignore[arg-type]
