"""`prompt-scheduler doctor`: checks an installation."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from scheduler.admin import Finding, Level, examine
from scheduler.cli.output import console, print_json
from scheduler.cli.session import Session, run, session
from scheduler.errors import SchedulerError
from scheduler.printable import one_line

STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def doctor(
    ctx: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Show JSON.")] = False,
) -> None:
    """Check the settings, Redis, the endpoints and the workers.

    Exits with 2 if the settings are wrong, and with 1 if another check fails. Warnings are not failures.
    """
    findings = run(_doctor(session(ctx), show=not as_json))
    if as_json:
        print_json(
            [
                {
                    "level": one.level.value,
                    "subject": one.subject,
                    "message": one.message,
                    "fix": one.fix or None,
                }
                for one in findings
            ]
        )
    if failures := [one for one in findings if one.level is Level.FAIL]:
        raise typer.Exit(2 if any(one.mistake for one in failures) else 1)


async def _doctor(at: Session, *, show: bool) -> list[Finding]:
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        if show:
            console().print(_line(finding))

    try:
        settings, url = at.settings, at.server_url
        add(Finding(Level.OK, "settings", f"routes: {', '.join(settings.routes)}"))
        async for finding in examine(settings, url):
            add(finding)
    except SchedulerError as error:
        add(Finding.failure("redis" if findings else "settings", error))
    return findings


def _line(finding: Finding) -> Text:
    line = Text()
    line.append(f"{finding.level.value:<5}", STYLES[finding.level])
    line.append(f"{one_line(finding.subject)}: ", "bold")
    line.append(one_line(finding.message))
    if finding.fix:
        line.append(f" → {one_line(finding.fix)}", "cyan")
    return line
