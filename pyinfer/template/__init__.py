"""Runs a chat template of a model file, which nobody vouches for: Jinja in a sandbox with a budget.

Must not know tokens or models. `budget` meters, `operations` lists what may be called, `sandbox` puts both around
Jinja.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import meta
from jinja2.exceptions import SecurityError, TemplateSyntaxError

from pyinfer.errors import ModelFileError, RequestError
from pyinfer.template.budget import FUEL, FUEL_PER_INPUT, MOST_BITS, SECONDS, Budget, Refused, current, weigh
from pyinfer.template.operations import Rejected
from pyinfer.template.sandbox import Environment

__all__ = ["SECONDS", "Template"]

MOST_SOURCE = 1 << 17  # characters of a template; the largest in use have some 30,000


class Template:
    """A compiled chat template; may be rendered by several threads at once.

    Raises:
        ModelFileError: It is no valid template.
    """

    def __init__(self, source: str, what: str = "the model's chat template") -> None:
        """Compiles a template; `what` is what errors call it."""
        if len(source) > MOST_SOURCE:
            raise ModelFileError(
                f"chat template: expected at most {MOST_SOURCE} characters, found {len(source)}"
            )
        self.source = source
        self._what = what
        environment = Environment()
        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
            """Names that the template reads and does not make itself: `messages`, `tools` …"""
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
        try:
            weigh(dict(variables), weight.add)
        except Refused:
            raise RequestError(
                f"messages: expected whole numbers of at most {MOST_BITS} bits, found a larger one"
            ) from None
        token = current.set(Budget(FUEL + FUEL_PER_INPUT * weight.units))
        try:
            return self._template.render(dict(variables))
        except Rejected as error:
            raise RequestError(f"{self._what} refuses these messages: {_one_line(error)}") from None
        except SecurityError as error:
            raise ModelFileError(f"{self._what} was stopped: {_one_line(error)}") from None
        except Exception as error:
            reason = f"{type(error).__name__}: {_one_line(error)}"
            raise RequestError(f"{self._what} fails on these messages: {reason}") from None
        finally:
            current.reset(token)


@dataclass
class _Weight:
    units: int = 0

    def add(self, units: int) -> None:
        self.units += units


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:300] + " …"
