"""The parts of the arq host that need no process of their own."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import orjson
import pytest
from arq import Retry as ArqRetry
from arq.utils import args_to_string
from arq.worker import Worker

import scheduler
from scheduler import (
    DedupConflict,
    InvalidRequest,
    JobFailed,
    QueueFull,
    RedisUnavailable,
    ResultTimeout,
    SchedulerError,
    arq_jobs,
)
from scheduler.engine import Outage
from scheduler.host import process, run_prompt
from scheduler.host import worker_settings as settings_module
from scheduler.host.process import WorkerProcess
from scheduler.host.run_prompt import RunPrompt, job_id_of
from scheduler.host.worker_settings import worker_settings
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.testing import local_scheduler
from tests.patience import SOON_S

NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def checking() -> Any:
    """As under `arq scheduler.WorkerSettings --check`."""
    with click.Context(click.Command("arq")) as context:
        context.params["check"] = True
        yield context


def context_of(job_id: str = "j1", at: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> dict[str, Any]:
    return {"job_id": job_id, "enqueue_time": at}


def prompts_of(client: scheduler.AsyncClient) -> RunPrompt:
    prompts = RunPrompt()
    prompts.begin(client)
    return prompts


def process_of() -> WorkerProcess:
    return WorkerProcess(scheduler.load_settings(environ={}), NOBODY, None, Outage())


def test_check_starts_nothing_and_needs_no_server(checking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(EmbeddedServer, "start", refuse)
    monkeypatch.setattr(settings_module, "wait_for_server", refuse)
    monkeypatch.setattr(settings_module, "_set_event_loop", refuse)
    monkeypatch.setattr(settings_module, "PatientArqRedis", refuse)
    monkeypatch.setenv("SCHEDULER_REDIS_URL", NOBODY)
    monkeypatch.setenv("SCHEDULER_WORKER_NAME", "w7")
    settings: Any = worker_settings()
    assert settings.redis_pool is None
    assert (settings.redis_settings.host, settings.redis_settings.port) == ("127.0.0.1", 1)
    assert settings.health_check_key == f"ps:{{default}}:health:{socket.gethostname()}:w7"
    assert settings.health_check_interval == 10


def test_worker_processes_of_other_names_have_other_health_keys(
    checking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEDULER_REDIS_URL", NOBODY)
    keys = set()
    for name in ("a", "b"):
        monkeypatch.setenv("SCHEDULER_WORKER_NAME", name)
        keys.add(scheduler.WorkerSettings.health_check_key)
    assert len(keys) == 2


def test_arq_knows_every_setting(checking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """arq drops what it does not know in silence, and does not see what is inherited."""
    monkeypatch.setenv("SCHEDULER_REDIS_URL", NOBODY)
    settings = worker_settings()
    ours = {name for name in vars(settings) if not name.startswith("__")}
    assert ours <= set(inspect.signature(Worker.__init__).parameters)
    assert settings.__bases__ == (object,)


def test_a_wrong_setting_ends_with_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCHEDULER_MAX_RUNING", "3")
    with pytest.raises(SystemExit) as ended:
        worker_settings()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "SCHEDULER_MAX_RUNNING" in said


@pytest.mark.parametrize(("url", "code"), [(NOBODY, 1), ("redis://:sec/ret@host", 2)])
def test_without_redis_it_ends_with_one_line(
    url: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCHEDULER_REDIS_URL", url)
    monkeypatch.setenv("SCHEDULER_REDIS_WAIT_S", "0.1")
    with pytest.raises(SystemExit) as ended:
        worker_settings()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("prompt-scheduler: ")
    assert said.count("\n") == 1
    assert "ret@" not in said


async def test_a_second_run_joins_the_job_of_the_first() -> None:
    async with local_scheduler() as client:
        prompts = prompts_of(client)
        first = await prompts.run_prompt(context_of(), {"prompt": "once"})
        again = await prompts.run_prompt(context_of(), {"prompt": "once"})
        assert first["text"] == again["text"] == "once"
        done = await client.queue.redis.hget(client.queue.keys.fixed("meta"), "t:done")  # type: ignore[misc]  # redis-py has one type for sync and async
        assert done == b"1"
        assert orjson.dumps(first)


def test_an_arq_job_id_that_is_used_again_is_new_work() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    ids = [job_id_of(context_of("j1", at + timedelta(milliseconds=n))) for n in (0, 0, 1)]
    ids.append(job_id_of(context_of("j2", at)))
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


async def test_leaving_asks_arq_to_run_it_again_elsewhere() -> None:
    routes = {"echo": {"endpoints": [{"backend": "echo", "options": {"first_delay_s": 29.0}}]}}
    settings = scheduler.load_settings(environ={}, routes=routes)
    async with local_scheduler(settings) as client:
        prompts = prompts_of(client)
        running = asyncio.create_task(prompts.run_prompt(context_of(), {"prompt": "slow"}))
        async with asyncio.timeout(SOON_S):
            while not await client.queue.redis.pubsub_channels("*:ch:arq-*"):
                await asyncio.sleep(0.01)
        prompts.leave()
        with pytest.raises(ArqRetry):
            await asyncio.wait_for(running, SOON_S)
        with pytest.raises(ArqRetry):
            await prompts.run_prompt(context_of("j2"), {"prompt": "too late"})


async def test_a_wait_that_is_over_asks_arq_to_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_prompt, "WAIT_S", 0.05)
    async with local_scheduler() as client:
        prompts = prompts_of(client)
        with pytest.raises(ArqRetry):
            await prompts.run_prompt(context_of(), {"prompt": "later", "delay_s": 60.0})
        assert await client.queue.unfinished(["echo"]) == 1


async def test_arq_jobs_may_ask_for_other_kinds_of_work() -> None:
    kinds = {"v": {"kind": "embedding", "endpoints": [{"backend": "echo"}]}}
    settings = scheduler.load_settings(environ={}, routes=kinds)
    async with local_scheduler(settings) as client:
        prompts = prompts_of(client)
        result = await prompts.run_prompt(context_of(), {"kind": "embedding", "input": ["a", "b"]})
        assert len(result["embeddings"]) == 2
        with pytest.raises(InvalidRequest, match="kind: give one of"):
            await prompts.run_prompt(context_of("j2"), {"kind": "film", "input": "a"})


async def _begun(prompts: RunPrompt, client: scheduler.AsyncClient) -> asyncio.Task[dict[str, Any]]:
    """A run of `run_prompt` whose prompt is in the queue."""
    running = asyncio.create_task(prompts.run_prompt(context_of(), {"prompt": "later", "delay_s": 3600.0}))
    async with asyncio.timeout(SOON_S):
        while not await client.queue.redis.pubsub_channels("*:ch:arq-*"):
            await asyncio.sleep(0.01)
    return running


async def test_aborting_the_arq_job_cancels_the_prompt() -> None:
    async with local_scheduler() as client:
        running = await _begun(prompts_of(client), client)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await client.queue.unfinished(["echo"]) == 0


@pytest.mark.parametrize("why", ["leaving", "too long"])
async def test_a_run_that_ends_otherwise_leaves_the_prompt(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with local_scheduler() as client:
        prompts = prompts_of(client)
        running = await _begun(prompts, client)
        if why == "leaving":
            prompts.leave()
        else:
            monkeypatch.setattr(run_prompt, "TIMEOUT_S", 0.0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await client.queue.unfinished(["echo"]) == 1


async def test_before_the_start_a_prompt_waits() -> None:
    with pytest.raises(ArqRetry):
        await RunPrompt().run_prompt(context_of(), {"prompt": "x"})


@pytest.mark.parametrize("request_", ["just text", ["a"], None])
async def test_a_request_that_is_no_mapping_is_refused(request_: Any) -> None:
    async with local_scheduler() as client:
        prompts = prompts_of(client)
        with pytest.raises(InvalidRequest, match="one mapping"):
            await prompts.run_prompt(context_of(), request_)


@pytest.mark.parametrize(
    "error",
    [
        JobFailed("job x failed", job_id="x", reason="worker_timeout", attempts=3),
        InvalidRequest("prompt: is empty", field="prompt"),
        QueueFull("full", retry_after_s=2.5),
        DedupConflict("taken", job_id="x"),
        ResultTimeout("late"),
        RedisUnavailable("away"),
    ],
)
def test_errors_reach_the_arq_application_as_what_they_were(error: SchedulerError) -> None:
    stored = arq_jobs.encode({"f": "run_prompt", "a": [], "k": {}, "s": False, "r": error})
    assert orjson.loads(stored)["r"] == {"code": error.code, "message": str(error), **vars(error)}
    again = arq_jobs.decode(stored)["r"]
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_errors_of_any_kind_can_be_stored_and_read() -> None:
    assert orjson.loads(arq_jobs.encode(ValueError("no"))) == {"code": "ValueError", "message": "no"}
    assert orjson.loads(arq_jobs.encode(ValueError("\ud800")))["message"] == "\\ud800"
    again = arq_jobs.decode(arq_jobs.encode({"s": False, "r": ValueError("no")}))["r"]
    assert (type(again), str(again)) == (SchedulerError, "ValueError: no")
    with pytest.raises(TypeError):
        arq_jobs.encode(object())


async def test_stopping_ends_arqs_main_task_though_the_engine_fails_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        async def stop(self) -> None:
            raise RuntimeError("cannot stop")

    host = process_of()
    host._engine = Broken()  # type: ignore[assignment]  # stands in for the real one
    monkeypatch.setattr(process, "FAREWELL_S", 60.0)
    main = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(RuntimeError):
        await host._stop(main)
    with pytest.raises(asyncio.CancelledError):
        await main


async def test_arq_cannot_hold_up_the_end_while_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FAREWELL_S", 0.01)
    codes: list[int] = []
    left = asyncio.Event()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    monkeypatch.setattr(os, "_exit", leave)
    host = process_of()
    await host._stop(None)
    await asyncio.wait_for(left.wait(), SOON_S)
    assert codes == [0]


def test_prompts_stay_out_of_the_log_of_arq() -> None:
    job = arq_jobs.decode(
        arq_jobs.encode(
            {"f": "run_prompt", "a": [{"prompt": "secret"}, 1], "k": {"request": {"prompt": "secret"}}}
        )
    )
    assert job["a"][0] == {"prompt": "secret"}
    assert "secret" not in args_to_string(job["a"], job["k"])
    assert args_to_string(job["a"], job["k"]) == "…, 1, request=…"
