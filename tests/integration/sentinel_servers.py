"""A primary, a replica and three sentinels: real processes on loopback."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from scheduler.redis_server.supervisor import free_port
from tests.patience import SOON_S

SERVICE = "prompts"


class SentinelServers:
    """Servers by port; `url` finds the primary among them."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.sentinels: list[int] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def start(self) -> None:
        primary, replica = free_port(), free_port()
        self._serve(primary)
        self._serve(replica, "--replicaof", "127.0.0.1", str(primary))
        self._until(replica, lambda info: info["master_link_status"] == "up")
        for _ in range(3):
            self._watch(primary)
        for port in self.sentinels:
            self._until_known(port)

    def primary(self) -> int:
        """The port of the primary, as the first sentinel sees it."""
        with redis.Redis(port=self.sentinels[0]) as sentinel:
            _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            return int(port)

    def kill(self, port: int) -> None:
        """End a server without a word."""
        self._processes[port].kill()
        self._processes[port].wait()

    def come_back(self, port: int) -> None:
        """Start a killed server again; the sentinels make it a replica."""
        self._run(port, *self._options(port), "--replicaof", "127.0.0.1", str(self.primary()))
        # On a busy machine the sentinels may choose it again in the meantime.
        self._until(port, lambda info: info.get("master_link_status") == "up" or info["connected_slaves"])
        for sentinel in self.sentinels:
            self._until_known(sentinel)

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _serve(self, port: int, *options: str) -> None:
        (self._folder / str(port)).mkdir()
        self._run(port, *self._options(port), *options)

    def _options(self, port: int) -> list[str]:
        folder = str(self._folder / str(port))
        # With a file of its own: one that is chosen again right after its start must not empty all others.
        return ["--save", "", "--appendonly", "yes", "--repl-diskless-sync-delay", "0", "--dir", folder]

    def _watch(self, primary: int) -> None:
        port = free_port()
        config = self._folder / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 5000\n"
        )
        self._processes[port] = self._popen(str(config), "--sentinel")
        self.sentinels.append(port)
        _until_it_answers(port)

    def _run(self, port: int, *options: str) -> None:
        self._processes[port] = self._popen("--port", str(port), "--bind", "127.0.0.1", *options)
        _until_it_answers(port)

    def _popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self._binary), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _until(self, port: int, condition: Callable[[dict[str, Any]], bool]) -> None:
        give_up_at = time.monotonic() + SOON_S
        with redis.Redis(port=port) as client:
            while not condition(client.info("replication")):
                assert time.monotonic() < give_up_at, "the replica did not connect"
                time.sleep(0.02)

    def _until_known(self, port: int) -> None:
        """Until this sentinel knows the replica and the two others: before, there is no failover."""
        give_up_at = time.monotonic() + SOON_S
        with redis.Redis(port=port) as client:
            while True:
                state = client.sentinel_master(SERVICE)
                if state["num-slaves"] == 1 and state["num-other-sentinels"] == 2:
                    return
                assert time.monotonic() < give_up_at, state
                time.sleep(0.05)


@contextmanager
def sentinel_servers(binary: Path, folder: Path) -> Iterator[SentinelServers]:
    servers = SentinelServers(binary, folder)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


def _until_it_answers(port: int) -> None:
    give_up_at = time.monotonic() + SOON_S
    with redis.Redis(port=port) as client:
        while time.monotonic() < give_up_at:
            with suppress(redis.ConnectionError):
                client.ping()
                return
            time.sleep(0.02)
    raise AssertionError(f"nothing answers on port {port}")
