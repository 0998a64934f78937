"""`prompt-scheduler admin audit`: finds and repairs inconsistent data in Redis."""

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
    repair: Annotated[bool, typer.Option("--repair", help="Repair the problems.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find inconsistent data in Redis.

    Jobs that are in no list, leases without jobs, dedup keys without owners, keys that never expire. The
    queue may be in use meanwhile. Exits with 1 if there are problems that were not repaired.
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
        say(f"No problems: {report.jobs:,} jobs, {report.keys:,} keys.")
        return
    shown = table("found", "where", "", right="")
    for one in report.problems[:SHOWN]:
        meaning, remedy = PROBLEMS[one.kind]
        shown.add_row(meaning, one.where, remedy if repair else "")
    print_table(shown)
    found = sum(report.counts.values())
    if found > SHOWN:
        say(f"… and {found - SHOWN:,} more; see --json")
    if not repair:
        remark("Nothing was changed; --repair fixes these.")
