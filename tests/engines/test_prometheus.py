"""A real Prometheus that scrapes two worker processes during a run on a real engine: to the job."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scheduler import (
    AsyncClient,
    Delta,
    Job,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobInfo,
    JobResult,
    PromptRequest,
    QueueFull,
)
from scheduler.queue.inspection.status import read_status
from scheduler.queue.reports import QueueStatus
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.supervisor import free_port
from tests.acceptance.conftest import wait_for_line
from tests.engines.conftest import StartServer
from tests.patience import SOON_S

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules.yaml"
SLOTS, SLOT_TOKENS = 4, 2048
PROMPTS, TWINS, TOO_LONG, FLAKY = 300, 40, 4, 12
TWO_TOKENS: dict[str, Any] = {"params": {"max_tokens": 2}}


class Prometheus:
    """A running Prometheus, asked by its HTTP API."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=5.0, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, query: str) -> dict[tuple[str, ...], float]:
        """The value of each series by its labels, in the order of their names."""
        reply = self._http.get("/api/v1/query", params={"query": query}).json()
        assert reply["status"] == "success", reply
        return {
            tuple(value for name, value in sorted(one["metric"].items()) if name != "__name__"): float(
                one["value"][1]
            )
            for one in reply["data"]["result"]
        }

    def number(self, query: str) -> float:
        """The value of the only series."""
        (value,) = self.query(query).values()
        return value

    def rules(self) -> list[dict[str, Any]]:
        """All rules, as they were last evaluated."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def wait_until(self, true: Callable[[], bool], what: str, timeout_s: float = SOON_S) -> None:
        """Return once it is true. Prometheus has no way to say when it has scraped, so this asks."""
        give_up_at = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.05)

    def wait_for_scrapes(self, instances: int) -> None:
        """Return once this many targets that are up have been scraped again, from begin to end."""
        now = time.time()
        self.wait_until(
            lambda: sum(at > now for at in self.query("timestamp(up) and up == 1").values()) == instances,
            f"{instances} targets scraped after {now}",
        )


@dataclass
class Run:
    """Two worker processes under load, and what was seen of them."""

    url: str
    prometheus: Prometheus
    workers: dict[str, subprocess.Popen[str]]  # by instance, "127.0.0.1:9464"
    results: dict[str, JobResult] = field(default_factory=dict)  # by job
    infos: dict[str, JobInfo] = field(default_factory=dict)
    joined: int = 0
    refused: int = 0
    paused: QueueStatus | None = None
    waiting_while_paused: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    status: QueueStatus | None = None
    admin: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)

    def ended(self, state: str) -> int:
        """How many jobs ended so, by their records."""
        return sum(info.state.value == state for info in self.infos.values())


@pytest.fixture(scope="module")
def observed(
    prometheus_binary: Path,
    valkey_binary: Path,
    start_llama_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    """The run; all processes are still there."""
    folder = tmp_path_factory.mktemp("prometheus")
    engine = start_llama_server(slots=SLOTS, slot_tokens=SLOT_TOKENS)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(binary=valkey_binary))
        workers: dict[str, subprocess.Popen[str]] = {}
        port = free_port()
        for _ in range(2):
            process = _start_worker(folder, server.url, engine.base_url, port)
            stack.callback(_kill, process)
            line = wait_for_line(process, "metrics are at ")
            workers[_instance(line)] = process
            wait_for_line(process, " serves ")
        prometheus = stack.enter_context(
            closing(_start_prometheus(stack, prometheus_binary, folder, list(workers)))
        )
        run = Run(server.url, prometheus, workers)
        prometheus.wait_for_scrapes(2)
        asyncio.run(_carry_out(run))
        yield run


def _start_worker(folder: Path, url: str, engine: str, port: int) -> subprocess.Popen[str]:
    config = folder / "scheduler.toml"
    config.write_text(
        f"""
        max_waiting = 1000
        retry_base_s = 0.01
        lease_s = 8  # a leader is followed after 2 s, when its last scrape is out of date

        [[routes.chat.endpoints]]
        backend = "llama_cpp"
        model = "tiny"
        base_url = "{engine}"

        [routes.side]
        max_waiting = 6
        [[routes.side.endpoints]]
        backend = "llama_cpp"
        model = "tiny"
        base_url = "{engine}"

        [[routes.flaky.endpoints]]
        backend = "echo"
        options = {{ failure_rate = 0.5 }}
        breaker = {{ failures = 1000, min_calls = 1000 }}
        """
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SCHEDULER_")}
    return subprocess.Popen(
        [sys.executable, "-m", "arq", "scheduler.WorkerSettings"],
        env=environ
        | {
            "SCHEDULER_REDIS_URL": url,
            "SCHEDULER_CONFIG": str(config),
            "SCHEDULER_METRICS_PORT": str(port),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _instance(line: str) -> str:
    found = re.search(r"http://(\S+)/metrics", line)
    assert found, line
    return found[1]


def _start_prometheus(stack: ExitStack, binary: Path, folder: Path, targets: list[str]) -> Prometheus:
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "prompt-scheduler", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    at = f"127.0.0.1:{free_port()}"
    command = [
        str(binary),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={at}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    stack.callback(_kill, process)
    prometheus = Prometheus(f"http://{at}")
    prometheus.wait_until(prometheus.ready, "Prometheus is ready")
    return prometheus


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(10)
    if process.stdout:
        process.stdout.close()


async def _carry_out(run: Run) -> None:
    async with AsyncClient(run.url) as client:
        await client.queue.pause("side")
        waiting = await _fill_the_paused_lane(run, client)
        jobs = await _send(run, client)
        cancelled = await _cancel_while_it_runs(client)
        await _see_the_paused_lane(run, client)
        assert await waiting[4].cancel()
        await client.queue.resume("side")
        await asyncio.gather(*(_end_of(run, job) for job in {*jobs, *waiting, cancelled}))
        await asyncio.to_thread(_settle, run)
        run.status = await read_status(client.queue)
    run.admin = json.loads(await asyncio.to_thread(_admin, run.url, "queue", "status", "--json"))
    for instance in run.workers:
        run.pages[instance] = httpx.get(f"http://{instance}/metrics", trust_env=False).text


async def _fill_the_paused_lane(run: Run, client: AsyncClient) -> list[Job]:
    """Six jobs, as many as fit; one passes its deadline. Two more are refused, and four are delayed."""
    outcomes = await client.enqueue_many(
        [
            *(
                PromptRequest(prompt=f"{n}", model="side", priority=priority, params={"max_tokens": 4})
                for n, priority in enumerate((9, 5, 5, 1, 7))
            ),
            PromptRequest(prompt="too late", model="side", deadline_s=0.2),
            PromptRequest(prompt="refused", model="side"),
            PromptRequest(prompt="refused too", model="side"),
        ]
    )
    jobs = [one for one in outcomes if isinstance(one, Job)]
    run.refused = sum(isinstance(one, QueueFull) for one in outcomes)
    later = PromptRequest(prompt="tomorrow", model="chat", delay_s=86_400)
    for job in await client.enqueue_many([later] * 4):
        assert isinstance(job, Job)
        run.infos[job.id] = await job.info()
    await _end_of(run, jobs[5])
    return jobs


async def _send(run: Run, client: AsyncClient) -> list[Job]:
    """Prompts of all kinds, some of them twice, some too long for the engine; and some that need luck."""

    def prompt(n: int) -> PromptRequest:
        return PromptRequest(
            prompt=f"Prompt number {n}",
            model="chat",
            priority=(1, 3, 5, 7, 9)[n % 5],
            dedup_key=f"key {n}",
            params={"max_tokens": 1 + n % 8, "seed": n},
        )

    requests = [prompt(n) for n in range(PROMPTS)]
    requests += [prompt(PROMPTS - 1 - n) for n in range(TWINS)]
    requests += [PromptRequest(prompt="x y " * SLOT_TOKENS, model="chat")] * TOO_LONG
    requests += [PromptRequest(prompt=f"flaky {n}", model="flaky") for n in range(FLAKY)]
    jobs = [job for job in await client.enqueue_many(requests) if isinstance(job, Job)]
    assert len(jobs) == len(requests)
    run.joined = sum(job.deduplicated for job in jobs)
    return jobs


async def _cancel_while_it_runs(client: AsyncClient) -> Job:
    job = await client.enqueue("on and on", model="chat", priority=9, params={"max_tokens": 1500})
    async for event in job.events():
        if isinstance(event, Delta):
            break
    assert await job.cancel()
    return job


async def _see_the_paused_lane(run: Run, client: AsyncClient) -> None:
    run.paused = await read_status(client.queue)
    await asyncio.to_thread(run.prometheus.wait_for_scrapes, 2)
    run.waiting_while_paused = await asyncio.to_thread(
        run.prometheus.query, 'max by (lane, priority) (prompt_scheduler_queue_waiting_jobs{lane="side"})'
    )


async def _end_of(run: Run, job: Job) -> None:
    with suppress(JobCancelled, JobExpired, JobFailed):
        run.results[job.id] = await job.result(timeout_s=60)
    run.infos[job.id] = await job.info()


def _settle(run: Run) -> None:
    """Return once Prometheus has what the processes counted last."""
    running = "sum(prompt_scheduler_worker_running_jobs) + max(prompt_scheduler_queue_running_jobs)"
    run.prometheus.wait_for_scrapes(2)
    run.prometheus.wait_until(lambda: run.prometheus.number(running) == 0, "nothing runs any more")
    run.prometheus.wait_for_scrapes(2)


def _admin(url: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "--redis-url", url, "admin", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_second_process_has_taken_the_next_port(observed: Run) -> None:
    first, second = (int(instance.rpartition(":")[2]) for instance in observed.workers)
    assert first < second <= first + 63
    assert set(observed.prometheus.query("sum by (instance) (up)").values()) == {1.0}


@pytest.mark.parametrize("source", ["read_status", "admin queue status --json"])
def test_figures_of_the_queue_are_those_of_its_status(observed: Run, source: str) -> None:
    assert observed.status is not None
    status = observed.status.model_dump() if source == "read_status" else observed.admin
    totals: dict[str, int] = status["totals"]

    def total(metric: str) -> float:
        return observed.prometheus.number(f"sum(max without (instance) (prompt_scheduler_queue_{metric}))")

    assert total("enqueued_jobs_total") == totals["enqueued"]
    assert total("joined_prompts_total") == totals["joined"]
    assert total("refused_prompts_total") == totals["refused"]
    assert total("retried_attempts_total") == totals["retried"]
    assert total("lost_leases_total") == totals.get("lost", 0)
    for state in ("done", "failed", "cancelled", "expired", "shed"):
        assert total(f'ended_jobs_total{{state="{state}"}}') == totals.get(state, 0), state
    for name in ("waiting", "delayed", "held"):
        assert total(f"{name}_jobs") == status[name], name
    for name in ("running", "dead", "finished"):
        assert total(f"{name}_jobs") == status[name], name
    assert total("worker_processes") == status["workers"] == 2
    assert total("max_waiting_jobs") == status["max_waiting"] == 1000


def test_figures_of_the_queue_are_those_of_what_was_sent_and_came_back(observed: Run) -> None:
    query = observed.prometheus.number
    assert query("max(prompt_scheduler_queue_enqueued_jobs_total)") == len(observed.infos)
    assert query("max(prompt_scheduler_queue_joined_prompts_total)") == observed.joined > 0
    refused = observed.prometheus.query("max by (bound) (prompt_scheduler_queue_refused_prompts_total)")
    assert refused == {("lane",): observed.refused, ("queue",): 0}
    assert observed.refused == 2
    assert observed.ended("cancelled") == 2, "one while it ran, one while it waited"
    for state in ("done", "failed", "cancelled", "expired"):
        ended = query(f'max(prompt_scheduler_queue_ended_jobs_total{{state="{state}"}})')
        assert ended == observed.ended(state) > 0, state
    assert observed.ended("done") == len(observed.results)


def test_figures_of_both_processes_add_up_to_those_of_the_jobs(observed: Run) -> None:
    attempts = {
        outcome: n
        for (outcome,), n in observed.prometheus.query(
            "sum by (outcome) (prompt_scheduler_attempts_total)"
        ).items()
    }
    assert observed.status is not None
    assert attempts["done"] == len(observed.results)
    assert attempts["failed"] == observed.ended("failed") >= TOO_LONG
    assert attempts["retried"] == observed.status.totals["retried"] > 0
    assert attempts["lost"] == 1, "the one that was cancelled while it ran"
    made = sum(info.attempts for info in observed.infos.values())
    assert sum(attempts.values()) == made
    assert observed.prometheus.number("sum(prompt_scheduler_claimed_jobs_total)") == made
    assert set(observed.prometheus.query("sum by (instance) (prompt_scheduler_claimed_jobs_total) > 0")) == {
        (instance,) for instance in observed.workers
    }, "both have worked"

    usages = [result.usage for result in observed.results.values()]
    tokens = observed.prometheus.query("sum by (direction) (prompt_scheduler_tokens_total)")
    assert tokens == {
        ("input",): sum(usage.input_tokens or 0 for usage in usages),
        ("output",): sum(usage.output_tokens or 0 for usage in usages),
    }
    codes = Counter(info.error.code for info in observed.infos.values() if info.error)
    errors = observed.prometheus.query("sum by (code) (prompt_scheduler_errors_total)")
    assert errors[("context_overflow",)] == codes["context_overflow"] == TOO_LONG


@pytest.mark.parametrize(
    ("histogram", "counted"),
    [
        ("end_to_end_seconds", "done"),
        ("overhead_seconds", "done"),
        ("wait_seconds", "claimed"),
    ],
)
def test_a_histogram_has_counted_each_job_once(observed: Run, histogram: str, counted: str) -> None:
    made = sum(info.attempts for info in observed.infos.values())
    expected = {"done": len(observed.results), "claimed": made}[counted]
    name = f"prompt_scheduler_{histogram}"
    assert observed.prometheus.number(f"sum({name}_count)") == expected
    assert observed.prometheus.number(f'sum({name}_bucket{{le="+Inf"}})') == expected


def test_waiting_jobs_of_a_paused_lane_are_seen_by_priority(observed: Run) -> None:
    assert observed.paused is not None
    (side,) = [lane for lane in observed.paused.lanes if lane.name == "side"]
    assert side.by_priority == {9: 1, 7: 1, 5: 2, 1: 1}
    assert observed.waiting_while_paused == {
        ("side", str(priority)): side.by_priority.get(priority, 0) for priority in range(10)
    }
    assert observed.prometheus.query("max by (lane) (prompt_scheduler_queue_delayed_jobs) > 0") == {
        ("chat",): 4
    }


def test_exactly_one_process_exports_the_queue_at_any_moment(observed: Run) -> None:
    exporters = "count by (queue) (prompt_scheduler_queue_running_jobs)"
    for extreme in ("min", "max"):
        assert observed.prometheus.query(f"{extreme}_over_time({exporters}[10m:500ms])") == {("default",): 1}
    leaders = observed.prometheus.query("prompt_scheduler_worker_leader == 1")
    exporting = observed.prometheus.query("count by (instance) (prompt_scheduler_queue_running_jobs)")
    assert {instance for instance, _ in leaders} == {instance for (instance,) in exporting}


def test_promtool_finds_nothing_to_say_about_the_metrics(observed: Run, promtool: Path) -> None:
    leading = [page for page in observed.pages.values() if "prompt_scheduler_queue_running_jobs{" in page]
    assert len(leading) == 1
    for page in observed.pages.values():
        assert "prompt_scheduler_end_to_end_seconds_bucket{" in page
        check = subprocess.run(
            [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
        )
        assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_every_rule_is_evaluated_and_none_gives_alarm(observed: Run) -> None:
    rules = observed.prometheus.rules()
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    # Two prompts were refused, on purpose: for a minute that is no alarm yet.
    assert firing - {"PromptSchedulerPromptsRefused"} == set()


def test_a_killed_leader_is_followed_by_the_other_and_the_figures_go_on(observed: Run) -> None:
    prometheus = observed.prometheus
    before = prometheus.number("max(prompt_scheduler_queue_enqueued_jobs_total)")
    done = prometheus.number('max(prompt_scheduler_queue_ended_jobs_total{state="done"})')
    ((leader, _),) = prometheus.query("prompt_scheduler_worker_leader == 1")
    (other,) = set(observed.workers) - {leader}
    observed.workers[leader].kill()
    prometheus.wait_until(lambda: prometheus.number(f'up{{instance="{leader}"}}') == 0, "it is down")
    prometheus.wait_until(
        lambda: (other,) in prometheus.query("count by (instance) (prompt_scheduler_queue_running_jobs)"),
        "the other exports the queue",
    )
    asyncio.run(_run_twenty_more(observed.url))
    prometheus.wait_for_scrapes(1)
    exporting = prometheus.query("count by (instance) (prompt_scheduler_queue_running_jobs)")
    assert exporting == {(other,): 1}
    assert prometheus.number("max(prompt_scheduler_queue_enqueued_jobs_total)") == before + 20
    assert prometheus.number('max(prompt_scheduler_queue_ended_jobs_total{state="done"})') == done + 20
    recorded = 'queue:prompt_scheduler_queue_ended_jobs:max{state="done"}'
    prometheus.wait_until(lambda: prometheus.number(recorded) == done + 20, "the rule has recorded it")
    assert prometheus.number(f"resets({recorded}[10m])") == 0, "one line, whoever leads"
    exporters = "max_over_time(count by (queue) (prompt_scheduler_queue_running_jobs)[10m:500ms])"
    assert prometheus.number(exporters) == 1
    pending = 'ALERTS{alertname="PromptSchedulerWorkerDown", alertstate="pending"}'
    prometheus.wait_until(lambda: len(prometheus.query(pending)) == 1, "an alert for the killed one begins")


async def _run_twenty_more(url: str) -> None:
    async with AsyncClient(url) as client:
        await asyncio.gather(
            *(
                client.run(f"more {n}", model="chat", params={"max_tokens": 2}, timeout_s=60)
                for n in range(20)
            )
        )


def test_promtool_accepts_the_rules_and_the_example_configurations(promtool: Path) -> None:
    _check(promtool, "check", "rules", RULES)
    for config in PROMETHEUS.glob("prometheus*.yaml"):
        _check(promtool, "check", "config", config)


def test_promtool_accepts_the_part_for_kubernetes(promtool: Path, tmp_path: Path) -> None:
    head, _, kubernetes = (PROMETHEUS / "prometheus.yaml").read_text().partition("  # Kubernetes:")
    lines = [line.replace("  # ", "  ", 1) for line in kubernetes.splitlines() if line.startswith("  # ")]
    loaded = yaml.safe_load(head.partition("scrape_configs:")[0] + "scrape_configs:\n" + "\n".join(lines))
    (job,) = loaded["scrape_configs"]
    # Debian builds Prometheus without the discovery of pods; what becomes of the pods can be checked.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    assert len(job["relabel_configs"]) == 4
    config = tmp_path / "prometheus.yaml"
    config.write_text(yaml.safe_dump(loaded))
    shutil.copy(RULES, tmp_path)
    _check(promtool, "check", "config", config)


def test_each_alert_fires_when_it_should_and_not_otherwise(promtool: Path) -> None:
    _check(promtool, "test", "rules", PROMETHEUS / "rules_test.yaml")


def _check(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
