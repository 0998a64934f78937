"""The metrics of real worker processes."""

from __future__ import annotations

import re
import signal
import subprocess

import httpx

from scheduler import AsyncClient
from tests.acceptance.conftest import StartWorker, slow_echo, wait_for_line
from tests.patience import SOON_S


def metrics_url(process: subprocess.Popen[str]) -> str:
    """Where it says that its metrics are."""
    found = re.search(r"metrics are at (http://[^\s\"]+)", wait_for_line(process, "metrics are at"))
    assert found
    return found[1]


def sample(text: str, name: str) -> float | None:
    found = re.search(rf"^prompt_scheduler_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


async def test_two_processes_on_one_host_may_be_given_the_same_port(
    server_url: str, start_worker: StartWorker
) -> None:
    urls = []
    for _ in range(2):
        worker = start_worker(server_url, wait=False, SCHEDULER_METRICS_PORT="9464")
        urls.append(metrics_url(worker))
        wait_for_line(worker, " serves ")
    assert len(set(urls)) == 2
    async with AsyncClient(server_url) as client, httpx.AsyncClient(trust_env=False) as http:
        jobs = [await client.enqueue(f"prompt {n}", model="echo") for n in range(20)]
        for job in jobs:
            await job.result(timeout_s=SOON_S)
        texts = [(await http.get(url)).text for url in urls]
    done = [sample(text, 'attempts_total{lane="echo",outcome="done"}') or 0 for text in texts]
    assert sum(done) == 20
    exported = [sample(text, 'queue_ended_jobs_total{queue="default",state="done"}') for text in texts]
    assert sorted(exported, key=str) == [20.0, None]


async def test_metrics_are_there_until_the_last_job_is_done(
    server_url: str, start_worker: StartWorker
) -> None:
    worker = start_worker(server_url, toml=slow_echo(0.2), wait=False, SCHEDULER_METRICS_PORT="0")
    url = httpx.URL(metrics_url(worker))
    wait_for_line(worker, " serves ")
    async with AsyncClient(server_url) as client, httpx.AsyncClient(trust_env=False) as http:
        job = await client.enqueue("one two three four five six seven", model="echo")
        async for event in job.events():
            if event.type == "started":
                break
        worker.send_signal(signal.SIGTERM)
        wait_for_line(worker, "draining")
        ready = await http.get(url.copy_with(path="/readyz"))
        assert (ready.status_code, ready.json()["why"]) == (503, "it is stopping")
        text = (await http.get(url)).text
        assert (sample(text, "worker_draining"), sample(text, "worker_running_jobs")) == (1, 1)
        assert (await job.result(timeout_s=SOON_S)).finish_reason == "stop"
    assert worker.wait(SOON_S) == 0


def test_a_port_that_is_none_is_one_line_and_exit_code_2(server_url: str, start_worker: StartWorker) -> None:
    worker = start_worker(server_url, wait=False, SCHEDULER_METRICS_PORT="99999")
    assert worker.wait(SOON_S) == 2
    assert worker.stdout
    said = worker.stdout.read()
    assert "metrics_port" in said
    assert "Traceback" not in said
