"""Prompt templates in Jinja2's sandbox. Needs `jinja2` (the extra `templates`), so imported only for one.

Templates come from the configuration, but what they are filled with comes from users. The sandbox keeps them
from Python's insides, and `template_limits` from eating memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from traceback import walk_tb
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError

from scheduler.errors import ConfigError
from scheduler.stages.template_limits import MAX_RENDERED_CHARS, CountingEnvironment


class PromptTemplate:
    """A template, compiled once. Names that are not defined are errors, and nothing is escaped.

    Raises:
        ConfigError: `setting` has a syntax error; says in which line.
    """

    def __init__(self, source: str, *, setting: str) -> None:
        self._setting = setting
        self._environment = CountingEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{setting}: line {error.lineno}: {error.message}") from None

    def render(self, variables: Mapping[str, Any]) -> str:
        """Fill the template in.

        Raises:
            ConfigError: it uses what is not there, fails, or says too much.
        """
        self._environment.start()
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
