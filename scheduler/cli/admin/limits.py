"""`prompt-scheduler admin tenants` and `admin endpoints`: reset rate limits."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler import admin
from scheduler.cli.admin.common import AsJson
from scheduler.cli.output import print_json, say
from scheduler.cli.session import Session, run, session

tenants = typer.Typer(help="Tenants and their rate limits.", no_args_is_help=True)
endpoints = typer.Typer(help="Endpoints and their rate limits.", no_args_is_help=True)


@tenants.command("forgive")
def forgive_tenant(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Reset a tenant's use of its rate limits. A debt of tokens is forgiven."""
    had_used = run(_tenant(session(ctx), tenant))
    _tell("tenant", tenant, had_used, as_json=as_json)


@endpoints.command("forgive")
def forgive_endpoint(
    ctx: typer.Context,
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="Such as chat.0.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Reset an endpoint's use of its rate limits, and end a pause that it asked for."""
    had_used = run(_endpoint(session(ctx), endpoint))
    _tell("endpoint", endpoint, had_used, as_json=as_json)


def _tell(kind: str, name: str, had_used: bool, *, as_json: bool) -> None:
    if as_json:
        print_json({"forgiven": name, "had_used": had_used})
    elif had_used:
        say(f"{kind} {name}: its limits are reset")
    else:
        say(f"{kind} {name}: it had used nothing of its limits")


async def _tenant(at: Session, tenant: str) -> bool:
    async with at.client() as client:
        return await admin.forgive_tenant(client.queue, tenant)


async def _endpoint(at: Session, endpoint: str) -> bool:
    async with at.client() as client:
        return await admin.forgive_endpoint(client.queue, endpoint)
