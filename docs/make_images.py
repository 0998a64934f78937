"""Make the images in docs/images from real runs: the demo halfway through, and `admin top` on a busy queue.

Run it from a checkout: python docs/make_images.py [demo] [top]
"""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType

from scheduler import AsyncClient, PromptRequest
from scheduler.cli.admin.top import view as top_view
from scheduler.cli.admin.top.snapshot import take_snapshot
from scheduler.cli.admin.top.watch import Frame, Watch
from scheduler.cli.children import child
from scheduler.cli.demo import command, view
from scheduler.queue.inspection.workers import read_workers
from scheduler.redis_server.embedded import EmbeddedServer

IMAGES = Path(__file__).parent / "images"
DEMO_WIDTH = 80
TOP_WIDTH = 100
LOOKS = 40
TICK_S = 0.02

# Slow endpoints, one that nobody listens on, and a limit that holds a tenant's jobs.
WORKERS = """
when_full = "shed"
max_waiting = 2000
lease_s = 1
max_running = 64

[tenants.bulk]
requests_per_minute = 6

[routes.chat]
[[routes.chat.endpoints]]
backend = "echo"
max_in_flight = 24
reserved = 4
options = { delay_s = 0.2 }
[[routes.chat.endpoints]]
backend = "openai"
base_url = "http://127.0.0.1:9/v1"
max_in_flight = 16
breaker = { failures = 2, open_s = 30 }

[routes.code]
[[routes.code.endpoints]]
backend = "echo"
max_in_flight = 12
options = { delay_s = 0.3, fail_text = "forbidden" }

[routes.summarize]
[[routes.summarize.endpoints]]
backend = "echo"
max_in_flight = 8
options = { delay_s = 0.3 }
"""
LEVELS = {"chat": (9, 7, 5, 5, 5), "code": (7, 5, 5, 3), "summarize": (3, 1, 1, 1)}
BACKLOG = {"chat": 100, "code": 40, "summarize": 120}
A_SECOND = {"chat": 22, "code": 8, "summarize": 3}


def make_demo() -> RenderableType:
    """Run the demo, and return what it showed when 40 of 100 jobs were done."""
    drawn: list[tuple[int, RenderableType]] = []
    draw = view.draw

    def keep(snapshot: view.Snapshot) -> RenderableType:
        picture = draw(snapshot)
        drawn.append((len(snapshot.done), picture))
        return picture

    view.draw = keep
    unseen = Console(force_terminal=True, width=DEMO_WIDTH, file=io.StringIO())
    if not asyncio.run(command.perform(command.Show(), unseen)):
        raise SystemExit("the demo did not keep its promises; see `make demo`")
    last = drawn[-1][0]
    return next(picture for done, picture in drawn if done >= last * 0.4)


def make_top() -> RenderableType:
    """Keep a queue busy for a while, and return what `admin top` then shows."""
    return Group(*top_view.draw(asyncio.run(watch_busy_queue()), width=TOP_WIDTH))


async def watch_busy_queue() -> Frame:
    """Run two worker processes and senders for three lanes, and return the last of several frames."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer() as server:
        async with AsyncClient(server.url) as client, AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(worker(Path(folder), server.url))
            while len(await read_workers(client.queue)) < 2:  # noqa: ASYNC110  they say so in Redis alone
                await asyncio.sleep(TICK_S)
            await client.enqueue_many([request(lane) for lane, n in BACKLOG.items() for _ in range(n)])
            await client.enqueue_many([request("summarize", tenant="bulk") for _ in range(100)])
            await client.enqueue_many([request("chat", delay_s=600.0) for _ in range(12)])
            sending = asyncio.create_task(keep_sending(client))
            watch = Watch(await take_snapshot(client.queue), interval_s=1)
            for at in range(LOOKS):
                await asyncio.sleep(1)
                watch.add(await take_snapshot(client.queue))
                if at == LOOKS // 2:
                    await client.enqueue("Say the forbidden word.", model="code", priority=9)
            sending.cancel()
            return watch.frame


@asynccontextmanager
async def worker(folder: Path, url: str) -> AsyncIterator[None]:
    """Run a worker process while the context is open."""
    config = folder / "scheduler.toml"
    config.write_text(WORKERS, encoding="utf-8")
    environ = {"SCHEDULER_CONFIG": str(config), "SCHEDULER_REDIS_URL": url, "SCHEDULER_DRAIN_S": "0.1"}
    serve = (sys.executable, "-m", "arq", "scheduler.WorkerSettings")
    async with child("worker process", *serve, folder=folder, environ=environ):
        yield


def request(lane: str, *, repeats: bool = False, **fields: Any) -> PromptRequest:
    """A few words for a lane, at one of its priorities. `repeats`: they may be a duplicate."""
    words = f"{random.randrange(1500)} " + " ".join(["word"] * 12)
    key = {"dedup_key": words} if repeats else {}
    return PromptRequest.parse(
        prompt=words, model=lane, **{"priority": random.choice(LEVELS[lane]), **key, **fields}
    )


async def keep_sending(client: AsyncClient) -> None:
    """Send prompts at a varying rate until cancelled."""
    for tick in itertools.count():
        tide = 1 + 0.8 * math.sin(tick * TICK_S / 3)
        await client.enqueue_many(
            [
                request(lane, repeats=True)
                for lane, n in A_SECOND.items()
                if random.random() < n * TICK_S * tide
            ]
        )
        await asyncio.sleep(TICK_S)


MADE: Mapping[str, tuple[Callable[[], RenderableType], int, str]] = {
    "demo": (make_demo, DEMO_WIDTH, "make demo"),
    "top": (make_top, TOP_WIDTH, "prompt-scheduler admin top"),
}


def main() -> None:
    """Make the named images, or all of them."""
    wanted = sys.argv[1:] or list(MADE)
    if unknown := set(wanted) - set(MADE):
        raise SystemExit(f"no image {', '.join(sorted(unknown))}; there are: {', '.join(MADE)}")
    IMAGES.mkdir(exist_ok=True)
    for name in wanted:
        make, width, title = MADE[name]
        recorder = Console(record=True, width=width, file=io.StringIO())
        recorder.print(make())
        recorder.save_svg(str(IMAGES / f"{name}.svg"), title=title)


if __name__ == "__main__":
    main()
