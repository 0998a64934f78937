"""The example of a third party's model worker, installed as a user would, in a real worker process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler import AsyncClient, Delta
from tests.acceptance.conftest import StartWorker, wait_for_line
from tests.patience import SOON_S

PACKAGE = Path(__file__).parents[2] / "examples" / "third_party_worker"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the installed package, for PYTHONPATH."""
    folder = str(tmp_path_factory.mktemp("site"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, str(PACKAGE)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def tgi_url() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(PACKAGE / "tests" / "fake_tgi.py")], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.kill()


def route_on(url: str) -> str:
    return f'[[routes.chat.endpoints]]\nbackend = "tgi"\nbase_url = "{url}"\n'


async def test_its_worker_serves_a_route(
    installed: str, tgi_url: str, valkey_url: str, start_worker: StartWorker
) -> None:
    start_worker(valkey_url, toml=route_on(tgi_url), PYTHONPATH=installed)
    async with AsyncClient(valkey_url) as client:
        job = await client.enqueue("one two three", model="chat", params={"max_tokens": 4})
        deltas = [event.text async for event in job.events() if isinstance(event, Delta)]
        result = await job.result(timeout_s=SOON_S)
    assert result.text == " one two three one"
    assert "".join(deltas) == result.text
    assert (result.finish_reason, result.usage.input_tokens, result.usage.output_tokens) == ("length", 3, 4)


def test_its_author_can_run_the_contract_suite(installed: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PACKAGE)]
    config = ["-c", str(PACKAGE / "pyproject.toml")]
    done = subprocess.run(
        [*command, *config],
        cwd=PACKAGE,
        env={**os.environ, "PYTHONPATH": installed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


def test_without_the_package_the_message_says_how_backends_are_added(
    valkey_url: str, start_worker: StartWorker
) -> None:
    process = start_worker(valkey_url, toml=route_on("http://127.0.0.1:9"), wait=False)
    line = wait_for_line(process, "no model worker is called 'tgi'")
    assert "prompt_scheduler.workers" in line
    assert process.wait(SOON_S) != 0
