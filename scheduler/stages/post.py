"""The post stage: trims, stops and redacts an answer while it streams."""

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
    """Ends the answer before the first stop string that is complete.

    Most engines do this themselves; this covers those that do not. Text that may begin a stop string is held
    back. Once one is found, `context.stopped` is set and the rest is dropped.
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
    """The start of the longest suffix that begins the stop string, or the text's length if none does."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return at if at >= 0 else len(text)


class TrimFilter:
    """Drops white space at both ends of the answer. White space is held back until more text follows."""

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
        """Drop the white space held back: it was at the end."""
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
"""Parameters that, if true or above zero, let the answer contain a stop string.

The first two keep the one that ended the answer (vLLM, SGLang), the next three ignore those that come too
early, and the last three repeat the prompt, which may contain some.
"""


class PostStage:
    """Trims the answer, applies the request's stop strings, and redacts personal data.

    The filters that `open` adds before inference do the work; `run` passes on what they held back. Redaction
    covers the reasoning as well, but not the arguments of tool calls: they are code.
    """

    name: Final = "post"

    def __init__(self, settings: PostSettings) -> None:
        self._trim = settings.trim
        self._redact = tuple(settings.redact)

    def open(self, context: PromptContext) -> None:
        """Add this job's filters."""
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
        """Pass on what the filters held back, and set why the answer ended."""
        if context.filters or context.reasoning_filters:
            for choice in context.all_choices:
                choice.flush()
        if self._redact:
            redact_extra(context, self._redact)
        if context.stopped:
            completed = context.completed or Completed(member=0, finish_reason="stop")
            context.completed = completed._replace(finish_reason="stop")


def _stops(params: Mapping[str, Any], request: Mapping[str, Any]) -> Sequence[str]:
    """The stop strings to look for: none if only the engine can tell which of them count."""
    stop = params.get("stop")
    if not stop:
        return ()
    asked = {**params, **(request.get("extra_body") or {})}
    if any(asked.get(name) for name in _KEEPS_STOPS):
        return ()
    return (stop,) if isinstance(stop, str) else stop
