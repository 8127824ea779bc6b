"""Runs a chat template of a model file, which nobody vouches for: Jinja in a sandbox with a budget.

Must not know tokens or models. On top of Jinja's immutable sandbox, whose `range` stops at 100,000:

- filters, methods and globals are those on the lists below; everything else is refused by name;
- every turn of a loop, every call and every value that is made (text, list, number, output) costs fuel by its size, and
  what would be large is paid for before it is made, so no value outgrows the fuel;
- processor time is looked at whenever fuel is spent.
"""

from __future__ import annotations

import datetime
import functools
import json
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pyinfer.errors import ModelFileError, RequestError

__all__ = ["Template"]

MOST_SOURCE = 1 << 17  # characters of a template; the largest in use have some 30,000
FUEL = 1 << 21
FUEL_PER_INPUT = 64  # for each unit of what the messages weigh
SECONDS = 2.0  # of processor time
CHARS_PER_UNIT = 16
MOST_BITS = 4096  # of a whole number

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "reverse", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_STR_METHODS = frozenset((
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
    "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper",
))  # fmt: skip
_DICT_METHODS = frozenset(("get", "items", "keys", "values"))
_LIST_METHODS = frozenset(("count", "index"))
_CHECK = "weighed value"  # not a word of the language; `map` can name it all the same, which does no harm
_LOOP = "counted loop"
_JOIN = "joined text"


class _Refused(SecurityError):
    """The template asks for more than it may have."""


@dataclass
class _Budget:
    """What one rendering may still spend."""

    fuel: int
    deadline: float = field(default_factory=lambda: time.thread_time() + SECONDS)
    unseen: int = 0  # fuel spent since the clock was looked at

    def spend(self, units: int) -> None:
        self.fuel -= units
        self.unseen += units
        if self.fuel < 0:
            raise _Refused("it makes too many steps or too much text")
        if self.unseen >= 256:
            self.unseen = 0
            if time.thread_time() > self.deadline:
                raise _Refused(f"it takes longer than {SECONDS:g} seconds")


_budget: ContextVar[_Budget] = ContextVar("budget of the rendering under way")


def _weigh(value: object, spend: Callable[[int], None]) -> None:
    """Spends by size as if shared parts were copied: what printing or comparing the value may cost."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            spend(1 + len(one) // CHARS_PER_UNIT)
            continue
        if isinstance(one, int) and one.bit_length() > MOST_BITS:
            raise _Refused(f"it makes a number of more than {MOST_BITS} bits")
        spend(1)
        if isinstance(one, Mapping):
            spend(len(one))
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            spend(len(one) // CHARS_PER_UNIT)
            waiting += one


def _weighed(value: Any) -> Any:
    """The value, paid for. Lazy sequences become lists."""
    spend = _budget.get().spend
    if isinstance(value, Iterator):
        value = list(_counted(value))
    elif isinstance(value, range):
        spend(len(value))
    _weigh(value, spend)
    return value


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    spend = _budget.get().spend
    for item in items:
        spend(1)
        yield item


def _text(value: object) -> str:
    """What a value prints as; only plain values print."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, Mapping)):
        _weigh(value, _budget.get().spend)
        _require_plain(value)
    elif not isinstance(value, (int, float, Undefined, type(None))):
        raise _Refused(f"it prints a {type(value).__name__}")
    return str(value)


def _require_plain(value: object) -> None:
    waiting: list[object] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif not isinstance(one, (str, int, float, Undefined, type(None))):
            raise _Refused(f"it prints a {type(one).__name__}")


def _concat(parts: Iterable[Any]) -> str:
    """Text from parts, each paid for before the next is made."""
    spend, made = _budget.get().spend, []
    for part in parts:
        text = _text(part)
        spend(1 + len(text) // CHARS_PER_UNIT)
        made.append(text)
    return "".join(made)


# Operators, methods and filters whose result is larger than what they are given: paid for beforehand


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, list, tuple)):
            _budget.get().spend(max(0, len(one) * int(other)))
    return left * right


def _power(left: Any, right: Any) -> Any:
    if (
        not all(isinstance(one, (int, float)) and abs(one) < 1 << 32 for one in (left, right))
        or abs(right) > 64
    ):
        raise _Refused("it raises numbers to too high powers")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        raise _Refused("it formats text with '%', which is not supported")
    return left % right


def _plus(left: Any, right: Any) -> Any:
    for one in (left, right):
        _weigh(one, _budget.get().spend)
    return left + right


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old) if count < 0 else min(count, text.count(old))
    _budget.get().spend((len(text) + found * len(new)) // CHARS_PER_UNIT)
    return text.replace(old, new, count)


def _join(between: str, items: Iterable[Any]) -> str:
    texts = [_text(item) for item in _counted(items)]
    length = len(between) * len(texts) + sum(map(len, texts))
    _budget.get().spend(length // CHARS_PER_UNIT)
    return between.join(texts)


_OWN_METHODS: dict[str, Callable[..., str]] = {"join": _join, "replace": _replace}


def _filter_replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return _replace(_text(value), _text(old), _text(new), -1 if count is None else count)


def _filter_join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        value = [item.get(attribute, "") if isinstance(item, Mapping) else "" for item in _counted(value)]
    return _join(_text(d), value)


def _filter_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, str) and not 0 <= width <= 256:
        raise _Refused(f"it indents text by {width} columns")
    margin = width if isinstance(width, str) else " " * width
    text = _text(s)
    _budget.get().spend(((text.count("\n") + 1) * len(margin) + len(text)) // CHARS_PER_UNIT)
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
    _weigh(value, _budget.get().spend)
    if indent is not None and not 0 <= indent <= 16:
        raise _Refused(f"it indents JSON by {indent} columns")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return _concat(encoder.iterencode(value))


def _raise_exception(message: object) -> NoReturn:
    raise RequestError(f"the model's chat template refuses these messages: {_one_line(_text(message))}")


def _strftime_now(layout: str) -> str:
    if len(layout) > 64 or any(char.isdigit() for char in layout):
        raise _Refused("it asks for the time in an unusual layout")
    return datetime.datetime.now().strftime(layout)


def _paid(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is weighed."""

    @functools.wraps(function)
    def filter_(*args: Any, **kwargs: Any) -> Any:
        return _weighed(function(*args, **kwargs))

    return filter_


class _Generation(Extension):
    """`{% generation %}` marks what the model says, for training; here it only encloses."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Meter(NodeTransformer):
    """Puts the meters into the syntax tree: where values are made, and where loops turn."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _LOOP)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.Tuple(node.nodes, "load", lineno=node.lineno), _JOIN)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _CHECK) if isinstance(node.arg, nodes.Slice) else node

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _CHECK)

    visit_List = visit_Dict = _literal

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _CHECK) if node.ctx == "load" else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with meters."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        extensions = [loopcontrols, _Generation]
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_text, extensions=extensions
        )
        own = {
            "indent": _filter_indent,
            "join": _filter_join,
            "replace": _filter_replace,
            "string": _text,
            "tojson": _filter_tojson,
            _CHECK: lambda value: value,
            _JOIN: _concat,
        }
        allowed = {name: self.filters[name] for name in _FILTERS} | own
        self.filters = {name: _paid(function) for name, function in allowed.items()}
        self.filters[_LOOP] = _counted
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")} | {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.binop_table.update({"+": _plus, "*": _times, "**": _power, "%": _modulo})

    concat = staticmethod(_concat)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Meter().visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only what is on a list; attributes of namespaces and loops are the template's own."""
        if isinstance(obj, str):
            return attr in _STR_METHODS
        if isinstance(obj, Mapping):
            return attr in _DICT_METHODS
        if isinstance(obj, (list, tuple)):
            return attr in _LIST_METHODS
        return isinstance(obj, (Namespace, LoopContext)) and not attr.startswith("_")

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Says what was reached for, at once."""
        raise _Refused(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is no exception to the list of methods."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls what the template may call, and weighs what comes back."""
        _budget.get().spend(4)
        if isinstance(obj, (types.BuiltinMethodType, types.MethodType)) and isinstance(obj.__self__, str):
            own = _OWN_METHODS.get(obj.__name__)
            obj = functools.partial(own, str(obj.__self__)) if own else obj
        if isinstance(obj, LoopContext) and args:
            args = (_counted(args[0]), *args[1:])
        return _weighed(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that may make large values."""
        return _weighed(super().call_binop(context, operator, left, right))


class Template:
    """A compiled chat template; may be rendered by several threads at once.

    Raises:
        ModelFileError: It is no valid template.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MOST_SOURCE:
            raise ModelFileError(
                f"chat template: expected at most {MOST_SOURCE} characters, found {len(source)}"
            )
        try:
            self._template = _Environment().from_string(source)
        except TemplateSyntaxError as error:
            where = f"in line {error.lineno}"
            raise ModelFileError(
                f"chat template: expected Jinja, found {where}: {_one_line(error)}"
            ) from None
        except Exception as error:  # Python's own compiler: nesting too deep, and the like
            raise ModelFileError(f"chat template: cannot be compiled: {_one_line(error)}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables, which are plain JSON values.

        Raises:
            ModelFileError: The template reaches for what it may not have.
            RequestError: The template refuses the messages, or fails on them.
        """
        weight = _Weight()
        _weigh(dict(variables), weight.add)
        token = _budget.set(_Budget(FUEL + FUEL_PER_INPUT * weight.units))
        try:
            return self._template.render(dict(variables))
        except RequestError:
            raise
        except SecurityError as error:
            raise ModelFileError(f"the model's chat template was stopped: {_one_line(error)}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {_one_line(error)}"
            raise RequestError(f"the model's chat template fails on these messages: {reason}") from None
        finally:
            _budget.reset(token)


@dataclass
class _Weight:
    units: int = 0

    def add(self, units: int) -> None:
        self.units += units


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:300] + " …"
