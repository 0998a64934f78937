"""The command line at a terminal, as people meet it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler import Client
from tests.acceptance.conftest import StartWorker, slow_echo
from tests.acceptance.terminal import Terminal

PROGRAM = [sys.executable, "-m", "scheduler"]
HOSTILE = "\x1b]0;mine\x07[red]red[/red]\n\x1b[2J\x9b31m\u202egnp"
AWAY_S = 30.0


Run = Callable[..., Terminal]


@pytest.fixture
def terminal(valkey_url: str) -> Iterator[Run]:
    """Start `prompt-scheduler` at a terminal, with a server."""
    started: list[Terminal] = []

    def start(*arguments: str, columns: int = 80, **environ: str | None) -> Terminal:
        command = (*PROGRAM, "--redis-url", valkey_url, *arguments)
        started.append(Terminal(*command, columns=columns, lines=24, **environ))
        return started[-1]

    yield start
    for one in started:
        with one:
            pass


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    with Client(valkey_url) as client:
        yield client


def commands_of(said: str) -> set[str]:
    """What in it would do something to a terminal, but for colours and the like of our own."""
    return {mark for mark in ("\x1b]0;", "\x1b[2J", "\x9b", "\u202e", "\x1b]8;", "\x07") if mark in said}


def test_what_others_say_commands_no_terminal(
    terminal: Run, client: Client, start_worker: StartWorker, valkey_url: str
) -> None:
    toml = slow_echo(0).replace("delay_s = 0", 'fail_text = "bad"')
    start_worker(valkey_url, toml=toml)
    answered = client.enqueue(HOSTILE, dedup_key=HOSTILE, dedup="window")
    answered.result(timeout_s=20)
    for arguments in (
        ("enqueue", HOSTILE),
        ("enqueue", HOSTILE, "--stream"),
        ("enqueue", HOSTILE, "--model", HOSTILE),
        ("subscribe", answered.id),
        ("subscribe", answered.id, "--json"),
        ("subscribe", HOSTILE),
        ("admin", "jobs", "show", answered.id),
        ("admin", "queue", "pause", HOSTILE),
    ):
        _, said = terminal(*arguments).end()
        assert commands_of(said) == set(), arguments
        assert "Traceback" not in said, arguments


def test_records_that_somebody_has_forged_command_no_terminal(
    terminal: Run, client: Client, valkey_url: str
) -> None:
    job = client.enqueue("hello")
    queue = client._client.queue

    async def forge() -> None:
        redis, keys = queue.redis, queue.keys
        await redis.hset(keys.fixed("routes"), HOSTILE, "{}")  # type: ignore[misc]  # redis-py has one type for sync and async
        await redis.hset(keys.of("record", job.id), mapping={"t": HOSTILE, "w": HOSTILE, "r": HOSTILE})  # type: ignore[misc]  # redis-py has one type for sync and async
        await redis.zadd(keys.fixed("workers"), {HOSTILE: 9e15})
        await redis.zadd(keys.fixed("dead"), {HOSTILE: 9e15})

    client._running.run(forge())
    for arguments in (
        ("admin", "jobs", "list"),
        ("admin", "jobs", "show", job.id),
        ("admin", "dead", "list"),
        ("admin", "workers", "list"),
        ("admin", "queue", "status"),
        ("admin", "top", "--once", "--interval", "100ms"),
        ("doctor",),
    ):
        _, said = terminal(*arguments, columns=200).end()
        assert commands_of(said) == set(), arguments
        assert "Traceback" not in said, arguments


def test_a_program_gets_the_answer_as_it_is(start_worker: StartWorker, valkey_url: str) -> None:
    start_worker(valkey_url)
    command = [*PROGRAM, "--redis-url", valkey_url, "enqueue", "a\tb \x1b[1mc\u202e"]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == "a\tb \x1b[1mc\u202e\n"
    )


def test_ctrl_c_on_a_file_says_what_is_where_and_how_to_go_on(
    terminal: Run, client: Client, start_worker: StartWorker, valkey_url: str, tmp_path: Path
) -> None:
    start_worker(valkey_url, toml=slow_echo(60, max_in_flight=2))
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text("".join(f'"number {n}"\n' for n in range(1500)))
    command = ("enqueue", "--file", str(requests), "--output", str(output))
    queue = client._client.queue

    async def enqueued() -> int:
        return int(await queue.redis.hget(queue.keys.fixed("meta"), "t:enqueued") or 0)  # type: ignore[misc]  # redis-py has one type for sync and async

    shown = terminal(*command, columns=40)
    shown.until("answering")
    while client._running.run(enqueued()) < 500:
        time.sleep(0.02)
    shown.type("\x03")
    code, said = shown.end()
    assert code == 130
    assert "Traceback" not in said
    taken = int(re.findall(r"Stopped: ([\d,]+) of 1,500 requests", said)[0].replace(",", ""))
    assert f"--skip {taken}" in said
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["index"] for one in lines] == list(range(taken))
    assert 500 <= taken < 1500
    assert {one["state"] for one in lines} == {"enqueued"}
    assert client.job(lines[-1]["job_id"]).info().model == "echo"

    terminal(*command, "--no-wait", "--skip", str(taken)).end()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["index"] for one in lines] == list(range(1500))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what a process has loaded")
@pytest.mark.parametrize("signals", ["SIGINT", "SIGINT SIGINT", "SIGINT SIGTERM", "SIGTERM SIGINT"])
@pytest.mark.parametrize("moment", ["pydantic_core", "hiredis"])
def test_a_signal_while_it_starts_leaves_no_traceback(valkey_url: str, moment: str, signals: str) -> None:
    script = str(Path(sys.executable).with_name("prompt-scheduler"))
    command = [script, "--redis-url", valkey_url, "enqueue", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while moment not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
        for name in signals.split():
            process.send_signal(signal.Signals[name])
        out, err = process.communicate(timeout=AWAY_S)
    assert (out, err) == ("", "")
    assert process.returncode in (130, 143, -signal.SIGTERM)


@pytest.mark.parametrize("command", [["--help"], ["admin", "jobs", "list", "--json"], ["doctor"]])
def test_a_pipe_that_nobody_reads_is_told_as_others_do(valkey_url: str, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [*PROGRAM, "--redis-url", valkey_url, *command]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_an_output_that_is_full_is_told_in_one_line(valkey_url: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*PROGRAM, "--redis-url", valkey_url, "admin", "queue", "status"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "prompt-scheduler: No space left on device\n")


def test_streams_may_be_closed(valkey_url: str) -> None:
    command = f"{' '.join(PROGRAM)} --redis-url {valkey_url} admin queue status"
    for closing in (">&-", "2>&- >/dev/null"):
        done = subprocess.run(["sh", "-c", f"{command} {closing}"], stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_table_fits_a_narrow_terminal_and_one_that_knows_no_unicode(terminal: Run, client: Client) -> None:
    job = client.enqueue("hello")
    for columns, environ in ((40, {}), (80, {}), (80, {"COLUMNS": "0"})):
        code, said = terminal("admin", "jobs", "list", columns=columns, NO_COLOR="1", **environ).end()
        assert code == 0
        assert job.id in said
        assert "0 before it" in " ".join(said.replace("\x1b[0m", "").split())
        assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in said.splitlines()) <= columns
    code, said = terminal(
        "admin", "top", "--once", "--interval", "100ms", PYTHONIOENCODING="ascii", NO_COLOR="1"
    ).end()
    assert code == 0
    assert said.isascii()
    assert "\\u" not in said


def test_where_nobody_reads_errors_the_exit_code_says_it(valkey_url: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*PROGRAM, "--redis-url", valkey_url, "enqueue", "x", "--model", "nothing"]
    assert subprocess.run(command, stderr=writing, check=False).returncode == 2
    os.close(writing)
