"""Options, a question and a way to show endpoints that the admin commands share."""

from __future__ import annotations

import sys
from typing import Annotated, TypeAlias

import typer
from rich.text import Text

from scheduler.cli.output import age
from scheduler.printable import one_line
from scheduler.queue.reports import EndpointStatus

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Show JSON.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]


def breaker_text(one: EndpointStatus) -> Text:
    """Its state where all worker processes agree, else in how many it is what; and what else it waits for."""
    states = one.breakers
    said = (
        next(iter(states)) if len(states) == 1 else ", ".join(f"{n} {state}" for state, n in states.items())
    )
    waits = one.usable_in_s or one.permit_in_s
    style = "bold red" if set(states) != {"closed"} else "yellow" if waits else "green"
    if one.usable_in_s:
        said += f", left alone {age(one.usable_in_s)}"
    if one.permit_in_s:
        said += f", at its rate limit {age(one.permit_in_s)}"
    return Text(one_line(said.replace("_", "-")), style)


def somebody_can_answer() -> bool:
    """Whether a person is at the other end of standard input."""
    return sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed.

    Raises:
        typer.BadParameter: there is nobody to ask.
        typer.Abort: the answer was no.
        KeyboardInterrupt: the answer was Ctrl-C.
    """
    if yes:
        return
    if not somebody_can_answer():
        raise typer.BadParameter(f"{question} There is no terminal to ask at: give --yes to go ahead")
    try:
        typer.confirm(one_line(question), abort=True, err=True)
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
