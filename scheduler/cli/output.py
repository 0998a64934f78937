"""How things are shown: JSON for programs, tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson
import typer
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler.model import JobState, Priority

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


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else WIDE, highlight=False, soft_wrap=not terminal)


def print_json(value: Any) -> None:
    """One JSON document."""
    typer.echo(orjson.dumps(_plain(value), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))


def json_line(value: Any) -> bytes:
    """One line of JSON Lines, without its end."""
    return orjson.dumps(_plain(value), option=orjson.OPT_NON_STR_KEYS)


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


def print_fields(rows: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one below the other; those without a value are left out."""
    given = [(name, value) for name, value in rows if value is not None]
    width = max(len(name) for name, _ in given)
    shown = console()
    for name, value in given:
        said = value if isinstance(value, Text) else Text(str(value))
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
