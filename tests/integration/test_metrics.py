"""The metrics of a worker process and of the queue, scraped over HTTP and read as Prometheus reads them."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from scheduler import ConfigError, QueueFull, http_server
from scheduler.engine import Engine
from scheduler.queue.inspection.status import read_status
from scheduler.queue.inspection.workers import read_workers
from scheduler.telemetry import catalogue
from scheduler.telemetry.host import Telemetry
from scheduler.telemetry.worker_metrics import WorkerMetrics
from tests.integration.engine_room import (
    Room,
    install,
    puppet_of,
    puppet_route,
    settings_of,
    until,
)
from tests.patience import SOON_S
from workers.base import Completed, TokenUsage
from workers.errors import WorkerUnavailable

MARKER = "xyzzy-marker"


class Scrape:
    """What one scrape brought."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = list(text_string_to_metric_families(text))
        self.samples = [sample for one in families for sample in one.samples]
        self.families = {one.name for one in families}

    def known(self, name: str, **labels: str) -> float:
        """The same as `value()`, of what must be there."""
        value = self.value(name, **labels)
        assert value is not None, name
        return value

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of that name, without the prefix, that have these labels; None of none."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == catalogue.PREFIX + name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


class Watched:
    """An engine whose metrics can be scraped."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def get(self, path: str) -> httpx.Response:
        url = httpx.URL(self.engine.metrics_url).copy_with(path=path)
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.get(url)

    async def scrape(self) -> Scrape:
        answer = await self.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return Scrape(answer.text)


@asynccontextmanager
async def watched(room: Room, *, start: bool = True, **settings: Any) -> AsyncIterator[Watched]:
    made = settings_of(**{"metrics_port": 0, **settings})
    telemetry = Telemetry(made, instance="test")
    engine = await room.engine(made, start=False, observers=telemetry.observers)
    await telemetry.start(engine)
    try:
        if start:
            await engine.start()
            await until(lambda: engine.leads)
        yield Watched(engine)
    finally:
        await engine.stop(drain_s=0)
        await telemetry.stop()


async def answer(engine: Engine, text: str = "hi", usage: TokenUsage | None = None) -> None:
    call = await puppet_of(engine).next_call()
    call.say(text)
    call.outputs.put_nowait(Completed(0, "stop", usage or TokenUsage()))


async def test_figures_of_a_process_are_those_of_its_jobs_to_the_job(room: Room) -> None:
    async with watched(room, retry_base_s=0.0, max_attempts=2) as at:
        client = await room.client(at.engine.settings)
        for n in range(5):
            job = await client.enqueue(f"prompt {n}", model="echo", priority=7)
            await answer(at.engine, usage=TokenUsage(10, 3))
            await job.result(timeout_s=SOON_S)
        failing = await client.enqueue("no luck", model="echo")
        for _ in range(2):
            (await puppet_of(at.engine).next_call()).fail(WorkerUnavailable("gone"))
        with pytest.raises(Exception, match="gone"):
            await failing.result(timeout_s=SOON_S)
        cancelled = await client.enqueue("never mind", model="echo")
        await puppet_of(at.engine).next_call()
        await cancelled.cancel()
        await until(lambda: at.engine.running == 0)
        seen = await at.scrape()
        status = await read_status(client.queue)
    attempts = {
        outcome: seen.value("attempts_total", lane="echo", outcome=outcome)
        for outcome in ("done", "retried", "failed", "expired", "given_back", "lost")
    }
    assert attempts == {"done": 5, "retried": 1, "failed": 1, "expired": 0, "given_back": 0, "lost": 1}
    assert seen.value("claimed_jobs_total", lane="echo") == 8
    assert seen.value("errors_total", lane="echo", code="worker_unavailable") == 2
    assert seen.value("tokens_total", direction="input") == 50
    assert seen.value("tokens_total", direction="output") == 15
    assert seen.value("wait_seconds_count", lane="echo", priority="7") == 5
    assert seen.value("wait_seconds_count", lane="echo") == 8
    assert seen.value("end_to_end_seconds_count") == seen.value("overhead_seconds_count") == 5
    assert seen.value("time_to_first_token_seconds_count") == 5
    assert seen.value("stage_seconds_count", stage="inference") == 8
    assert seen.value("calls_total", endpoint="echo.0", result="ok") == 5
    assert seen.value("calls_total", endpoint="echo.0", result="failed") == 2
    assert seen.value("calls_total", endpoint="echo.0", result="given_up") == 1
    assert (
        seen.value("batches_total")
        == seen.value("batch_prompts_count")
        == seen.value("batch_prompts_sum")
        == 8
    )
    for state in ("done", "failed", "cancelled", "expired", "shed"):
        assert seen.value("queue_ended_jobs_total", state=state) == status.totals.get(state, 0)
    assert seen.value("queue_enqueued_jobs_total") == status.totals["enqueued"] == 7
    assert seen.value("queue_retried_attempts_total") == status.totals["retried"] == 1
    assert seen.value("queue_dead_jobs") == status.dead == 1


async def test_latencies_add_up(room: Room) -> None:
    async with watched(room) as at:
        client = await room.client(at.engine.settings)
        job = await client.enqueue("hello", model="echo")
        call = await puppet_of(at.engine).next_call()
        await asyncio.sleep(0.05)
        call.finish("hi")
        result = await job.result(timeout_s=SOON_S)
        await until(lambda: at.engine.running == 0)
        seen = await at.scrape()
    whole, waited = seen.known("end_to_end_seconds_sum"), seen.known("wait_seconds_sum")
    inference, added = seen.known("stage_seconds_sum", stage="inference"), seen.known("overhead_seconds_sum")
    first = seen.known("time_to_first_token_seconds_sum")
    assert added == pytest.approx(whole - waited - inference)
    assert 0.05 <= inference <= whole
    assert 0.05 <= first <= whole
    assert inference * 1000 == pytest.approx(result.timings.stages_ms["inference"], abs=0.01)
    assert seen.value("call_seconds_sum") == pytest.approx(inference, abs=0.02)


async def test_what_waits_is_exported_by_lane_and_level(room: Room) -> None:
    routes = {"echo": puppet_route(max_waiting=4), "other": puppet_route()}
    async with watched(room, routes=routes) as at:
        client = await room.client(at.engine.settings)
        for lane in ("echo", "other"):
            await client.queue.pause(lane)
        for priority in (9, 9, 1):
            await client.enqueue("wait", model="echo", priority=priority, dedup_key=f"{MARKER}-{priority}")
        await client.enqueue("later", model="other", delay_s=60)
        await client.enqueue("one more", model="echo", priority=0)
        await client.enqueue("and one", model="echo", priority=0)
        with pytest.raises(QueueFull):
            await client.enqueue("too much", model="echo")
        seen = await at.scrape()
        status = await read_status(client.queue)
    (echo,) = [lane for lane in status.lanes if lane.name == "echo"]
    levels = {p: seen.value("queue_waiting_jobs", lane="echo", priority=str(p)) for p in range(10)}
    assert levels == {**dict.fromkeys(range(10), 0), **echo.by_priority} | {9: 1, 1: 1, 0: 2}
    assert seen.value("queue_waiting_jobs", lane="other") == 0
    assert seen.value("queue_delayed_jobs", lane="other") == 1
    assert seen.value("queue_joined_prompts_total") == 1
    assert seen.value("queue_refused_prompts_total", bound="lane") == 1
    assert seen.value("queue_refused_prompts_total", bound="queue") == 0
    assert seen.value("queue_lane_max_waiting_jobs", lane="echo") == 4
    assert seen.value("queue_lane_max_waiting_jobs", lane="other") is None
    assert seen.value("queue_lane_paused", lane="echo") == 1
    assert seen.value("queue_work_seconds", lane="echo") == 0  # it is paused
    assert 0 <= (seen.value("queue_oldest_seconds", lane="echo") or -1) < 5


async def test_the_queue_is_exported_by_the_process_that_leads_alone(room: Room) -> None:
    async with watched(room) as first, watched(room, start=False) as second:
        await second.engine.start()
        client = await room.client(first.engine.settings)
        await until(lambda: second.engine.id != first.engine.id and not second.engine.leads)
        both = await first.scrape(), await second.scrape()
        assert [one.value("worker_leader") for one in both] == [1, 0]
        assert [one.value("queue_running_jobs") for one in both] == [0, None]
        await first.engine.stop()
        await client.queue.redis.delete(client.queue.keys.fixed("leader"))
        await until(lambda: second.engine.leads)
        assert (await second.scrape()).value("queue_worker_processes") == 1


async def test_all_that_is_exported_is_in_the_catalogue_with_its_labels(room: Room) -> None:
    async with watched(room) as at:
        client = await room.client(at.engine.settings)
        job = await client.enqueue("hello", model="echo")
        await answer(at.engine)
        await job.result(timeout_s=SOON_S)
        await until(lambda: at.engine.running == 0)
        seen = await at.scrape()
    specs = {spec.family: spec for spec in catalogue.ALL}
    ours = {name for name in seen.families if name.startswith(catalogue.PREFIX)}
    assert ours <= specs.keys()
    of_real_servers = {catalogue.REDIS_MEMORY.family, catalogue.REDIS_MEMORY_MAX.family}
    assert specs.keys() - ours == of_real_servers
    for sample in seen.samples:
        name = next((name for name in specs if sample.name.startswith(name)), None)
        if name is not None and sample.name.startswith(catalogue.PREFIX):
            longest = max((one for one in specs if sample.name.startswith(one)), key=len)
            assert set(sample.labels) - {"le"} == set(specs[longest].labels), sample.name


async def test_first_increase_of_a_count_is_one_that_prometheus_can_see(room: Room) -> None:
    async with watched(room) as at:
        seen = await at.scrape()
    assert seen.value("attempts_total", lane="echo", outcome="failed") == 0
    assert seen.value("calls_total", endpoint="echo.0", result="failed") == 0
    assert seen.value("endpoint_breaker_changes_total", endpoint="echo.0", state="open") == 0
    assert seen.value("queue_ended_jobs_total", state="failed") == 0


async def test_redis_going_away_takes_the_queue_with_it_and_leaves_the_process(room: Room) -> None:
    async with watched(room) as at:
        room.server.connected = False
        await until(lambda: at.engine.redis_is_away)
        seen, ready = await at.scrape(), await at.get("/readyz")
        assert (seen.value("redis_up"), seen.value("queue_running_jobs")) == (0, None)
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "why": "Redis is away"})
        assert (await at.get("/healthz")).status_code == 200
        room.server.connected = True
        await until(lambda: not at.engine.redis_is_away)
        assert (await at.scrape()).value("redis_up") == 1
        assert (await at.get("/readyz")).json() == {"ready": True, "why": ""}


async def test_a_process_is_ready_from_its_start_to_its_drain(room: Room) -> None:
    async with watched(room, start=False) as at:
        assert (await at.get("/readyz")).json()["why"] == "it is starting"
        await at.engine.start()
        assert (await at.get("/readyz")).status_code == 200
        await at.engine.stop()
        assert (await at.get("/readyz")).json()["why"] == "it is stopping"
        assert (await at.scrape()).value("worker_draining") == 1
        assert (await at.get("/metricz")).status_code == 404


async def test_no_text_of_prompts_keys_or_errors_is_exported(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loud:
        name = "loud"

        async def run(self, context: Any) -> None:
            raise ValueError(context.prompt)

    install(monkeypatch, "loud_stages", Loud=Loud)
    stages = ["loud_stages:Loud", "inference", "stream"]
    routes = {"echo": puppet_route(), "loud": puppet_route(stages=stages)}
    async with watched(room, routes=routes, max_attempts=1) as at:
        client = await room.client(at.engine.settings)
        job = await client.enqueue(
            MARKER,
            model="echo",
            session=MARKER,
            tenant=MARKER,
            dedup_key=MARKER,
            job_id=MARKER,
            metadata={MARKER: MARKER},
        )
        await answer(at.engine, MARKER)
        await job.result(timeout_s=SOON_S)
        loud = await client.enqueue(MARKER, model="loud")
        with pytest.raises(Exception, match="in a stage"):
            await loud.result(timeout_s=SOON_S)
        await until(lambda: at.engine.running == 0)
        seen = await at.scrape()
    assert seen.value("errors_total", lane="loud", code="internal_error") == 1
    assert MARKER not in seen.text


async def test_made_up_error_codes_are_bounded(room: Room) -> None:
    telemetry = Telemetry(settings_of(metrics_port=0), instance="test")
    (metrics,) = telemetry.observers
    assert isinstance(metrics, WorkerMetrics)
    codes = {metrics._code(f"code_{n}") for n in range(500)}
    assert len(codes) == 101
    assert "other" in codes


async def test_a_port_that_is_taken_is_left_to_who_has_it(room: Room) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with watched(room, start=False, metrics_port=port) as at:
            url = httpx.URL(at.engine.metrics_url)
            assert url.port is not None
            assert port < url.port < port + 64
            assert (await at.get("/healthz")).text == "ok\n"


@pytest.mark.parametrize(
    "said", [b"", b"GET /metrics HTTP/1.1\r\nX-Slow: ", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_a_client_that_says_no_more_is_left(
    room: Room, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(http_server, "REQUEST_S", 0.2)
    async with watched(room) as at:
        url = httpx.URL(at.engine.metrics_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(said)
        async with asyncio.timeout(SOON_S):
            with suppress(ConnectionResetError):
                while await reader.read(1024):
                    pass
        writer.close()
        assert (await at.get("/healthz")).text == "ok\n"


async def test_more_connections_than_there_may_be_are_closed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    async with watched(room) as at:
        url = httpx.URL(at.engine.metrics_url)
        kept = [await asyncio.open_connection(url.host, url.port) for _ in range(2)]
        with pytest.raises(httpx.TransportError):
            await at.get("/healthz")
        for _, writer in kept:
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()
        give_up_at = time.monotonic() + SOON_S
        while True:
            with suppress(httpx.TransportError):
                assert (await at.get("/healthz")).text == "ok\n"
                break
            assert time.monotonic() < give_up_at


async def test_a_host_that_is_not_this_machine_is_a_mistake_in_the_settings(room: Room) -> None:
    with pytest.raises(ConfigError, match=r"metrics_host, metrics_port: cannot listen on 192\.0\.2\.1:"):
        async with watched(room, start=False, metrics_host="192.0.2.1", metrics_port=9464):
            pass
    with pytest.raises(ConfigError, match=r"metrics_host.*nowhere\.invalid"):
        async with watched(room, start=False, metrics_host="nowhere.invalid"):
            pass


async def test_where_the_metrics_are_stands_in_the_list_of_processes(room: Room) -> None:
    async with watched(room) as at:
        client = await room.client(at.engine.settings)
        (worker,) = await read_workers(client.queue)
        assert worker.metrics_url == at.engine.metrics_url


@pytest.fixture
def without_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prometheus_client", "scheduler.telemetry.worker_metrics"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_extra_is_named(without_prometheus: None) -> None:
    with pytest.raises(ConfigError, match=r"metrics_port: .*pip install 'prompt-scheduler\[metrics\]'"):
        Telemetry(settings_of(metrics_port=0), instance="test")
    assert Telemetry(settings_of(), instance="test").observers == []
