"""What real worker processes write, under `arq` as it is and as a user has set it up."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from arq import create_pool
from arq.connections import RedisSettings

from scheduler import AsyncClient, JobFailed, JobState
from scheduler.queue.inspection.status import read_status
from tests.acceptance.conftest import StartWorker, slow_echo, wait_for_line
from tests.contracts.wire import FakeServer, Request, answer, listening
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

SECRET = "a-private-matter"
KEY = "sk-very-secret-key"

STAGES = '''
"""Stages as somebody might write them."""


class Broken:
    name = "broken"

    async def run(self, context):
        try:
            raise KeyError(context.prompt)
        except KeyError as error:
            raise ValueError(f"cannot digest {context.prompt}") from error
'''

OWN_LOGGING = """
NAMING_OURS = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"ids": {"()": "scheduler.logs.IdFilter"}},
    "formatters": {
        "mine": {"format": "MINE %(name)s %(message)s by %(worker)s"},
        "json": {"()": "scheduler.logs.JsonFormatter"},
    },
    "handlers": {
        "mine": {"class": "logging.StreamHandler", "formatter": "mine", "filters": ["ids"]},
        "json": {"class": "logging.StreamHandler", "formatter": "json"},
    },
    "loggers": {
        "scheduler": {"handlers": ["mine"], "level": "INFO"},
        "arq": {"handlers": ["json"], "level": "INFO"},
    },
}
NAMING_ARQ = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"mine": {"format": "MINE %(name)s %(message)s"}},
    "handlers": {"mine": {"class": "logging.StreamHandler", "formatter": "mine"}},
    "loggers": {"arq": {"handlers": ["mine"], "level": "INFO"}},
}
ROOT = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"mine": {"format": "MINE %(name)s %(message)s"}},
    "handlers": {"mine": {"class": "logging.StreamHandler", "formatter": "mine"}},
    "root": {"handlers": ["mine"], "level": "INFO"},
}
"""


async def end(worker: subprocess.Popen[str]) -> list[str]:
    """Stop a worker process as a supervisor would; the lines that are left."""
    worker.send_signal(signal.SIGTERM)
    output, _ = await asyncio.to_thread(worker.communicate, timeout=SOON_S)
    assert worker.returncode == 0, output
    return output.splitlines()


async def run_by_arq(url: str, client: AsyncClient, **request: Any) -> Any:
    """Let arq's function run a prompt; what becomes of it."""
    pool = await create_pool(
        RedisSettings.from_dsn(url), job_serializer=orjson.dumps, job_deserializer=orjson.loads
    )
    try:
        queue_name = client.queue.keys.fixed("arq")
        job = await pool.enqueue_job("run_prompt", request, _queue_name=queue_name)
        assert job
        await job.result(timeout=SOON_S, poll_delay=0.05)
    except Exception as error:
        return error
    finally:
        await pool.aclose()
    return None


@pytest.mark.parametrize("log_format", ["json", "auto"])
async def test_every_line_is_json_arqs_own_included(
    valkey_url: str, start_worker: StartWorker, log_format: str
) -> None:
    worker = start_worker(valkey_url, wait=False, SCHEDULER_LOG_FORMAT=log_format)
    async with AsyncClient(valkey_url) as client:
        assert (await client.run("one", timeout_s=SOON_S)).text == "one"
        assert await run_by_arq(valkey_url, client, prompt="two") is None
        assert await run_by_arq(valkey_url, client, prompt="three", model="unknown") is not None
    lines = [orjson.loads(line) for line in await end(worker)]
    said = [(line["level"], line["logger"], line["message"].split()[0]) for line in lines]
    assert said == [
        ("info", "arq.worker", "Starting"),
        ("info", "arq.worker", "redis_version=" + lines[1]["message"].split("=")[1].split()[0]),
        ("info", "scheduler.engine.engine", "worker"),
        ("error", "arq.worker", lines[3]["message"].split()[0]),
        ("info", "scheduler.host.process", "SIGTERM:"),
        ("info", "scheduler.engine.engine", "worker"),
    ]
    assert {line["queue"] for line in lines} == {"default"}
    assert len({line["worker"] for line in lines[2:]}) == 1
    assert lines[3]["error"]["type"] == "scheduler.errors.UnknownModel"


async def test_production_log_is_quiet_while_all_is_well(valkey_url: str, start_worker: StartWorker) -> None:
    worker = start_worker(valkey_url, wait=False, SCHEDULER_LOG_LEVEL="warning")
    async with AsyncClient(valkey_url) as client:
        assert (await client.run("one", timeout_s=SOON_S)).text == "one"
        assert await run_by_arq(valkey_url, client, prompt="two") is None
        cancelled = await client.enqueue("three", delay_s=60)
        await cancelled.cancel()
    assert await end(worker) == []


def test_terminal_gets_lines_for_people(valkey_url: str) -> None:
    ours, theirs = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "arq", "scheduler.WorkerSettings"],
        env={**environ, "SCHEDULER_REDIS_URL": valkey_url, "TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while b" serves " not in said:
            said += os.read(ours, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b'{"' not in said
    assert b"\x1b[2m" in said
    assert b"INFO    Starting worker for 1 functions: run_prompt\r\n" in said


@pytest.mark.parametrize("name", ["NAMING_OURS", "NAMING_ARQ", "ROOT"])
async def test_users_own_logging_stays_his(
    valkey_url: str, start_worker: StartWorker, tmp_path: Path, name: str
) -> None:
    (tmp_path / "own_logging.py").write_text(OWN_LOGGING, encoding="utf-8")
    own = ["--custom-log-dict", f"own_logging.{name}"]
    environ = {"PYTHONPATH": str(tmp_path), "SCHEDULER_LOG_FORMAT": "json", "SCHEDULER_LOG_LEVEL": "error"}
    worker = start_worker(valkey_url, *own, wait=False, **environ)
    async with AsyncClient(valkey_url) as client:
        assert (await client.run("one", timeout_s=SOON_S)).text == "one"
        assert await run_by_arq(valkey_url, client, prompt="two") is None
    lines = await end(worker)
    ours = [line for line in lines if " has stopped" in line]
    arqs = [line for line in lines if "run_prompt" in line]
    assert len(ours) == 1
    assert len(arqs) == 3, "what arq says of each job is his to want"
    if name == "NAMING_OURS":
        said = re.fullmatch(r"MINE scheduler.engine.engine worker (\S+) has stopped by (\S+)", ours[0])
        assert said
        assert said[1] == said[2]
        assert orjson.loads(arqs[0])["logger"] == "arq.worker"
    else:
        assert ours[0].startswith("MINE scheduler.engine.engine worker ")
        assert arqs[0].startswith("MINE arq.worker Starting worker")


async def test_outage_of_redis_is_one_line_each_way(
    valkey_binary: Path, start_worker: StartWorker, tmp_path: Path
) -> None:
    server = LoneServer(valkey_binary, tmp_path)
    await server.start()
    worker = start_worker(server.url, toml=slow_echo(0.02), SCHEDULER_LEASE_S="3")
    try:
        async with AsyncClient(server.url) as client:
            jobs = [await client.enqueue(" ".join(str(n) for n in range(60))) for _ in range(20)]
            while (await jobs[-1].info()).state is not JobState.RUNNING:
                await asyncio.sleep(0.01)
            server.kill()
            away = orjson.loads(await asyncio.to_thread(wait_for_line, worker, "Redis is away"))
            await server.start()
            back = orjson.loads(await asyncio.to_thread(wait_for_line, worker, "Redis is back"))
            for job in jobs:
                await job.result(timeout_s=SOON_S)
        rest = await end(worker)
    finally:
        server.kill()
    assert (away["level"], back["level"]) == ("warning", "info")
    assert not [line for line in rest if "Redis" in line or '"warning"' in line or '"error"' in line]


class RepeatingServer(FakeServer):
    """Fails at every prompt, and repeats prompt and key in what it says of it."""

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body is None:
            await answer(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})(writer)
            return
        message = f"{SECRET in str(request.body) and SECRET} {KEY in request.head and KEY}"
        await answer(500, {"error": {"message": message, "type": "server_error"}})(writer)


async def until_left_alone(client: AsyncClient, endpoint: str) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            seen = (await read_status(client.queue)).endpoints
            if any(one.name == endpoint and one.breakers.get("closed", 0) == 0 for one in seen):
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("log_format", ["json", "human"])
async def test_no_line_has_a_prompt_or_a_secret(
    valkey_url: str, start_worker: StartWorker, tmp_path: Path, log_format: str
) -> None:
    (tmp_path / "stages.py").write_text(STAGES, encoding="utf-8")
    async with listening(RepeatingServer()) as server:
        toml = f"""
            retry_base_s = 0.01
            [routes.broken]
            stages = ["stages:Broken", "inference", "stream"]
            endpoints = [{{ backend = "echo" }}]
            [routes.refusing]
            [[routes.refusing.endpoints]]
            backend = "openai"
            base_url = "{server.base_url}"
            model = "m"
            api_key_env = "MY_KEY"
            breaker = {{ failures = 2 }}
        """
        environ = {"PYTHONPATH": str(tmp_path), "MY_KEY": KEY, "SCHEDULER_LOG_FORMAT": log_format}
        worker = start_worker(valkey_url, toml=toml, wait=False, **environ)
        async with AsyncClient(valkey_url) as client:
            while "broken" not in await client.queue.routes():
                await asyncio.sleep(0.02)
            broken = await client.enqueue(SECRET, model="broken", dedup_key=SECRET, max_attempts=2)
            with pytest.raises(JobFailed):
                await broken.result(timeout_s=SOON_S)
            refused = await client.enqueue(SECRET, model="refusing", dedup_key=SECRET, max_attempts=1)
            with pytest.raises(JobFailed) as failed:
                await refused.result(timeout_s=SOON_S)
            assert SECRET in str(failed.value), "the server has repeated the prompt"
            assert any(f"bearer {KEY}" in head for head in server.headers)
            by_arq = await run_by_arq(valkey_url, client, prompt=SECRET, model="refusing", max_attempts=1)
            assert by_arq is not None
            await until_left_alone(client, "refusing.0")
        lines = await end(worker)
    text = "\n".join(lines)
    assert len([line for line in lines if "an unexpected error in the stages" in line]) == 2
    assert len([line for line in lines if "endpoint refusing.0 is unused" in line]) == 1
    assert len([line for line in lines if "run_prompt failed, JobFailed: job_failed" in line]) == 1
    assert "answered 500" in text
    assert "stages.py:12 Broken.run" in text
    assert SECRET not in text
    assert KEY not in text
