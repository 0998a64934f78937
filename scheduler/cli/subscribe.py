"""`prompt-scheduler subscribe`: the events of a job."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import typer

from scheduler.cli.events import JsonLinesPrinter, event_text
from scheduler.cli.output import console
from scheduler.cli.session import Session, run, session
from scheduler.events import Done, Event


def subscribe(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(help="The job's id.", show_default=False)],
    *,
    after: Annotated[
        str | None,
        typer.Option(metavar="EVENT_ID", help="Show only the events after this one.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Show JSON, one event a line.")] = False,
) -> None:
    """Show the events of a job: past ones first, then new ones as they come.

    Ends with the job. Exits with 0 if the job is done, else with 1.
    """
    last = run(_subscribe(session(ctx), job_id, after, as_json=as_json))
    if not isinstance(last, Done):
        raise typer.Exit(1)


async def _subscribe(at: Session, job_id: str, after: str | None, *, as_json: bool) -> Event | None:
    event = None
    lines, shown = JsonLinesPrinter(), console()
    async with at.client() as client, aclosing(client.job(job_id).events(after=after)) as events:
        async for event in events:
            if as_json:
                lines.show(event)
            else:
                shown.print(event_text(event))
    return event
