"""The processes of a chaos run: servers, worker processes, client processes. All are killed at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.proxy import ChaosProxy
from tests.integration.lone_server import LoneServer
from tests.integration.sentinel_servers import SentinelServers
from tests.patience import SOON_S

ROOT = Path(__file__).parents[2]
MAIN, SIDE = "default", "side"
QUEUES_OF_WORKERS = (MAIN, MAIN, MAIN, SIDE)
QUEUES_OF_CLIENTS = (MAIN, MAIN, SIDE)
SHARE_OF_SIDE = 0.1
LEASE_S = 2.0
PATIENCE_S = 2 * SOON_S
"""How long a process may take to start or to end: a bound for a busy machine, not a measure."""

STAGES = '["rag", "assemble", "tests.chaos.stage:Ledger", "inference", "post", "stream"]'

TOML = """
[tenants.limited]
requests_per_minute = 600

[routes.echo]
stages = {stages}
max_attempts = 3
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = 128
options = {{ delay_s = 0.01, fail_text = "REFUSE" }}

[routes.flaky]
stages = {stages}
[[routes.flaky.endpoints]]
backend = "echo"
max_in_flight = 32
options = {{ delay_s = 0.01, failure_rate = 0.3 }}

[routes.pair]
stages = {stages}
[[routes.pair.endpoints]]
backend = "echo"
max_in_flight = 16
[[routes.pair.endpoints]]
backend = "echo"
max_in_flight = 16

[routes.spare]
[[routes.spare.endpoints]]
backend = "echo"

[routes.metered]
stages = {stages}
[[routes.metered.endpoints]]
backend = "echo"
requests_per_minute = 600

[routes.vectors]
kind = "embedding"
[[routes.vectors.endpoints]]
backend = "echo"
max_in_flight = 64
options = {{ delay_s = 0.05, failure_rate = 0.05 }}

[routes.ranks]
kind = "rerank"
[[routes.ranks.endpoints]]
backend = "echo"
max_in_flight = 16
options = {{ delay_s = 0.02, failure_rate = 0.05 }}

[routes.http]
stages = {stages}
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

    loses: str | None = None
    """What a job may be gone with; None: nothing may be gone."""

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


class ForgetfulServer(ServerBehindProxy):
    """One Valkey that is emptied, evicts keys, and whose clock is set, where `libfaketime` is installed."""

    loses = "gone with what Redis forgot"

    def __init__(self, binary: Path, folder: Path) -> None:
        super().__init__(binary, folder)
        self._clock = folder / "clock"
        self._clock.write_text("+0\n", encoding="utf-8")
        self._library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
        if self._library is not None:
            environ = {
                "LD_PRELOAD": str(self._library),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
            self.lone = LoneServer(binary, folder, environ=environ)
            self.proxy = ChaosProxy("127.0.0.1", self.lone.port)

    @property
    def has_clock(self) -> bool:
        """Whether `set_clock` does something."""
        return self._library is not None

    def set_clock(self, offset_s: int) -> None:
        """Let the server's clock be off by that much."""
        self._clock.write_text(f"{offset_s:+d}\n", encoding="utf-8")


class SentinelSet:
    """A primary, a replica and three sentinels."""

    loses: str | None = "gone with a primary's last writes"

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
        give_up_at = time.monotonic() + PATIENCE_S
        while self.servers.primary() == old:
            assert time.monotonic() < give_up_at, "the sentinels have chosen nobody"
            await asyncio.sleep(0.1)
        await asyncio.to_thread(self.servers.come_back, old)

    async def stop(self) -> None:
        """End it for good."""
        self.servers.stop()


Server = ServerBehindProxy | SentinelSet


@dataclass
class Arena:
    """Worker and client processes around one server, for two queues."""

    server: Server
    engine: ChaosProxy
    folder: Path
    seed: str
    jobs_per_s: float
    poison_every_s: float
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0
    deaths: int = 0
    strange_ends: list[str] = field(default_factory=list)
    """Worker processes that ended by themselves, and not of poison."""
    failovers: list[tuple[float, float]] = field(default_factory=list)
    """When each began and had ended."""
    forgot_at: float = 0.0
    """When Redis last forgot something: what was promised before may be gone."""
    _started: int = 0
    _log_of: dict[int, Path] = field(default_factory=dict)

    def ledgers(self, queue: str) -> list[Path]:
        """What the client processes of a queue wrote."""
        return sorted(self.folder.glob(f"ledger-{queue}-*.jsonl"))

    @property
    def calls(self) -> Path:
        """What the worker processes noted of calls of engines."""
        return self.folder / "calls.txt"

    @property
    def logs(self) -> list[Path]:
        """What the worker and client processes said."""
        return sorted(self.folder.glob("*.log"))

    async def start(self) -> None:
        """Start all workers, and the clients once each queue has one that has told its routes."""
        self.workers = [self._start_worker(queue) for queue in QUEUES_OF_WORKERS]
        for queue in (MAIN, SIDE):
            await self._until_serving(self.workers[QUEUES_OF_WORKERS.index(queue)])
        self.clients = [self._start_client(queue) for queue in QUEUES_OF_CLIENTS]

    def kill_worker(self, at: int) -> None:
        """End a worker process without a word, and start another."""
        self.kills += 1
        self.workers[at].kill()
        self.workers[at].wait()
        self.workers[at] = self._start_worker(QUEUES_OF_WORKERS[at])

    def pause_worker(self, at: int) -> subprocess.Popen[bytes]:
        """Stop a worker process until it gets SIGCONT."""
        self.workers[at].send_signal(signal.SIGSTOP)
        return self.workers[at]

    async def replace_worker(self, at: int) -> int:
        """Start another worker process and let the one drain once that serves; returns its exit status."""
        await self._until_serving(self.workers[at])
        old, self.workers[at] = self.workers[at], self._start_worker(QUEUES_OF_WORKERS[at])
        await self._until_serving(self.workers[at])
        old.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(old.wait, PATIENCE_S)

    def kill_client(self, at: int) -> None:
        """End a client process without a word, and start another."""
        self.clients[at].kill()
        self.clients[at].wait()
        self.clients[at] = self._start_client(QUEUES_OF_CLIENTS[at])

    def bring_back_the_dead(self) -> None:
        """Start another for each worker process that has ended by itself: poison, for one."""
        for at, worker in enumerate(self.workers):
            status = worker.poll()
            if status is None:
                continue
            self.deaths += 1
            if status != -signal.SIGKILL:
                self.strange_ends.append(f"{self._log_of[worker.pid].name} exited with {status}")
            self.workers[at] = self._start_worker(QUEUES_OF_WORKERS[at])

    async def operate(self, *arguments: str, fine: Sequence[int] = (0,)) -> str:
        """Run a command of the command line as an operator would; what it printed.

        An exit status other than the `fine` ones, or a traceback, is noted as strange.
        """
        command = [sys.executable, "-m", "scheduler", "--redis-url", self.server.url, *arguments]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=5 * PATIENCE_S,
            check=False,
        )
        if done.returncode not in fine or "Traceback" in done.stderr:
            said = (done.stderr or done.stdout).strip()[-300:]
            self.strange_ends.append(f"{' '.join(arguments)} exited with {done.returncode}: {said}")
        return done.stdout

    def stop_clients(self) -> None:
        """No more jobs; the client processes end once theirs have."""
        for client in self.clients:
            client.send_signal(signal.SIGTERM)

    async def stop_workers(self) -> list[int]:
        """Let all drain; their exit statuses."""
        for worker in self.workers:
            await self._until_serving(worker)
            worker.send_signal(signal.SIGTERM)
        return [await asyncio.to_thread(worker.wait, PATIENCE_S) for worker in self.workers]

    def kill_all(self) -> None:
        """Leave nobody behind."""
        for process in [*self.workers, *self.clients]:
            if process.poll() is None:
                process.kill()
                process.wait()

    async def _until_serving(self, worker: subprocess.Popen[bytes]) -> None:
        log = self._log_of[worker.pid]
        give_up_at = time.monotonic() + PATIENCE_S
        while worker.poll() is None and " serves " not in log.read_text(encoding="utf-8"):
            assert time.monotonic() < give_up_at, f"see {log}"
            await asyncio.sleep(0.05)

    def _start_worker(self, queue: str) -> subprocess.Popen[bytes]:
        config = self.folder / "worker.toml"
        config.write_text(TOML.format(stages=STAGES, engine_port=self.engine.port), encoding="utf-8")
        environ = {
            "SCHEDULER_REDIS_URL": self.server.url,
            "SCHEDULER_CONFIG": str(config),
            "SCHEDULER_LEASE_S": str(LEASE_S),
            "SCHEDULER_RETRY_BASE_S": "0.1",
            "SCHEDULER_RETRY_CAP_S": "2",
            "CHAOS_CALLS": str(self.calls),
        }
        return self._start(f"worker-{queue}", queue, ["-m", "arq", "scheduler.WorkerSettings"], environ)

    def _start_client(self, queue: str) -> subprocess.Popen[bytes]:
        ledger = self.folder / f"ledger-{queue}-{self._started}.jsonl"
        seed = f"{self.seed} {self._started}"
        share = SHARE_OF_SIDE if queue == SIDE else (1 - SHARE_OF_SIDE) / QUEUES_OF_CLIENTS.count(MAIN)
        poison_every_s = self.poison_every_s if queue == MAIN else 1e9
        arguments = [self.server.url, ledger, seed, self.jobs_per_s * share, poison_every_s]
        return self._start(f"client-{queue}", queue, ["-m", "tests.chaos.load", *map(str, arguments)], {})

    def _start(
        self, name: str, queue: str, arguments: list[str], environ: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        log = self.folder / f"{name}-{self._started}.log"
        self._started += 1
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEDULER_QUEUE": queue, **environ},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._log_of[process.pid] = log
        return process
