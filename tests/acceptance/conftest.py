"""Real worker processes, started as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.patience import SOON_S

StartWorker = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start `arq scheduler.WorkerSettings`; returns the process once it serves. All are killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(
        url: str, *arguments: str, toml: str = "", wait: bool = True, **environ: str
    ) -> subprocess.Popen[str]:
        config = tmp_path / f"worker{len(processes)}.toml"
        config.write_text(toml, encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "arq", "scheduler.WorkerSettings", *arguments],
            env={**os.environ, "SCHEDULER_REDIS_URL": url, "SCHEDULER_CONFIG": str(config), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        if wait:
            wait_for_line(process, " serves ")
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(SOON_S)
        if process.stdout:
            process.stdout.close()


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read the process's output up to the line that has `text`."""
    seen: list[str] = []
    assert process.stdout
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"the process ended without saying {text!r}:\n{''.join(seen)}")


def slow_echo(delay_s: float, max_in_flight: int = 64) -> str:
    """A configuration whose route `echo` takes `delay_s` a word."""
    return f"""
        [routes.echo]
        [[routes.echo.endpoints]]
        backend = "echo"
        max_in_flight = {max_in_flight}
        options = {{ delay_s = {delay_s} }}
    """
