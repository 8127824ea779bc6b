"""Jinja's immutable sandbox with meters: filters, methods and globals are those on the lists of `operations`.

Everything else is refused by name. Must not know messages. `range` stops at 100,000 as Jinja's sandbox has it; what
would be large is paid for before it is made, so no value outgrows the fuel.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pyinfer.template import operations
from pyinfer.template.budget import Refused, concat, counted, spend, text_of, weighed

_CHECK = "weighed value"  # not a word of the language; `map` can name it all the same, which does no harm
_LOOP = "counted loop"
_JOIN = "joined text"


class _Generation(Extension):
    """`{% generation %}` marks what the model says, for training; here it only encloses."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Meter(NodeTransformer):
    """Puts the meters into the syntax tree: where values are made and compared, and where loops turn."""

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

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _CHECK)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _CHECK)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.args:  # those that compare
            node.node = _filtered(node.node, _CHECK)
            node.args = [_filtered(argument, _CHECK) for argument in node.args]
        return node

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _CHECK)

    visit_List = visit_Dict = _literal

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _CHECK) if node.ctx == "load" else node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox with meters."""

    intercepted_binops = frozenset(operations.OPERATORS)

    def __init__(self) -> None:
        extensions = [loopcontrols, _Generation]
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=text_of, extensions=extensions
        )
        own = {**operations.OWN_FILTERS, _CHECK: lambda value: value, _JOIN: concat}
        allowed = {name: self.filters[name] for name in operations.FILTERS} | own
        self.filters = {name: operations.paid(function) for name, function in allowed.items()}
        self.filters[_LOOP] = counted
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals.update(operations.GLOBALS)
        self.binop_table.update(operations.OPERATORS)

    concat = staticmethod(concat)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Meter().visit(tree)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only what is on a list; attributes of namespaces and loops are the template's own."""
        if isinstance(obj, str):
            return attr in operations.STR_METHODS
        if isinstance(obj, Mapping):
            return attr in operations.DICT_METHODS
        if isinstance(obj, (list, tuple)):
            return attr in operations.LIST_METHODS
        return isinstance(obj, (Namespace, LoopContext)) and not attr.startswith("_")

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Says what was reached for, at once."""
        raise Refused(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is no exception to the list of methods."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls what the template may call, and weighs what comes back."""
        spend(4)
        if isinstance(obj, (types.BuiltinMethodType, types.MethodType)) and isinstance(obj.__self__, str):
            own = operations.OWN_METHODS.get(obj.__name__)
            obj = functools.partial(own, str(obj.__self__)) if own else obj
        if isinstance(obj, LoopContext) and args:
            args = (counted(args[0]), *args[1:])
        return weighed(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that may make large values."""
        return weighed(super().call_binop(context, operator, left, right))
