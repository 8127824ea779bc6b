"""Text as it grows: holds back what may yet become a stop string, and ends where one stands.

Must not know tokens or models. Which stop string ends a text does not depend on how the text is cut into pieces: it is
the one that is complete first, and of several that end at the same character the longest.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyinfer.errors import RequestError

__all__ = ["StopMatcher", "checked_stops"]

_MOST_STOPS = 64


def checked_stops(stop: str | Iterable[str]) -> tuple[str, ...]:
    """The stop strings of a request, each once; a single string stands for itself."""
    if not isinstance(stop, Iterable):
        raise RequestError(f"stop: expected a string or several, found {type(stop).__name__}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for item in stops:
        if not isinstance(item, str) or not item:
            raise RequestError(f"stop: expected strings of at least one character, found {item!r}")
        if any("\ud800" <= char <= "\udfff" for char in item):
            raise RequestError(f"stop: expected characters that UTF-8 can hold, found {item!r}"[:200])
    if len(stops) > _MOST_STOPS:
        raise RequestError(f"stop: expected at most {_MOST_STOPS} strings, found {len(stops)}")
    return tuple(dict.fromkeys(stops))


class StopMatcher:
    """Takes text piece by piece and gives back what is certain to belong to the answer."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""  # the end of the text so far, which a stop string may begin with
        self.stopped = False
        """Whether a stop string was found; what comes after it is dropped."""

    def push(self, text: str) -> str:
        """Adds a piece; returns what may be shown."""
        if self.stopped or not text:
            return ""
        text = self._held + text
        found = self._first_stop(text)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown = text[: len(text) - keep]
        self._held = text[len(shown) :]
        return shown

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that is complete first."""
        starts = ((text.find(stop), len(stop)) for stop in self._stops)
        ends = [(start + length, start) for start, length in starts if start >= 0]
        return min(ends)[1] if ends else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself excepted."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
