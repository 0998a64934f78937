"""What all measurements share: a server of their own, processes and their CPU, alternating rounds, rows."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from redis.asyncio import Redis

from scheduler import AsyncClient, load_settings
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.keys import Keys
from scheduler.redis_server.embedded import EmbeddedServer

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
OURS = "prompt-scheduler"
STOP_TIMEOUT_S = 30.0
GIVE_UP_S = 180.0
READY_TIMEOUT_S = 60.0
META = Keys("default").fixed("meta")

Figures: TypeAlias = Mapping[tuple[str, str], float]
"""What a case has found: `(what, unit)` -> value."""


class CaseFailed(Exception):
    """A case did not come to its end; the message says what was heard of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one case: `values` are those of the rounds, in `unit`.

    `case` is who was measured, or under what circumstances: "arq", "1,000 waiting".
    """

    measure: str
    case: str
    what: str
    unit: str
    values: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)


@dataclass(slots=True)
class Bench:
    """The server of a run, how much to measure, and the rows found so far."""

    server: EmbeddedServer
    server_pid: int
    server_version: str
    quick: bool
    rounds: int
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # what was left out and why, settings of peers

    @property
    def url(self) -> str:
        """Where the server is."""
        return self.server.url

    def size(self, full: int, quick: int) -> int:
        """How many of something: fewer in a quick run."""
        return quick if self.quick else full

    def redis(self) -> Redis:
        """A plain connection to the server."""
        redis: Redis = Redis.from_url(self.url)
        return redis

    def client(self, queue: str = "default") -> AsyncClient:
        """A client of ours, without settings of the surroundings."""
        return AsyncClient(settings=load_settings(environ={}, redis_url=self.url, queue=queue))

    def add(self, measure: str, case: str, what: str, unit: str, *values: float, note: str = "") -> None:
        """Note a figure, and say it."""
        row = Row(measure, case, what, unit, values, note)
        self.rows.append(row)
        print(f"{measure}: {case}: {what} {row.median:,.6g} {unit}", flush=True)

    async def alternate(self, measure: str, cases: Mapping[str, Callable[[], Awaitable[Figures]]]) -> None:
        """Run the cases in turn, round after round (A B A B), each on an empty server.

        A case returns its figures: `(what, unit)` -> value. A peer that fails is left out from then on, which
        `notes` says; where we fail ourselves there is nothing to compare.
        """
        found: dict[str, dict[tuple[str, str], list[float]]] = {case: {} for case in cases}
        for number in range(self.rounds):
            for case, run in cases.items():
                if f"{measure}, {case}" in self.notes:
                    continue
                async with self.redis() as redis:
                    await redis.flushall()
                try:
                    figures = await run()
                except CaseFailed as error:
                    if case.startswith(OURS):
                        raise
                    self.notes[f"{measure}, {case}"] = f"left out after {number} rounds: {error}"
                    continue
                for figure, value in figures.items():
                    found[case].setdefault(figure, []).append(value)
                said = ", ".join(f"{what} {value:,.4g} {unit}" for (what, unit), value in figures.items())
                print(f"{measure}, round {number + 1}: {case}: {said}", flush=True)
        for case, by_what in found.items():
            for (what, unit), values in by_what.items():
                self.rows.append(Row(measure, case, what, unit, tuple(values)))


def cpu_s(pid: int) -> float:
    """User and system CPU seconds of a process and of its children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    own = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    children = [
        child
        for tasks in Path(f"/proc/{pid}/task").glob("*/children")
        for child in tasks.read_text(encoding="ascii").split()
    ]
    return own + sum(cpu_s(int(child)) for child in children)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB (10^6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and p99.9."""
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    return {"p50": cuts[499], "p99": cuts[989], "p99.9": cuts[998]}


@contextmanager
def processes(
    *commands: Sequence[str], environ: Mapping[str, str], cwd: Path | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes, and end them with the block. What they said is in the error if it times out."""
    with tempfile.TemporaryFile() as log:
        started = [
            subprocess.Popen(command, env={**os.environ, **environ}, cwd=cwd, stdout=log, stderr=log)
            for command in commands
        ]
        try:
            yield started
        except TimeoutError as error:
            log.seek(0)
            words = log.read()[-2000:].decode(errors="replace")
            raise CaseFailed(f"{' '.join(commands[0])}: {error}\n{words}") from error
        finally:
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def worker_command() -> list[str]:
    """The command that starts a worker process of ours: what users run."""
    return [sys.executable, "-m", "arq", "scheduler.WorkerSettings"]


@contextmanager
def worker_processes(
    bench: Bench, n: int = 1, *, toml: str = "", queue: str = "default", **environ: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start `n` worker processes of ours, with this configuration, and end them with the block."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "scheduler.toml"
        config.write_text(toml, encoding="utf-8")
        settings = {
            "SCHEDULER_REDIS_URL": bench.url,
            "SCHEDULER_CONFIG": str(config),
            "SCHEDULER_QUEUE": queue,
            **environ,
        }
        with processes(*[worker_command()] * n, environ=settings) as started:
            yield started


@dataclass(frozen=True, slots=True)
class Span:
    """What went on between two moments: jobs done, seconds, and CPU seconds of workers and server."""

    jobs: int
    elapsed_s: float
    worker_s: float
    server_s: float

    def figures(self) -> dict[tuple[str, str], float]:
        """As `alternate` wants them."""
        return {
            ("rate", "jobs/s"): self.jobs / self.elapsed_s,
            ("worker CPU", "µs/job"): self.worker_s / self.jobs * 1e6,
            ("server CPU", "µs/job"): self.server_s / self.jobs * 1e6,
        }


async def watch_drain(
    bench: Bench,
    workers: Sequence[subprocess.Popen[bytes]],
    done: Callable[[], Awaitable[int]],
    total: int,
    *,
    poll_s: float = 0.005,
) -> Span:
    """Time a drain from the first progress seen to the end; `done` asks how many jobs have ended.

    Raises:
        TimeoutError: it does not end.
    """
    give_up_at = time.monotonic() + GIVE_UP_S

    async def until(enough: int, pause_s: float) -> int:
        while (n := await done()) < enough:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"only {n} of {total} jobs were done in {GIVE_UP_S:.0f} s")
            await asyncio.sleep(pause_s)
        return n

    def spent_s() -> float:
        return sum(cpu_s(worker.pid) for worker in workers)

    first = await until(1, 0.001)
    started, worker_s, server_s = time.perf_counter(), spent_s(), cpu_s(bench.server_pid)
    await until(total, poll_s)
    return Span(
        total - first,
        time.perf_counter() - started,
        spent_s() - worker_s,
        cpu_s(bench.server_pid) - server_s,
    )


async def done_of_ours(redis: Redis) -> int:
    """How many of our jobs are done: the one field, as it is polled."""
    return int(await redis.hget(META, "t:done") or 0)  # type: ignore[misc]  # sync or async in the stubs


async def until_serving(bench: Bench, n_workers: int = 1) -> None:
    """Wait until so many worker processes can be seen.

    Raises:
        TimeoutError: they cannot.
    """
    async with bench.client() as client, asyncio.timeout(READY_TIMEOUT_S):
        while len(await read_workers(client.queue)) < n_workers:
            await asyncio.sleep(0.02)


def refuse_errors(outcomes: Sequence[object]) -> None:
    """End the program if a prompt was not taken."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise SystemExit(f"enqueue failed: {outcome}")
