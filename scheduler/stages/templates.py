"""Prompt templates in Jinja2's sandbox. Needs `jinja2` (the extra `templates`), so imported only for one.

Templates come from the configuration, but what they are filled with comes from users. The sandbox keeps them
from Python's insides; here is what keeps them from eating time and memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from traceback import walk_tb
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from scheduler.errors import ConfigError

MAX_RENDERED_CHARS = 2_000_000
MAX_RANGE_ITEMS = 100_000
_MAX_EXPONENT = 1_000


class _Ranges:
    """`range` for templates: all ranges of one rendering share `MAX_RANGE_ITEMS`, nested ones as well."""

    def __init__(self) -> None:
        self.left = MAX_RANGE_ITEMS

    def __call__(self, *bounds: int) -> range:
        items = range(*bounds)
        self.left -= len(items)
        if self.left < 0:
            raise OverflowError(f"its ranges have more than {MAX_RANGE_ITEMS:,} items in all")
        return items


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int) and abs(right) > _MAX_EXPONENT:
            raise OverflowError(f"it raises to the power of {right:,}")
        if operator == "*" and _repeated_length(left, right) > MAX_RENDERED_CHARS:
            raise OverflowError(f"it repeats something to more than {MAX_RENDERED_CHARS:,} items")
        return super().call_binop(context, operator, left, right)


def _repeated_length(left: Any, right: Any) -> int:
    if isinstance(left, int) and not isinstance(right, int):
        left, right = right, left
    return len(left) * right if isinstance(left, str | list | tuple) and isinstance(right, int) else 0


class PromptTemplate:
    """A template, compiled once. Names that are not defined are errors, and nothing is escaped.

    Raises:
        ConfigError: `setting` has a syntax error; says in which line.
    """

    def __init__(self, source: str, *, setting: str) -> None:
        self._setting = setting
        self._ranges = _Ranges()
        environment = _Environment(undefined=StrictUndefined, autoescape=False)
        environment.globals["range"] = self._ranges
        del environment.globals["lipsum"]  # a prompt needs none, and its length is unbounded
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{setting}: line {error.lineno}: {error.message}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Fill the template in.

        Raises:
            ConfigError: it uses what is not there, fails, or says too much.
        """
        self._ranges.left = MAX_RANGE_ITEMS
        try:
            return _bounded(self._template.generate(variables))
        except Exception as error:
            raise ConfigError(f"{self._setting}: {_line_of(error)}{_reason(error)}") from None


def _bounded(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_RENDERED_CHARS:
            raise OverflowError(f"its output has more than {MAX_RENDERED_CHARS:,} characters")
        kept.append(piece)
    return "".join(kept)


def _line_of(error: Exception) -> str:
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    return f"line {lines[-1]}: " if lines else ""


def _reason(error: Exception) -> str:
    # What Python says of a value may hold the value; what Jinja2 says holds names.
    if isinstance(error, TemplateError):
        return error.message or type(error).__name__
    return str(error) if isinstance(error, OverflowError) else f"it fails with {type(error).__name__}"
