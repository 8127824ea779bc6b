"""What templates may call: operators, filters, methods and globals whose cost is known before they are carried out.

Must not know Jinja's syntax tree. What is not on the lists here does not exist for a template.
"""

from __future__ import annotations

import datetime
import functools
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from pyinfer.template.budget import CHARS_PER_UNIT, Refused, concat, counted, spend, text_of, weigh, weighed

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "reverse", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
STR_METHODS = frozenset((
    "capitalize", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper",
))  # fmt: skip
DICT_METHODS = frozenset(("get", "items", "keys", "values"))
LIST_METHODS = frozenset(("count", "index"))

# Operators, methods and filters whose result is larger than what they are given: paid for beforehand


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, list, tuple)):
            spend(max(0, len(one) * int(other)))
    return left * right


def _power(left: Any, right: Any) -> Any:
    if (
        not all(isinstance(one, (int, float)) and abs(one) < 1 << 32 for one in (left, right))
        or abs(right) > 64
    ):
        raise Refused("it raises numbers to too high powers")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        raise Refused("it formats text with '%', which is not supported")
    return left % right


def _plus(left: Any, right: Any) -> Any:
    for one in (left, right):
        weigh(one)
    return left + right


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old) if count < 0 else min(count, text.count(old))
    spend((len(text) + found * len(new)) // CHARS_PER_UNIT)
    return text.replace(old, new, count)


def _join(between: str, items: Iterable[Any]) -> str:
    texts = [text_of(item) for item in counted(items)]
    length = len(between) * len(texts) + sum(map(len, texts))
    spend(length // CHARS_PER_UNIT)
    return between.join(texts)


def _format(layout: str, *args: Any, **kwargs: Any) -> str:
    """`str.format` with plain fields only: neither attributes nor widths."""
    made, at = [], 0
    for text, name, spec, conversion in string.Formatter().parse(layout):
        made.append(text)
        if name is None:
            continue
        if spec or conversion or not (name == "" or name.isidentifier() or name.isdecimal()):
            raise Refused(f"it formats text with a field {{{name}}} that is more than a name")
        at, field = (at + 1, at) if name == "" else (at, int(name) if name.isdecimal() else name)
        made.append(text_of(kwargs[field] if isinstance(field, str) else args[field]))
    return concat(made)


OWN_METHODS: dict[str, Callable[..., str]] = {"format": _format, "join": _join, "replace": _replace}
"""Methods of text that are carried out here instead."""


def _filter_replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return _replace(text_of(value), text_of(old), text_of(new), -1 if count is None else count)


def _filter_join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = [item.get(attribute, "") if isinstance(item, Mapping) else "" for item in counted(value)]
    return _join(text_of(d), value)


def _filter_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, str) and not 0 <= width <= 256:
        raise Refused(f"it indents text by {width} columns")
    margin = width if isinstance(width, str) else " " * width
    text = text_of(s)
    spend(((text.count("\n") + 1) * len(margin) + len(text)) // CHARS_PER_UNIT)
    lines = [
        margin + line if i + first and (line or blank) else line for i, line in enumerate(text.split("\n"))
    ]
    return "\n".join(lines)


def _filter_tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    weigh(value)
    if indent is not None and not 0 <= indent <= 16:
        raise Refused(f"it indents JSON by {indent} columns")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return concat(encoder.iterencode(value))


class Rejected(Exception):
    """The template says that it does not take these messages."""


def _raise_exception(message: object) -> NoReturn:
    raise Rejected(text_of(message))


def _strftime_now(layout: str) -> str:
    if len(layout) > 64 or any(char.isdigit() for char in layout):
        raise Refused("it asks for the time in an unusual layout")
    return datetime.datetime.now().strftime(layout)


OPERATORS: dict[str, Callable[..., Any]] = {"+": _plus, "*": _times, "**": _power, "%": _modulo}
OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "indent": _filter_indent,
    "join": _filter_join,
    "replace": _filter_replace,
    "string": text_of,
    "tojson": _filter_tojson,
}
"""Filters that replace Jinja's, or that it does not have."""
GLOBALS: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}


def paid(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is weighed. A lazy one stays so, which templates can tell: it is true, and read once."""

    @functools.wraps(function)
    def filter_(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return counted(made) if isinstance(made, Iterator) else weighed(made)

    return filter_
