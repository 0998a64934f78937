"""What the measurements ask of a peer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from redis.asyncio import Redis

from benchmarks.harness import GIVE_UP_S, Bench, CaseFailed, processes

FOLDER = Path(__file__).parent

How = Literal["one", "hundred", "many"]


@dataclass(frozen=True, slots=True)
class Produced:
    """What a producer says of its own enqueuing: seconds and CPU seconds, without start and connect."""

    elapsed_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Peer:
    """Another queue: its commands in its own environment, and how to see from Redis what it has done.

    `folder` has its modules, and `variables` are environment variables of its own.

    `jobs` is how many a full run drains; `count_done(redis, total)` asks Redis only for counts, since it is
    polled. The server is empty before a run.
    """

    name: str
    folder: Path
    jobs: int
    settings: str
    worker: tuple[str, ...]
    producer: tuple[str, ...]
    node_modules: Path | None
    count_done: Callable[[Redis, int], Awaitable[int]]
    variables: Mapping[str, str] = field(default_factory=dict)

    def environ(self, bench: Bench) -> Mapping[str, str]:
        """The environment variables of its processes."""
        modules = {"NODE_PATH": str(self.node_modules)} if self.node_modules else {}
        return {
            "PEER_REDIS_URL": bench.url,
            "PYTHONPATH": str(FOLDER / "driver"),
            **modules,
            **self.variables,
        }

    async def done(self, redis: Redis, total: int) -> int:
        """How many of `total` jobs have ended, with their results kept."""
        return await self.count_done(redis, total)

    async def enqueue(self, bench: Bench, how: How, n: int) -> float:
        """Enqueue `n` jobs in a process of their own; the seconds that it took."""
        return (await self.produce(bench, how, n)).elapsed_s

    async def produce(self, bench: Bench, how: How, n: int) -> Produced:
        """Enqueue `n` jobs in a process of their own; what it says of it."""
        return Produced(**await self._ask_producer(bench, how, n))

    async def latency_ms(self, bench: Bench, n: int) -> list[float]:
        """Milliseconds from enqueue to result in the producer's hands, one job at a time.

        Starts a worker process for it, and ends it.
        """
        with processes(self.worker, environ=self.environ(bench), cwd=self.folder):
            times: list[float] = (await self._ask_producer(bench, "latency", n))["latency_ms"]
        return times

    async def _ask_producer(self, bench: Bench, how: str, n: int) -> dict[str, Any]:
        return await ask_producer((*self.producer, how, str(n)), environ=self.environ(bench), cwd=self.folder)


async def ask_producer(
    command: tuple[str, ...], *, environ: Mapping[str, str], cwd: Path | None = None
) -> dict[str, Any]:
    """Run a producer process to its end; the JSON in its last line."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environ}, cwd=cwd, stdout=-1, stderr=-1
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), GIVE_UP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CaseFailed(f"{' '.join(command)}: not done in {GIVE_UP_S:.0f} s") from None
    if process.returncode:
        raise CaseFailed(f"{' '.join(command)}: {err[-2000:].decode(errors='replace')}")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer
