"""Two real servers behind one route: one is killed and comes back while a thousand prompts stream."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scheduler import AsyncClient, Done, PromptRequest
from scheduler.client import Job
from scheduler.queue.inspection.status import read_status
from scheduler.redis_server.supervisor import free_port
from tests.acceptance.conftest import StartWorker, start_worker  # noqa: F401  a fixture
from tests.patience import SOON_S

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

PROMPTS = 1000


class Server:
    """A llama-server on a port of its own, which may be killed and started again."""

    def __init__(self, binary: Path, model: Path, log: Path) -> None:
        self.port = free_port()
        self._command = [
            *(
                str(binary),
                "-m",
                str(model),
                "--alias",
                "tiny",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
            ),
            *("-c", "4096", "-np", "8", "-t", "1", "--poll", "0", "--metrics", "--no-ui"),
        ]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def ready(self) -> None:
        async with asyncio.timeout(SOON_S), httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{self.port}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)


@pytest.fixture
def servers(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> Iterator[list[Server]]:
    made = [Server(llama_server_binary, tiny_model, tmp_path / f"server-{at}.log") for at in range(2)]
    yield made
    for server in made:
        server.kill()


def breaker_of(redis_url: str, endpoint: str) -> dict[str, int]:
    """What `admin queue status` says of an endpoint's breaker."""
    command = [
        sys.executable,
        "-m",
        "scheduler",
        "--redis-url",
        redis_url,
        "admin",
        "queue",
        "status",
        "--json",
    ]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    breakers: dict[str, int] = next(one["breakers"] for one in said["endpoints"] if one["name"] == endpoint)
    return breakers


async def until_breaker_is(state: str, redis_url: str, endpoint: str) -> None:
    async with asyncio.timeout(SOON_S):
        while await asyncio.to_thread(breaker_of, redis_url, endpoint) != {state: 1}:
            await asyncio.sleep(0.05)


async def test_endpoint_that_is_killed_and_comes_back_loses_and_repeats_nothing(
    valkey_url: str,
    servers: list[Server],
    start_worker: StartWorker,  # noqa: F811  the fixture, by its name
) -> None:
    for server in servers:
        server.start()
    await asyncio.gather(*(server.ready() for server in servers))
    endpoints = "".join(
        f"""
        [[routes.chat.endpoints]]
        backend = "llama_cpp"
        base_url = "http://127.0.0.1:{server.port}"
        model = "tiny"
        breaker = {{ failures = 2, open_s = 0.3 }}
        """
        for server in servers
    )
    start_worker(valkey_url, toml=f"[routes.chat]\nbatch = {{ max_size = 4 }}\n{endpoints}")

    ended: list[str] = []
    quarter = asyncio.Event()
    terminal: Counter[str] = Counter()
    by: Counter[str] = Counter()

    async def follow(job: Job) -> None:
        async for event in job.events():
            if event.terminal:
                assert isinstance(event, Done), event
                terminal[event.job_id] += 1
                by[event.result.endpoint] += 1
                ended.append(event.job_id)
        if len(ended) >= PROMPTS // 4:
            quarter.set()

    async with AsyncClient(valkey_url) as client:
        requests = [
            PromptRequest(prompt=f"Prompt number {n}", model="chat", params={"max_tokens": 32, "seed": n})
            for n in range(PROMPTS)
        ]
        jobs = [outcome for outcome in await client.enqueue_many(requests) if isinstance(outcome, Job)]
        assert len(jobs) == PROMPTS
        following = asyncio.gather(*(follow(job) for job in jobs))

        await asyncio.wait_for(quarter.wait(), SOON_S)
        servers[1].kill()
        await until_breaker_is("open", valkey_url, "chat.1")
        servers[1].start()
        await until_breaker_is("closed", valkey_url, "chat.1")
        assert len(ended) < PROMPTS, "it was back before the end"
        await asyncio.wait_for(following, SOON_S * 2)

        status = await totals_of(client)
    assert set(terminal) == {job.id for job in jobs}
    assert set(terminal.values()) == {1}
    assert status == {"enqueued": PROMPTS, "done": PROMPTS}
    assert by["chat.0"] > 0
    assert by["chat.1"] > 0


async def totals_of(client: AsyncClient) -> dict[str, Any]:
    totals = (await read_status(client.queue)).totals
    return {
        name: count for name, count in totals.items() if name in ("enqueued", "done", "failed", "cancelled")
    }
