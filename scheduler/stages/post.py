"""The post stage: what happens to an answer on its way out, delta by delta."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from scheduler.settings import PostSettings
from scheduler.stages.base import PromptContext
from scheduler.stages.redacted_extra import redact_extra
from scheduler.stages.redaction import RedactFilter
from workers.base import Completed


class StopFilter:
    """Ends the answer before the first of the stop strings that comes to completion.

    Engines do this themselves; this catches the ones that do not. What may be the beginning of a stop string
    is held back. Once one was found, the rest is swallowed and `context.stopped` is set.
    """

    __slots__ = ("_context", "_first", "_held", "_stops")

    def __init__(self, stops: Sequence[str], context: PromptContext) -> None:
        self._stops = tuple(stops)
        self._first = re.compile("|".join({re.escape(stop[0]) for stop in stops}))
        self._context = context
        self._held = ""

    def feed(self, text: str) -> str:
        """Take some text; return what may go on now."""
        if self._context.stopped:
            return ""
        if not self._held and not self._first.search(text):
            return text
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            self._context.stopped = True
            return text[: min(ends)[1]]
        begins = min(_overlap(text, stop) for stop in self._stops)
        self._held = text[begins:]
        return text[:begins]

    def flush(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Where the longest suffix of the text begins that begins the stop string; its end when none does."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return at if at >= 0 else len(text)


class TrimFilter:
    """Drops white space at both ends of the answer: white space waits until more text comes."""

    __slots__ = ("_begun", "_held")

    def __init__(self) -> None:
        self._begun = False
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """Take some text; return what may go on now."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        body = text.rstrip()
        space = text[len(body) :]
        if not body:
            if space:
                self._held.append(space)
            return ""
        if self._held:
            body = "".join(self._held) + body
        self._held = [space] if space else []
        return body

    def flush(self) -> str:
        """Drop what was held back: it was at the end."""
        self._held = []
        return ""


_KEEPS_STOPS = (
    "include_stop_str_in_output",
    "no_stop_trim",
    "min_tokens",
    "min_new_tokens",
    "min_length",
    "echo",
    "echo_last",
    "return_full_text",
)
"""What tells an engine, true or above zero, that a stop string may stand in the answer.

The first two leave the one in that ended it (vLLM, SGLang), the next three pass over those that come too
early, and the last three repeat the prompt, which may have some.
"""


class PostStage:
    """Trims the answer, holds it to the request's stop strings, and redacts personal data.

    The work is done by filters that `open` puts in place before inference; `run` lets go of what they held
    back. Redaction covers the reasoning as well, but not the arguments of tool calls: they are code.
    """

    name: Final = "post"

    def __init__(self, settings: PostSettings) -> None:
        self._trim = settings.trim
        self._redact = tuple(settings.redact)

    def open(self, context: PromptContext) -> None:
        """Put this job's filters in place."""
        stops = _stops(context.params, context.request)
        if stops:
            context.filters.append(StopFilter(stops, context))
        if self._trim:
            context.filters.append(TrimFilter())
        if self._redact:
            context.filters.append(RedactFilter(self._redact))
            context.reasoning_filters.append(RedactFilter(self._redact))
            context.holds_extra = True

    async def run(self, context: PromptContext) -> None:
        """Give out what the filters held back, and say why the answer ended."""
        if context.filters or context.reasoning_filters:
            for choice in context.all_choices:
                choice.flush()
        if self._redact:
            redact_extra(context, self._redact)
        if context.stopped:
            completed = context.completed or Completed(member=0, finish_reason="stop")
            context.completed = completed._replace(finish_reason="stop")


def _stops(params: Mapping[str, Any], request: Mapping[str, Any]) -> Sequence[str]:
    """The stop strings to look for: none where the engine alone can tell which of them count."""
    stop = params.get("stop")
    if not stop:
        return ()
    asked = {**params, **(request.get("extra_body") or {})}
    if any(asked.get(name) for name in _KEEPS_STOPS):
        return ()
    return (stop,) if isinstance(stop, str) else stop
