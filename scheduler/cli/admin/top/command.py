"""Takes snapshots of a queue, and shows them: on the whole terminal, as lines, or as JSON."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console, Group

from scheduler.cli.admin.common import AsJson
from scheduler.cli.admin.top.screen import Screen
from scheduler.cli.admin.top.snapshot import take_snapshot
from scheduler.cli.admin.top.view import draw, summary
from scheduler.cli.admin.top.watch import Watch
from scheduler.cli.arguments import parse_duration
from scheduler.cli.output import console, print_json, print_json_line
from scheduler.cli.session import Session, run, session
from scheduler.client import AsyncClient
from scheduler.redis_server.errors import passes, translate

SHORTEST_S = 0.1
LONGEST_S = 86_400.0
NO_ANSWER_S = 5.0
"""The time limit of a snapshot. Without it, a dead connection would be noticed much later."""


def top(
    ctx: typer.Context,
    *,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            "-d",
            parser=parse_duration,
            metavar="DURATION",
            help="Time between snapshots.",
            show_default="1s",
        ),
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one snapshot and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch the queue at work.

    Shows lanes, endpoints, worker processes and dead letters. q quits; p or space freezes the picture.
    Without a terminal it prints one line per snapshot, with --json one document. --once takes two snapshots,
    an interval apart, because rates need two.
    """
    if not SHORTEST_S <= interval <= LONGEST_S:
        raise typer.BadParameter("give 100ms to 1d", param_hint="--interval")
    run(_top(session(ctx), interval_s=interval, once=once, as_json=as_json))


async def _top(at: Session, *, interval_s: float, once: bool, as_json: bool) -> None:
    shown = console()
    async with at.client() as client:
        sampler = _Sampler(client)
        watch = Watch(await take_snapshot(client.queue), interval_s=interval_s)
        if once:
            await asyncio.sleep(interval_s)
            watch.add(await take_snapshot(client.queue))
            _show_once(watch, shown, as_json=as_json)
        elif shown.is_terminal and not shown.is_dumb_terminal and not as_json:
            await _show_live(watch, sampler, shown)
        else:
            await _print_all(watch, sampler, shown, as_json=as_json)


class _Sampler:
    """Takes snapshots of a client's queue. Copes with Redis being away."""

    def __init__(self, client: AsyncClient) -> None:
        self._queue = client.queue
        self._url = client.redis_url

    async def sample(self, watch: Watch) -> None:
        """Add a snapshot to the watch, or note that Redis is away.

        Raises:
            redis.exceptions.RedisError: an error that does not pass, such as a missing permission.
        """
        try:
            async with asyncio.timeout(NO_ANSWER_S):
                watch.add(await take_snapshot(self._queue))
        except (RedisError, OSError) as error:
            if not passes(error):
                raise
            watch.miss(str(translate(error, self._url)))


def _show_once(watch: Watch, shown: Console, *, as_json: bool) -> None:
    if as_json:
        print_json(watch.frame.document())
        return
    for line in draw(watch.frame, width=shown.width):
        if not shown.is_terminal:
            line.rstrip()
        shown.print(line)


async def _print_all(watch: Watch, sampler: _Sampler, shown: Console, *, as_json: bool) -> None:
    """Print a line per snapshot, except for the first, which has no rates. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(watch.frame.interval_s)
        await sampler.sample(watch)
        if as_json:
            print_json_line(watch.frame.document())
        else:
            shown.print(summary(watch.frame))


async def _show_live(watch: Watch, sampler: _Sampler, shown: Console) -> None:
    """Show the picture until the user quits. Keys work while a snapshot is being taken."""
    left = asyncio.Event()

    def picture(width: int, height: int) -> Group:
        return Group(*draw(watch.frame, width=width, height=height, keys=sys.stdin.isatty()))

    def freeze() -> None:
        watch.freeze()
        screen.redraw()

    screen = Screen(shown, picture, {"q": left.set, "p": freeze, " ": freeze})
    with screen:
        tasks = [
            asyncio.create_task(_keep_sampling(watch, sampler, screen)),
            asyncio.create_task(left.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_sampling(watch: Watch, sampler: _Sampler, screen: Screen) -> None:
    while True:
        await asyncio.sleep(watch.frame.interval_s)
        if not watch.frame.frozen:
            await sampler.sample(watch)
            screen.redraw()
