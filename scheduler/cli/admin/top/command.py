"""Looks at a queue again and again, and shows it: on the whole terminal, a line a look, or as JSON."""

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
"""How long to wait for a look: a server that has gone without a word may be noticed much later."""


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
            help="Time between two looks.",
            show_default="1s",
        ),
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one picture and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch the queue at work.

    Shows lanes, endpoints, worker processes and dead letters. q leaves, p or space holds the picture. Without
    a terminal it shows a line a look, with --json a document a look. --once looks twice, an interval apart,
    so that it knows the rates.
    """
    if not SHORTEST_S <= interval <= LONGEST_S:
        raise typer.BadParameter("give 100ms to 1d", param_hint="--interval")
    run(_top(session(ctx), interval_s=interval, once=once, as_json=as_json))


async def _top(at: Session, *, interval_s: float, once: bool, as_json: bool) -> None:
    shown = console()
    async with at.client() as client:
        eye = _Eye(client)
        watch = Watch(await take_snapshot(client.queue), interval_s=interval_s)
        if once:
            await asyncio.sleep(interval_s)
            watch.see(await take_snapshot(client.queue))
            _show_once(watch, shown, as_json=as_json)
        elif shown.is_terminal and not shown.is_dumb_terminal and not as_json:
            await _show_live(watch, eye, shown)
        else:
            await _tell(watch, eye, shown, as_json=as_json)


class _Eye:
    """Looks at the queue of a client, and bears it when Redis is away."""

    def __init__(self, client: AsyncClient) -> None:
        self._queue = client.queue
        self._url = client.redis_url

    async def look_again(self, watch: Watch) -> None:
        """Take a further look.

        Raises:
            redis.exceptions.RedisError: a trouble that does not pass, such as a right that is missing.
        """
        try:
            async with asyncio.timeout(NO_ANSWER_S):
                watch.see(await take_snapshot(self._queue))
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


async def _tell(watch: Watch, eye: _Eye, shown: Console, *, as_json: bool) -> None:
    """A line a look; the first look is not told, as it knows no rates. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(watch.frame.interval_s)
        await eye.look_again(watch)
        if as_json:
            print_json_line(watch.frame.document())
        else:
            shown.print(summary(watch.frame))


async def _show_live(watch: Watch, eye: _Eye, shown: Console) -> None:
    """The picture, until somebody leaves it. Keys are heard while a look takes its time."""
    left = asyncio.Event()

    def picture(width: int, height: int) -> Group:
        return Group(*draw(watch.frame, width=width, height=height, keys=sys.stdin.isatty()))

    def hold() -> None:
        watch.freeze()
        screen.redraw()

    screen = Screen(shown, picture, {"q": left.set, "p": hold, " ": hold})
    with screen:
        tasks = [asyncio.create_task(_look_on(watch, eye, screen)), asyncio.create_task(left.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _look_on(watch: Watch, eye: _Eye, screen: Screen) -> None:
    while True:
        await asyncio.sleep(watch.frame.interval_s)
        if not watch.frame.frozen:
            await eye.look_again(watch)
            screen.redraw()
