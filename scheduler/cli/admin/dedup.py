"""`prompt-scheduler admin dedup`: dedup keys in use."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from scheduler.admin.dedup import release_dedup_key
from scheduler.cli.admin.common import AsJson, Limit, Yes, confirm
from scheduler.cli.output import (
    age,
    complain,
    print_fields,
    print_json,
    print_table,
    say,
    state_text,
    table,
)
from scheduler.cli.session import Session, run, session
from scheduler.model import DEFAULT_TENANT
from scheduler.queue.inspection.dedup_keys import list_dedup_keys, read_dedup_key
from scheduler.queue.reports import DedupKey

KeyName: TypeAlias = Annotated[
    str, typer.Argument(metavar="KEY", help="The key as its user gave it, or its hash.", show_default=False)
]
Tenant: TypeAlias = Annotated[str, typer.Option("--tenant", help="Tenant that the key belongs to.")]

app = typer.Typer(help="Dedup keys in use.", no_args_is_help=True)


@app.command("list")
def list_keys(
    ctx: typer.Context,
    *,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dedup keys in use.

    Walks all keys of the Redis server, some at a time.
    """
    owned = run(_dedup_keys(session(ctx), tenant, limit))
    if as_json:
        print_json(owned)
        return
    shown = table(
        "tenant", "hash", "job", "state", "mode", "joined", "hits", "left", right="joined hits left"
    )
    for one in owned:
        shown.add_row(
            one.tenant,
            one.hash,
            one.job_id,
            state_text(one.state),
            one.mode.value if one.mode else "",
            str(one.joined),
            str(one.hits),
            age(one.expires_in_s),
        )
    print_table(shown)


async def _dedup_keys(at: Session, tenant: str | None, limit: int) -> list[DedupKey]:
    async with at.client() as client:
        return await list_dedup_keys(client.queue, tenant=tenant, limit=limit)


@app.command("show")
def show(
    ctx: typer.Context, key: KeyName, *, tenant: Tenant = DEFAULT_TENANT, as_json: AsJson = False
) -> None:
    """Show which job owns a dedup key; exit with 1 if none does."""
    owned = run(_dedup(session(ctx), key, tenant))
    if as_json:
        print_json(owned)
    elif owned is not None:
        print_fields(
            [
                ("tenant", owned.tenant),
                ("hash", owned.hash),
                ("job", owned.job_id),
                ("state", state_text(owned.state)),
                ("mode", owned.mode.value if owned.mode else None),
                ("joined", f"{owned.joined} callers"),
                ("hits", f"{owned.hits} callers reused its answer"),
                ("left", age(owned.expires_in_s) if owned.expires_in_s else "until the job ends"),
            ]
        )
    if owned is None:
        _say_free(key, tenant)


async def _dedup(at: Session, key: str, tenant: str) -> DedupKey | None:
    async with at.client() as client:
        return await read_dedup_key(client.queue, key, tenant=tenant)


@app.command("release")
def release(
    ctx: typer.Context,
    key: KeyName,
    *,
    tenant: Tenant = DEFAULT_TENANT,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Release a dedup key: the next prompt with it is new work.

    The job that owned it is unaffected.
    """
    at = session(ctx)
    owned = run(_dedup(at, key, tenant))
    if owned is not None:
        confirm(f"Release the key of job {owned.job_id}?", yes=yes)
        owned = run(_release(at, key, tenant))
    if as_json:
        print_json({"released": owned is not None, "job_id": owned.job_id if owned else None})
    elif owned is not None:
        ended = owned.state is None or owned.state.ended
        say(f"released; job {owned.job_id} {'is not reused any more' if ended else 'is unaffected'}")
    if owned is None:
        _say_free(key, tenant)


async def _release(at: Session, key: str, tenant: str) -> DedupKey | None:
    async with at.client() as client:
        return await release_dedup_key(client.queue, key, tenant=tenant)


def _say_free(key: str, tenant: str) -> None:
    complain(f"dedup key {key!r} of tenant {tenant!r} is free")
    raise typer.Exit(1)
