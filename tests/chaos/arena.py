"""The processes of a chaos run: servers, worker processes, client processes. All are killed at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.proxy import ChaosProxy
from tests.integration.lone_server import LoneServer
from tests.integration.sentinel_servers import SentinelServers

ROOT = Path(__file__).parents[2]
WORKERS = 4
CLIENTS = 2
LEASE_S = 2.0
START_S = 15.0

TOML = """
[routes.echo]
stages = ["rag", "assemble", "tests.chaos.stage:Ledger", "inference", "post", "stream"]
max_attempts = 3
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = 128
options = {{ delay_s = 0.01, fail_text = "REFUSE" }}

[routes.flaky]
stages = ["rag", "assemble", "tests.chaos.stage:Ledger", "inference", "post", "stream"]
[[routes.flaky.endpoints]]
backend = "echo"
max_in_flight = 32
options = {{ delay_s = 0.01, failure_rate = 0.3 }}

[routes.http]
stages = ["rag", "assemble", "tests.chaos.stage:Ledger", "inference", "post", "stream"]
max_attempts = 10
[[routes.http.endpoints]]
backend = "openai"
model = "tiny"
base_url = "http://127.0.0.1:{engine_port}/v1"
max_in_flight = 32
first_token_timeout_s = 2
timeout_s = 5
total_timeout_s = 5
options = {{ completions = true }}
"""


class ServerBehindProxy:
    """One Valkey whose append-only file has every write, behind a bad network."""

    def __init__(self, binary: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.lone = LoneServer(binary, folder)
        self.proxy = ChaosProxy("127.0.0.1", self.lone.port)

    @property
    def url(self) -> str:
        """Where workers and clients connect."""
        return f"redis://127.0.0.1:{self.proxy.port}"

    @property
    def direct_url(self) -> str:
        """Around the proxy."""
        return self.lone.url

    async def start(self) -> None:
        """Start the server and its proxy."""
        await self.lone.start()
        await self.proxy.__aenter__()

    async def stop(self) -> None:
        """End it for good."""
        await self.proxy.__aexit__(None, None, None)
        self.lone.kill()


class SentinelSet:
    """A primary, a replica and three sentinels."""

    def __init__(self, binary: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.servers = SentinelServers(binary, folder)

    @property
    def url(self) -> str:
        """Where workers and clients connect."""
        return self.servers.url

    @property
    def direct_url(self) -> str:
        """The primary of this moment."""
        return f"redis://127.0.0.1:{self.servers.primary()}"

    async def start(self) -> None:
        """Start all five."""
        await asyncio.to_thread(self.servers.start)

    async def fail_over(self) -> None:
        """Kill the primary, wait for the next, and give it a replica again."""
        old = self.servers.primary()
        self.servers.kill(old)
        give_up_at = time.monotonic() + 3 * START_S
        while self.servers.primary() == old:
            assert time.monotonic() < give_up_at, "the sentinels have chosen nobody"
            await asyncio.sleep(0.1)
        await asyncio.to_thread(self.servers.come_back, old)

    async def stop(self) -> None:
        """End it for good."""
        self.servers.stop()


@dataclass
class Arena:
    """Worker and client processes around one server."""

    server: ServerBehindProxy | SentinelSet
    engine: ChaosProxy
    folder: Path
    seed: str
    jobs_per_s: float
    poison_every_s: float
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0
    deaths: int = 0
    _started: int = 0
    _log_of: dict[int, Path] = field(default_factory=dict)

    @property
    def ledgers(self) -> list[Path]:
        """What the client processes wrote."""
        return sorted(self.folder.glob("ledger-*.jsonl"))

    @property
    def calls(self) -> Path:
        """What the worker processes noted of calls of engines."""
        return self.folder / "calls.txt"

    @property
    def logs(self) -> list[Path]:
        """What the worker and client processes said."""
        return sorted(self.folder.glob("*.log"))

    async def start(self) -> None:
        """Start all workers, and the clients once one of them has told its routes."""
        self.workers = [self._start_worker() for _ in range(WORKERS)]
        await self._until_serving(self.workers[0])
        self.clients = [self._start_client() for _ in range(CLIENTS)]

    def kill_worker(self, at: int) -> None:
        """End a worker process without a word, and start another."""
        self.kills += 1
        self.workers[at].kill()
        self.workers[at].wait()
        self.workers[at] = self._start_worker()

    def pause_worker(self, at: int) -> subprocess.Popen[bytes]:
        """Stop a worker process until it gets SIGCONT."""
        self.workers[at].send_signal(signal.SIGSTOP)
        return self.workers[at]

    async def replace_worker(self, at: int) -> int:
        """Start another worker process and let the one drain once that serves; returns its exit status."""
        await self._until_serving(self.workers[at])
        old, self.workers[at] = self.workers[at], self._start_worker()
        await self._until_serving(self.workers[at])
        old.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(old.wait, 60)

    def kill_client(self, at: int) -> None:
        """End a client process without a word, and start another."""
        self.clients[at].kill()
        self.clients[at].wait()
        self.clients[at] = self._start_client()

    def bring_back_the_dead(self) -> None:
        """Start another for each worker process that has ended by itself: poison, for one."""
        for at, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.deaths += 1
                self.workers[at] = self._start_worker()

    def stop_clients(self) -> None:
        """No more jobs; the client processes end once theirs have."""
        for client in self.clients:
            client.send_signal(signal.SIGTERM)

    async def stop_workers(self) -> list[int]:
        """Let all drain; their exit statuses."""
        for worker in self.workers:
            await self._until_serving(worker)
            worker.send_signal(signal.SIGTERM)
        return [await asyncio.to_thread(worker.wait, 60) for worker in self.workers]

    def kill_all(self) -> None:
        """Leave nobody behind."""
        for process in [*self.workers, *self.clients]:
            if process.poll() is None:
                process.kill()
                process.wait()

    async def _until_serving(self, worker: subprocess.Popen[bytes]) -> None:
        log = self._log_of[worker.pid]
        give_up_at = time.monotonic() + START_S
        while worker.poll() is None and " serves " not in log.read_text(encoding="utf-8"):
            assert time.monotonic() < give_up_at, f"see {log}"
            await asyncio.sleep(0.05)

    def _start_worker(self) -> subprocess.Popen[bytes]:
        config = self.folder / "worker.toml"
        config.write_text(TOML.format(engine_port=self.engine.port), encoding="utf-8")
        environ = {
            "SCHEDULER_REDIS_URL": self.server.url,
            "SCHEDULER_CONFIG": str(config),
            "SCHEDULER_LEASE_S": str(LEASE_S),
            "SCHEDULER_RETRY_BASE_S": "0.1",
            "SCHEDULER_RETRY_CAP_S": "2",
            "CHAOS_CALLS": str(self.calls),
        }
        return self._start("worker", ["-m", "arq", "scheduler.WorkerSettings"], environ)

    def _start_client(self) -> subprocess.Popen[bytes]:
        ledger = self.folder / f"ledger-{self._started}.jsonl"
        seed, jobs_per_s = f"{self.seed} {self._started}", self.jobs_per_s / CLIENTS
        arguments = [self.server.url, ledger, seed, jobs_per_s, self.poison_every_s]
        return self._start("client", ["-m", "tests.chaos.load", *map(str, arguments)], {})

    def _start(self, name: str, arguments: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        log = self.folder / f"{name}-{self._started}.log"
        self._started += 1
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._log_of[process.pid] = log
        return process
