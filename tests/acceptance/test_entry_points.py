"""`worker`, `dev` and `doctor` read one configuration, and agree on it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from scheduler import Client, Delta
from scheduler.redis_server.embedded import EmbeddedServer
from tests.acceptance.conftest import StartWorker

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(sys.executable).with_name("prompt-scheduler"))
ECHO = '[[routes.chat.endpoints]]\nbackend = "echo"\n'
OWN_STAGE = '[routes.chat]\nstages = ["my_stages:Shout", "inference", "post", "stream"]\n' + ECHO
STAGE = """
class Shout:
    name = "shout"

    async def run(self, context):
        context.prompt = context.prompt.upper()
"""
COMMANDS = [("worker",), ("dev",), ("doctor",)]


def start(folder: Path, *arguments: str, toml: str, url: str) -> subprocess.Popen[str]:
    (folder / "scheduler.toml").write_text(toml, encoding="utf-8")
    environ = {
        "SCHEDULER_CONFIG": "scheduler.toml",
        "SCHEDULER_REDIS_URL": url,
        "SCHEDULER_REDIS_WAIT_S": "0",
    }
    return subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=folder,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("command", "toml", "said"),
    [
        *((command, "lease_s = 0\n", "lease_s: give 0.5 or more") for command in COMMANDS),
        (("worker",), OWN_STAGE.replace("my_stages", "no_stages"), "no_stages"),
        (("dev",), OWN_STAGE.replace("my_stages", "no_stages"), "no_stages"),
        (("doctor",), ECHO.replace('"echo"', '"nothing"'), "nothing"),
    ],
)
def test_wrong_settings_are_code_2(
    tmp_path: Path, valkey_url: str, command: tuple[str, ...], toml: str, said: str
) -> None:
    with start(tmp_path, *command, toml=toml, url=valkey_url) as process:
        out, _ = process.communicate(timeout=40)
    assert process.returncode == 2, out
    assert said in out
    assert "Traceback" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_no_redis_is_code_1(tmp_path: Path, command: tuple[str, ...]) -> None:
    with start(tmp_path, *command, toml=ECHO, url=nobody()) as process:
        out, _ = process.communicate(timeout=40)
    assert process.returncode == 1, out
    assert "no Redis answers at redis://127.0.0.1" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_modules_of_the_current_folder_are_found(
    tmp_path: Path, valkey_url: str, command: tuple[str, ...]
) -> None:
    (tmp_path / "my_stages.py").write_text(STAGE, encoding="utf-8")
    with Client(valkey_url) as client, start(tmp_path, *command, toml=OWN_STAGE, url=valkey_url) as process:
        if command == ("doctor",):
            out, _ = process.communicate(timeout=40)
            assert "ok   route chat: stages shout, inference, post, stream" in out
            return
        while not client._running.run(client._client.queue.routes()):
            assert process.poll() is None
            time.sleep(0.05)
        assert client.run("hello", timeout_s=30).text == "HELLO"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=40)
        assert process.returncode == 0, out


def test_the_quickstart_runs_as_it_stands(tmp_path: Path, valkey_url: str, start_worker: StartWorker) -> None:
    start_worker(valkey_url)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py"), valkey_url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer, cost = done.stdout.splitlines()
    assert answer == "Why is the sky blue?"
    assert re.match(r"\d+ tokens, ", cost)


def test_a_worker_ends_with_its_embedded_server(tmp_path: Path) -> None:
    with start(tmp_path, "worker", toml='data_dir = "data"\n', url="embedded") as process:
        assert process.stdout
        next(line for line in process.stdout if " serves " in line)
        with redis.Redis.from_url(EmbeddedServer.running_url(tmp_path / "data")) as server:
            os.kill(int(server.info("server")["process_id"]), signal.SIGKILL)
        out, _ = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "the embedded server has ended, so this worker process ends; start it again" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    "arguments",
    [
        [b"enqueue", b"\xff"],
        [b"enqueue", b"x", b"--metadata", b"a=\xff"],
        [b"admin", b"jobs", b"show", b"\xff"],
        [b"--queue", b"\xff", b"admin", b"jobs", b"list"],
    ],
)
def test_an_argument_that_is_not_utf8_is_one_line(valkey_url: str, arguments: list[bytes]) -> None:
    command = [SCRIPT.encode(), b"--redis-url", valkey_url.encode(), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"prompt-scheduler: ")
    assert done.stderr.count(b"\n") == 1


def test_the_echo_of_dev_is_seen_to_stream(tmp_path: Path) -> None:
    with start(tmp_path, "dev", toml="", url="embedded") as process:
        assert process.stdout
        url = next(line for line in process.stdout if line.startswith("Redis at ")).split()[-1]
        with Client(url) as client:
            job = client.enqueue("one two three four")
            pieces = [event.text for event in job.events() if isinstance(event, Delta)]
        assert pieces == ["one", " two", " three", " four"]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
    assert process.returncode == 0
