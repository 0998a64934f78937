"""One real server that can be killed and started again at the same address, with its data."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import redis
import redis.asyncio

from scheduler.redis_server.supervisor import free_port
from tests.patience import SOON_S


class LoneServer:
    """Its append-only file has every write."""

    def __init__(
        self, binary: Path, folder: Path, *options: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.socket = folder / "s"
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [
            *(str(binary), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
            *("--unixsocket", str(self.socket), *options),
        ]
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it (again), and wait until it has read its file."""
        # SIGXFSZ stays ignored, as in Python: a limit on its files is then a full disk to it.
        self._process = subprocess.Popen(
            self._command,
            env=self._environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            restore_signals=False,
        )
        async with asyncio.timeout(SOON_S), redis.asyncio.Redis.from_url(self.url) as probe:
            while True:
                try:
                    await probe.ping()
                except (redis.ConnectionError, redis.exceptions.BusyLoadingError, OSError):
                    await asyncio.sleep(0.02)
                else:
                    return

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without a word. Safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
