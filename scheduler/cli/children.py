"""Child processes of a command. Each runs under a guard, so that none is left behind however it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from scheduler.cli import child_guard
from scheduler.errors import SchedulerError
from scheduler.settings import ENV_PREFIX

LOG_LINES_SHOWN = 8
STOP_S = child_guard.GRACE_S + 5


@dataclass(slots=True)
class Child:
    """One child process."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    """The file with its output."""

    async def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return await self.process.wait()

    async def failed(self) -> SchedulerError:
        """Wait for its end, which is unexpected, and return the error to raise."""
        code = await self.wait()
        return self.complaint(f"the {self.name} ended with {code}:")

    def complaint(self, message: str, kind: type[SchedulerError] = SchedulerError) -> SchedulerError:
        """An error about it, with the end of its output as notes."""
        error = kind(message)
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]:
            error.add_note(line)
        return error

    async def stop(self) -> None:
        """Stop it. Safe to call twice."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            self.process.kill()


@asynccontextmanager
async def child(
    name: str, *command: str | Path, folder: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """A process that ends with the body. The only settings in its environment are those of `environ`."""
    log = folder / f"{name.replace(' ', '-')}.log"
    clean = {key: value for key, value in os.environ.items() if not key.upper().startswith(ENV_PREFIX)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", child_guard.__file__, *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=clean | dict(environ or {}),
            start_new_session=True,
        )
    started = Child(name, process, log)
    try:
        yield started
    finally:
        await started.stop()
