"""Events as lines, for programs and for people."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
from pydantic import BaseModel
from rich.text import Text

from scheduler.cli.output import print_json_line, remark, write_answer
from scheduler.events import Delta, Done, Event, Retrying, Started
from scheduler.printable import one_line

STYLES = {
    "queued": "dim",
    "started": "cyan",
    "retrying": "yellow",
    "done": "green",
    "failed": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "shed": "yellow",
}


def event_fields(event: Event) -> dict[str, Any]:
    """The fields of an event as on the channel, without those that are not set."""
    fields: dict[str, Any] = {"id": event.id, "type": event.type}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, BaseModel):
            fields[field.name] = value.model_dump(mode="json", exclude_unset=True)
        elif not isinstance(event, Delta) or value:
            fields[field.name] = value
    return fields


def event_text(event: Event) -> Text:
    """An event as one line for people: its id, its type, its details."""
    line = Text(f"{one_line(event.id):>8}  ")
    line.append(f"{event.type:<9} ", STYLES.get(event.type, ""))
    return line.append(one_line(_details(event)))


def _details(event: Event) -> str:
    match event:
        case Started():
            return f"attempt {event.attempt} on {event.worker}"
        case Delta():
            return orjson.dumps(event.text or event.reasoning or event.tool_calls or event.extra).decode()
        case Retrying():
            return f"in {event.delay_s:g} s, after {event.error.code}: {event.error.message}"
        case Done():
            return done_details(event)
    return event_reason(event)


def done_details(event: Done) -> str:
    """The cost of a result: tokens and time."""
    result = event.result
    tokens = result.usage.output_tokens
    counted = "" if tokens is None else f"{tokens} {'token' if tokens == 1 else 'tokens'}, "
    return f"{counted}{result.finish_reason}, {result.timings.total_ms / 1000:.2f} s after the enqueue"


def event_reason(event: Event) -> str:
    """Why a job ended without a result; empty for other events."""
    error: Any = getattr(event, "error", None)
    return f"{error.code}: {error.message}" if error else getattr(event, "reason", "")


class AnswerPrinter:
    """Shows an answer on standard output as it comes. If an attempt fails, its text is marked as void."""

    def __init__(self) -> None:
        self._in_line = False  # whether the last line is not ended

    def show(self, event: Event) -> None:
        """Take the next event of the job."""
        if isinstance(event, Delta) and event.text and event.index == 0:
            write_answer(event.text)
            self._in_line = True
        elif isinstance(event, Retrying):
            self._end_line()
            remark(f"[{event.error.message}; the answer starts again]")
        elif isinstance(event, Done):
            write_answer("\n" if self._in_line else event.result.text + "\n")
        elif event.terminal:
            self._end_line()

    def _end_line(self) -> None:
        if self._in_line:
            write_answer("\n")
            self._in_line = False


class JsonLinesPrinter:
    """Shows events on standard output, one JSON object a line."""

    def show(self, event: Event) -> None:
        """Take the next event of the job."""
        print_json_line(event_fields(event))
