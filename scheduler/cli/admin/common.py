"""Shared by the admin commands: options, the confirmation, and the text for a breaker."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, TypeAlias

import typer
from rich.text import Text

from scheduler.cli.output import age
from scheduler.printable import one_line
from scheduler.queue.reports import EndpointStatus

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Show JSON.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many.")]


def breaker_text(one: EndpointStatus) -> Text:
    """The breaker's state, or the count of each if worker processes disagree; and what else it waits for."""
    text = _states(one.breakers)
    if one.usable_in_s:
        text += f", unused for {age(one.usable_in_s)}"
    if one.permit_in_s:
        text += f", at its rate limit for {age(one.permit_in_s)}"
    waits = one.usable_in_s or one.permit_in_s
    style = "bold red" if set(one.breakers) != {"closed"} else "yellow" if waits else "green"
    return Text(one_line(text.replace("_", "-")), style)


def _states(states: Mapping[str, int]) -> str:
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{n} {state}" for state, n in states.items())


def is_interactive() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is deleted.

    Raises:
        typer.BadParameter: there is no terminal to ask at.
        typer.Abort: the answer was no.
        KeyboardInterrupt: the answer was Ctrl-C.
    """
    if yes:
        return
    if not is_interactive():
        raise typer.BadParameter(f"{question} There is no terminal to ask at: add --yes to go ahead")
    try:
        typer.confirm(one_line(question), abort=True, err=True)
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
