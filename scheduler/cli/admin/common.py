"""Options and a question that the admin commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Show JSON.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed.

    Raises:
        typer.Abort: the answer was no, or there was nobody to ask.
    """
    if not yes:
        typer.confirm(question, abort=True, err=True)
