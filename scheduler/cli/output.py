"""How things are shown: JSON for programs, tables and lines for people.

Everything that a command prints goes through here, and is cleaned here: text from engines, prompts, keys and
other users of Redis reaches a terminal neither as a command nor as rich's markup.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import orjson
import typer
from pydantic import BaseModel
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from scheduler.model import JobState, Priority
from scheduler.printable import json_text, one_line, paragraphs

SIZES = ("COLUMNS", "LINES")
LEAST_LAST_COLUMN = 20
"""The last column of a table may wrap, down to so many characters."""
WIDE = 250
"""Columns where there is no terminal: nothing is to be cut off in a pipe."""

STATE_STYLES = {
    JobState.RUNNING: "cyan",
    JobState.HELD: "magenta",
    JobState.DONE: "green",
    JobState.FAILED: "red",
    JobState.EXPIRED: "yellow",
    JobState.SHED: "yellow",
    JobState.CANCELLED: "dim",
}

PRIORITY_STYLES = ("dim", "dim", "cyan", "cyan", "green", "green", "yellow", "yellow", "bold red", "bold red")
"""A colour a level, from 0 up."""


# For a terminal that does not know ours: signs of the same width.
_SIMPLER = str.maketrans("…→▸·■█▓▒░▁▂▃▄▅▆▇━╸╺─│", "~>>.###=._.-:=+*----|")


def prepare_streams() -> None:
    """Have the standard streams there, and never at a loss for a character."""
    codecs.register_error("simpler", _simpler)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="simpler")


def _simpler(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIMPLER)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def let_go_of_streams() -> None:
    """Write no more where nobody reads, or nothing fits, also when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class CleanConsole(Console):
    """A console that takes text as text: no markup, no emoji codes, no commands to the terminal.

    A string is one line. Within a `Text` line feeds stay.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as a renderable: also that of a table's cell, before its width is taken."""
        return super().render_str(one_line(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is about to be written, piece by piece."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=paragraphs(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the command line; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # COLUMNS=0 is what some programs leave behind that know no size.
    environ = {name: value for name, value in os.environ.items() if name not in SIZES or value.strip("0")}
    return CleanConsole(
        stderr=stderr, width=None if terminal else WIDE, soft_wrap=not terminal, _environ=environ
    )


def say(line: str) -> None:
    """One line on standard output."""
    typer.echo(one_line(line))


def remark(line: str) -> None:
    """One line on standard error. Where nobody reads that, nothing is said, and the exit code stands."""
    try:
        typer.echo(one_line(line), err=True)
    except OSError:
        let_go_of_streams()


def complain(message: str, *more: str) -> None:
    """Say what went wrong: one line on standard error, and below it what somebody else has said about it."""
    remark(f"prompt-scheduler: {message}")
    for line in more:
        remark(f"    {line}")


def write_answer(text: str) -> None:
    """A piece of an answer on standard output, at once.

    As it is where that is a file or a pipe, so that programs get what the engine said.
    """
    sys.stdout.write(paragraphs(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One JSON document."""
    typer.echo(json_text(orjson.dumps(_plain(value), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own."""
    typer.echo(json_line(value))


def json_line(value: Any) -> bytes:
    """One line of JSON Lines, without its end."""
    return json_text(orjson.dumps(_plain(value), option=orjson.OPT_NON_STR_KEYS))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def table(*columns: str, right: str = "") -> Table:
    """A table with these columns; those that `right` names are aligned to the right."""
    to_the_right = right.split()
    made = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in to_the_right else "left", no_wrap=column == "id")
    return made


def print_table(shown: Table) -> None:
    """A table. Where the terminal is too narrow, each row becomes a paragraph, and nothing is cut off."""
    out = console()
    options = out.options.update_width(WIDE)
    last = max(Measurement.get(out, options, cell).maximum for cell in ("", *shown.columns[-1].cells))
    wraps = max(0, last - LEAST_LAST_COLUMN)
    if not out.is_terminal or Measurement.get(out, options, shown).maximum - wraps <= out.width:
        out.print(shown)
        return
    names = [str(column.header) for column in shown.columns]
    for first, *others in zip(*(column.cells for column in shown.columns), strict=True):
        out.print(_text(first, "bold"))
        said = (_pair(name, _text(cell)) for name, cell in zip(names[1:], others, strict=True))
        out.print(Padding(Text("  ").join(pair for pair in said if pair), (0, 0, 0, 2)))


def _pair(name: str, value: Text) -> Text:
    return Text.assemble((f"{name} " if name else "", "dim"), value) if value.plain else Text()


def _text(cell: RenderableType, style: str = "") -> Text:
    return cell if isinstance(cell, Text) else Text(one_line(str(cell)), style)


def print_fields(rows: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one below the other; those without a value are left out."""
    given = [(name, value) for name, value in rows if value is not None]
    width = max(len(name) for name, _ in given)
    shown = console()
    for name, value in given:
        said = value if isinstance(value, Text) else Text(one_line(str(value)))
        shown.print(Text.assemble((f"{name:<{width}}  ", "bold"), said))


def state_text(state: JobState | None) -> Text:
    """A state in its colour."""
    return Text(state.value, STATE_STYLES.get(state, "")) if state else Text("gone", "dim")


def priority_text(priority: int) -> str:
    """A priority with its name, where it has one: `7 high`."""
    names = {int(one): one.name.lower() for one in Priority}
    return f"{priority} {names[priority]}" if priority in names else str(priority)


def age(seconds: float | None) -> str:
    """A duration in two figures: `4.2 s`, `12 min`, `3.5 h`."""
    if seconds is None:
        return "-"
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 10 else f"{value:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def moment(ms: int | None) -> str | None:
    """A time for people, in this machine's zone."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
