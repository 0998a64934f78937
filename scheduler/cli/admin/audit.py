"""`prompt-scheduler admin audit`: whether all in Redis fits together."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler import admin
from scheduler.admin import PROBLEMS, AuditReport
from scheduler.cli.admin.common import AsJson
from scheduler.cli.output import print_json, print_table, remark, say, table
from scheduler.cli.session import Session, run, session

SHOWN = 50


def audit(
    ctx: typer.Context,
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what does not fit together in Redis.

    Jobs without a home, leases without jobs, dedup keys without owners, keys that never go. The queue may go
    on meanwhile. Exits with 1 if something was found and not mended.
    """
    report = run(_audit(session(ctx), repair=repair))
    left = sum(n for kind, n in report.counts.items() if not repair or kind == "unknown_key")
    if as_json:
        print_json(
            {
                "keys": report.keys,
                "jobs": report.jobs,
                "repaired": repair,
                "counts": report.counts,
                "problems": [{"kind": one.kind, "where": one.where} for one in report.problems],
            }
        )
    else:
        _show(report, repair=repair)
    if left:
        raise typer.Exit(1)


async def _audit(at: Session, *, repair: bool) -> AuditReport:
    async with at.client() as client:
        return await admin.audit(client.queue, repair=repair)


def _show(report: AuditReport, *, repair: bool) -> None:
    if not report.counts:
        say(f"All fits together: {report.jobs:,} jobs, {report.keys:,} keys.")
        return
    shown = table("found", "where", "", right="")
    for one in report.problems[:SHOWN]:
        meaning, mended = PROBLEMS[one.kind]
        shown.add_row(meaning, one.where, mended if repair else "")
    print_table(shown)
    found = sum(report.counts.values())
    if found > SHOWN:
        say(f"… and {found - SHOWN:,} more; see --json")
    if not repair:
        remark("Nothing was changed; --repair mends it.")
