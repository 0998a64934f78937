"""`prompt-scheduler admin top` as somebody watches a real queue: at a terminal, in a pipe, from a script."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from scheduler import Client, JobFailed, PromptRequest
from tests.acceptance.conftest import StartWorker
from tests.acceptance.terminal import CURSOR_SHOWN, GIVEN_BACK, TAKEN, Terminal
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

PROGRAM = [sys.executable, "-m", "scheduler"]
REFUSING = '[[routes.echo.endpoints]]\nbackend = "echo"\noptions = { fail_text = "forbidden" }\n'
SECRET = "forbidden-and-secret"


def top(url: str, *arguments: str) -> list[str]:
    return [*PROGRAM, "--redis-url", url, "admin", "top", "--interval", "100ms", *arguments]


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(top(url, *arguments), capture_output=True, text=True, timeout=SOON_S, check=False)


@pytest.fixture
def lone(valkey_binary: Path, tmp_path: Path) -> Iterator[LoneServer]:
    server = LoneServer(valkey_binary, tmp_path)
    asyncio.run(server.start())
    yield server
    server.kill()


@pytest.fixture
def busy_url(valkey_url: str, start_worker: StartWorker) -> str:
    """A queue with a worker process, a job that failed, and one that waits in a paused lane."""
    start_worker(valkey_url, toml=REFUSING, SCHEDULER_LEASE_S="3")
    with Client(valkey_url) as client:
        job = client.enqueue(SECRET)
        with pytest.raises(JobFailed):
            job.result(timeout_s=SOON_S)
        subprocess.run([*PROGRAM, "--redis-url", valkey_url, "admin", "queue", "pause", "echo"], check=True)
        client.enqueue(SECRET, priority=7)
    return valkey_url


def test_one_whole_picture_in_a_pipe(busy_url: str) -> None:
    done = run(busy_url, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert not re.search(r" $", done.stdout, re.MULTILINE), "nothing is filled up"
    for said in (
        r"^ bound +1 +■·+  of 100,000, then reject$",
        r"^ running 0 of 256   delayed 0   held 0   dead 1   workers 1   redis [\d.]+ MiB",
        r"^ enqueued +0/s ",
        r"^ LANE +WAITING +7 ",
        r"^ echo +1  ■{40}  +1 .* paused$",
        r"^ echo\.0 +echo +0 of 256 +·+  closed$",
        r"^ \S+:\d+:\S+ .* 0 of 256 .* leader$",
        r"^ [0-9a-f-]{36} +\S+ s  echo   request_rejected  echo: the prompt has the text that ",
    ):
        assert re.search(said, done.stdout, re.MULTILINE), (said, done.stdout)
    assert SECRET not in done.stdout


def test_one_document(busy_url: str) -> None:
    done = run(busy_url, "--once", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["status"]["waiting"] == 1
    assert said["rates"]["enqueued"] == 0
    assert said["away"] is None
    assert [one["code"] for one in said["dead_letters"]] == ["request_rejected"]
    assert SECRET not in done.stdout
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    keys = {*said, *said["memory"], *said["dead_letters"][0], *said["waits"], "jobs", "median_s", "longest_s"}
    assert {key for key in keys if f"`{key}`" not in documented} == set()


def test_json_lines_tell_what_changes(valkey_url: str) -> None:
    with subprocess.Popen(
        top(valkey_url, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["status"]["waiting"] == 0
        with Client(valkey_url) as client:
            client.enqueue_many([PromptRequest(prompt="one"), PromptRequest(prompt="two")])
        rates = []
        for line in process.stdout:
            said = json.loads(line)
            rates.append((said["rates"] or {}).get("enqueued", 0))
            if said["status"]["waiting"] == 2:
                break
        assert rates[-1] > 0
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, err) == (130, "")


def test_without_a_terminal_it_is_a_line_a_look_that_bears_an_outage(lone: LoneServer) -> None:
    with subprocess.Popen(
        top(lone.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        first = process.stdout.readline()
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d  waiting 0  oldest .*  enqueued 0/s  done 0/s  failed 0/s\n", first
        )
        lone.kill()
        for line in process.stdout:
            if "Redis is away: no Redis answers at redis://127.0.0.1" in line:
                break
        asyncio.run(lone.start())
        for line in process.stdout:
            if "  waiting 0  " in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, err) == (143, "")
    assert "Traceback" not in rest


def test_q_leaves_and_the_terminal_is_as_it_was(busy_url: str) -> None:
    with Terminal(*top(busy_url)) as terminal:
        began = terminal.expect("request_rejected")
        assert TAKEN in began
        assert "q quits  p freezes" in began
        terminal.type("xq")
        assert terminal.given_back() == 0
        assert terminal.rest.strip() == "", "it leaves nothing behind"


@pytest.mark.parametrize(("typed", "code"), [("\x03", 130), (None, 143)])
def test_a_signal_gives_the_terminal_back(valkey_url: str, typed: str | None, code: int) -> None:
    with Terminal(*top(valkey_url)) as terminal:
        terminal.expect("no lane yet")
        if typed is None:
            terminal.process.send_signal(signal.SIGTERM)
        else:
            terminal.type(typed)
        assert terminal.given_back() == code
        assert terminal.rest.strip() == ""


def test_a_trouble_that_does_not_pass_is_one_line_in_a_terminal_that_is_as_it_was(valkey_url: str) -> None:
    with Terminal(*top(valkey_url)) as terminal, redis.Redis.from_url(valkey_url) as server:
        terminal.expect("no lane yet")
        server.set("ps:{default}:meta", "no hash")
        assert terminal.given_back() == 1
        assert re.fullmatch(r"prompt-scheduler: .*WRONGTYPE.*", terminal.rest.strip()), terminal.rest


def test_ctrl_z_gives_the_terminal_back_until_fg(valkey_url: str) -> None:
    quoted = " ".join(f"'{word}'" for word in top(valkey_url))
    shell = ["bash", "-c", f"set -m; {quoted}; echo stopped with $?; fg; echo ended with $?"]
    with Terminal(*shell) as terminal:
        terminal.expect("no lane yet")
        terminal.type("\x1a")
        terminal.expect(re.escape(CURSOR_SHOWN) + ".*" + re.escape(GIVEN_BACK) + ".*stopped with 148")
        terminal.expect(re.escape(TAKEN) + ".*no lane yet")
        terminal.type("q")
        terminal.expect(re.escape(GIVEN_BACK) + ".*ended with 0")


@pytest.mark.parametrize("key", ["p", " "])
def test_a_frozen_picture_stays_until_it_is_resumed(valkey_url: str, key: str) -> None:
    with Terminal(*top(valkey_url)) as terminal, Client(valkey_url) as client:
        terminal.expect("no lane yet")
        terminal.type(key)
        terminal.expect("frozen, p resumes")
        client.enqueue("hello", model="echo")
        terminal.resize(100, 30)  # it is drawn anew, and is the same
        assert " echo " not in terminal.expect("frozen, p resumes.*no lane yet")
        terminal.type(key)
        terminal.expect(" echo ")
        terminal.type("q")
        assert terminal.given_back() == 0


def test_picture_follows_the_size_of_the_terminal(busy_url: str) -> None:
    with Terminal(*top(busy_url, "--interval", "1h"), columns=80, lines=24) as terminal:
        drawn = terminal.expect("…[0-9a-f]{11} [^\n]*request_rejected[^\n]*\n")
        assert _columns(drawn) == 80
        terminal.resize(130, 40)
        drawn = terminal.expect("[0-9a-f-]{36} [^\n]*request_rejected[^\n]*\n")
        assert _columns(drawn) == 130
        terminal.type("q")
        assert terminal.given_back() == 0


def _columns(drawn: str) -> int:
    """How wide the last picture is."""
    return max(map(len, drawn.rpartition("\x1b[H")[2].replace("\r", "").split("\n")))


def test_it_waits_for_redis_and_goes_on(lone: LoneServer) -> None:
    with Terminal(*top(lone.url)) as terminal:
        terminal.expect("no lane yet")
        lone.kill()
        terminal.expect("Redis is away: no Redis answers.*no lane yet")
        asyncio.run(lone.start())
        with Client(lone.url) as client:
            client.enqueue("hello", model="echo")
        terminal.expect(r"queue \S*default")
        terminal.expect(" echo ")
        terminal.type("q")
        assert terminal.given_back() == 0


def test_keys_are_heard_while_redis_is_silent(lone: LoneServer) -> None:
    with Terminal(*top(lone.url)) as terminal:
        terminal.expect("no lane yet")
        lone.send_signal(signal.SIGSTOP)
        try:
            terminal.expect("Redis is away")
            terminal.type("q")
            assert terminal.given_back() == 0
        finally:
            lone.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("flag", ["--once", "--json"])
def test_a_redis_that_was_never_there_is_one_line(flag: str) -> None:
    done = run("redis://127.0.0.1:1", flag)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"prompt-scheduler: no Redis answers at .*\n", done.stderr)
