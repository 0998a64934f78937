"""Output: JSON for programs, tables and lines for people.

Everything that a command prints goes through here and is cleaned here: text from engines, prompts, keys and
other users of Redis reaches a terminal neither as control sequences nor as rich's markup.
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
"""The last column of a table may wrap, down to this many characters."""
WIDE = 250
"""The width without a terminal: nothing is cut off in a pipe."""

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
"""A colour for each level, from 0 up."""


# Replacements of the same width, for terminals that lack these characters.
_SIMPLER = str.maketrans("…→▸·■█▓▒░▁▂▃▄▅▆▇━╸╺─│", "~>>.###=._.-:=+*----|")


def prepare_streams() -> None:
    """Make sure that the standard streams exist, and that they can write any character."""
    codecs.register_error("simpler", _simpler)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the parent process has closed it
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="simpler")


def _simpler(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIMPLER)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def let_go_of_streams() -> None:
    """Stop writing to streams that nobody reads or that are full, so that Python can end quietly."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class CleanConsole(Console):
    """A console that shows text as it is: no markup, no emoji codes, no control sequences.

    A string is shown as one line. A `Text` keeps its line feeds.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as a renderable. Cells of tables come through here before they are measured."""
        return super().render_str(one_line(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Clean the segments that are about to be written."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=paragraphs(segment.text))

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to the command line; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # Programs that do not know the size leave COLUMNS=0 behind.
    environ = {name: value for name, value in os.environ.items() if name not in SIZES or value.strip("0")}
    return CleanConsole(
        stderr=stderr, width=None if terminal else WIDE, soft_wrap=not terminal, _environ=environ
    )


def say(line: str) -> None:
    """Write one line to standard output."""
    typer.echo(one_line(line))


def remark(line: str) -> None:
    """Write one line to standard error. If that is closed, nothing is written; the exit code remains."""
    try:
        typer.echo(one_line(line), err=True)
    except OSError:
        let_go_of_streams()


def complain(message: str, *more: str) -> None:
    """Write an error to standard error, and below it lines with details."""
    remark(f"prompt-scheduler: {message}")
    for line in more:
        remark(f"    {line}")


def write_answer(text: str) -> None:
    """Write a piece of an answer to standard output, at once.

    A file or a pipe gets it unchanged, so that programs see exactly the engine's text.
    """
    sys.stdout.write(paragraphs(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Write one JSON document."""
    typer.echo(json_text(orjson.dumps(_plain(value), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)))


def print_json_line(value: Any) -> None:
    """Write one JSON document on a line of its own."""
    typer.echo(json_line(value))


def json_line(value: Any) -> bytes:
    """A value as one line of JSON Lines, without the line feed."""
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
    """A table with these columns. Those named in `right` are aligned to the right."""
    to_the_right = right.split()
    made = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in to_the_right else "left", no_wrap=column == "id")
    return made


def print_table(shown: Table) -> None:
    """Write a table. If the terminal is too narrow, each row becomes a paragraph, so nothing is cut off."""
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
        pairs = (_pair(name, _text(cell)) for name, cell in zip(names[1:], others, strict=True))
        out.print(Padding(Text("  ").join(pair for pair in pairs if pair), (0, 0, 0, 2)))


def _pair(name: str, value: Text) -> Text:
    return Text.assemble((f"{name} " if name else "", "dim"), value) if value.plain else Text()


def _text(cell: RenderableType, style: str = "") -> Text:
    return cell if isinstance(cell, Text) else Text(one_line(str(cell)), style)


def print_fields(rows: Iterable[tuple[str, Any]]) -> None:
    """Write names and values, one pair per line. Pairs without a value are left out."""
    given = [(name, value) for name, value in rows if value is not None]
    width = max(len(name) for name, _ in given)
    shown = console()
    for name, value in given:
        text = value if isinstance(value, Text) else Text(one_line(str(value)))
        shown.print(Text.assemble((f"{name:<{width}}  ", "bold"), text))


def state_text(state: JobState | None) -> Text:
    """A state in its colour."""
    return Text(state.value, STATE_STYLES.get(state, "")) if state else Text("gone", "dim")


def priority_text(priority: int) -> str:
    """A priority with its name, if it has one: `7 high`."""
    names = {int(one): one.name.lower() for one in Priority}
    return f"{priority} {names[priority]}" if priority in names else str(priority)


def age(seconds: float | None) -> str:
    """A duration in two digits: `4.2 s`, `12 min`, `3.5 h`."""
    if seconds is None:
        return "-"
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.0f} {name}" if value >= 10 else f"{value:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def moment(ms: int | None) -> str | None:
    """A time for people, in this machine's time zone."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
