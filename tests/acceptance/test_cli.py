"""The command line as a user runs it: real processes on a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from scheduler import Client, DedupMode, JobFailed, JobState
from scheduler.cli import app
from tests.acceptance.conftest import StartWorker, slow_echo
from tests.patience import SOON_S

PROGRAM = [sys.executable, "-m", "scheduler"]


class Program:
    """Runs `prompt-scheduler` against one server: in this process, or as one of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: str, stdin: str = "") -> Any:
        return CliRunner().invoke(app, ["--redis-url", self.url, *arguments], input=stdin)

    def json(self, *arguments: str) -> Any:
        done = self(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [*PROGRAM, "--redis-url", self.url, *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=SOON_S, check=False
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [*PROGRAM, "--redis-url", self.url, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def refusing_server() -> Iterator[str]:
    """Speaks HTTP, and asks everybody to come again after a minute."""

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(429)
            self.send_header("Retry-After", "60")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_error(404)  # a server without a list of models

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


@pytest.fixture
def program(valkey_url: str) -> Program:
    return Program(valkey_url)


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    with Client(valkey_url) as client:
        yield client


def test_an_answer_is_shown_whole_streamed_and_as_json(program: Program, start_worker: StartWorker) -> None:
    start_worker(program.url)
    assert program.run("enqueue", "Why is the sky blue?").stdout == "Why is the sky blue?\n"
    assert program("enqueue", "one two three", "--stream").stdout == "one two three\n"
    assert program.run("enqueue", "-", "--max-tokens", "2", stdin="a b c\n").stdout == "a b\n"
    said = program.json("enqueue", "hello", "--priority", "high")
    assert (said["state"], said["result"]["text"], said["deduplicated"]) == ("done", "hello", False)
    lines = program("enqueue", "one two", "--stream", "--json").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["type"] for event in events[:2]] == ["queued", "started"]
    assert events[-1]["type"] == "done"
    assert "".join(event["text"] for event in events if event["type"] == "delta") == "one two"


def test_the_only_route_needs_no_name_and_of_several_one_is_asked_for(
    program: Program, start_worker: StartWorker
) -> None:
    chat = '[routes.chat]\n[[routes.chat.endpoints]]\nbackend = "echo"\n'
    start_worker(program.url, toml=chat)
    assert program.json("enqueue", "hello")["result"]["text"] == "hello"
    assert "no route 'echo'; there are: chat" in program("enqueue", "hello", "--model", "echo").stderr
    start_worker(program.url, toml=chat.replace("chat", "code"))
    refused = program("enqueue", "hello")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "prompt-scheduler: model: is missing, and there are several routes: chat, code; choose one\n"
    )


def test_events_are_shown_as_they_are_on_the_channel(
    program: Program, client: Client, start_worker: StartWorker
) -> None:
    start_worker(program.url)
    job = client.enqueue("one two")
    job.result(timeout_s=SOON_S)
    shown = program("subscribe", job.id)
    assert shown.exit_code == 0
    assert [line.split()[1] for line in shown.stdout.splitlines()][-1] == "done"
    lines = program("subscribe", job.id, "--json").stdout.encode().splitlines()
    replay = client._running.run(client._client.queue.replay(job.id))
    assert replay is not None
    assert [json.loads(line) for line in lines] == [json.loads(data) for data in replay.events]


def test_a_job_that_fails_is_told_and_exits_with_1(program: Program, start_worker: StartWorker) -> None:
    toml = slow_echo(0).replace("delay_s = 0", 'fail_text = "bad"')
    start_worker(program.url, toml=toml)
    for flags in ([], ["--stream"], ["--json"]):
        done = program("enqueue", "a bad prompt", *flags)
        assert done.exit_code == 1
        assert "failed after 1 attempt" in done.stderr
        assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "request_rejected"


def test_who_waits_for_nobody_is_told_so(program: Program) -> None:
    done = program("enqueue", "hello", "--timeout", "3s")
    assert done.exit_code == 1
    assert "no live worker process serves 'echo'" in done.stderr
    assert "had not ended after 3" in done.stderr


def test_a_file_is_answered_line_by_line(program: Program, start_worker: StartWorker, tmp_path: Path) -> None:
    start_worker(program.url, toml=slow_echo(0).replace("delay_s = 0", 'fail_text = "bad"'))
    requests, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"prompt": f"prompt {n}", "dedup_key": f"key {n % 150}"}) for n in range(150)]
    requests.write_text("\n".join([*lines, '"bad one"', '"last"']))
    done = program("enqueue", "--file", str(requests), "--output", str(output))
    assert done.exit_code == 1, "one of them failed"
    assert done.stderr == "152 requests: 151 done, 1 failed\n"
    outcomes = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["index"] for one in outcomes] == list(range(152))
    assert outcomes[7]["text"] == outcomes[7]["result"]["text"] == "prompt 7"
    assert outcomes[150]["error"]["code"] == "request_rejected"
    ids = program("enqueue", "--file", "-", "--no-wait", stdin='"x"\n"y"\n').stdout.split()
    assert [program.json("admin", "jobs", "show", job_id)["model"] for job_id in ids] == ["echo", "echo"]


def test_a_file_longer_than_the_queue_goes_through(program: Program, start_worker: StartWorker) -> None:
    start_worker(program.url, toml="max_waiting = 20\n" + slow_echo(0.01, max_in_flight=16))
    lines = "".join(f'"prompt number {n}"\n' for n in range(60))
    done = program("enqueue", "--file", "-", stdin=lines)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == "60 requests: 60 done\n"


def test_operators_see_and_change_what_waits(program: Program, client: Client) -> None:
    first, second = client.enqueue("one", priority=3), client.enqueue("two", priority=5, dedup_key="k")
    client.enqueue("two", dedup_key="k")
    assert [job["id"] for job in program.json("admin", "jobs", "list")] == [second.id, first.id]
    assert first.id in program("admin", "jobs", "list", "--state", "waiting", "--tenant", "default").stdout
    assert program("admin", "jobs", "set-priority", first.id, "critical").exit_code == 0
    shown = program.json("admin", "jobs", "show", first.id)
    assert (shown["priority"], shown["position"]) == (9, 0)
    assert [entry["what"] for entry in shown["history"]] == ["enqueued", "priority"]
    shown = program("admin", "jobs", "show", first.id).stdout
    assert "strictly first" in shown
    assert re.search(r"^trouble +no live worker process serves 'echo'$", shown, re.MULTILINE), shown

    status = program.json("admin", "queue", "status")
    assert status["lanes"][0]["by_priority"] == {"9": 1, "5": 1}
    (key,) = program.json("admin", "dedup", "list")
    assert (key["job_id"], key["joined"]) == (second.id, 1)
    assert program.json("admin", "dedup", "show", "k") == key
    assert program("admin", "dedup", "release", key["hash"]).exit_code == 2, "nobody is there to ask"
    assert program.json("admin", "dedup", "show", "k") == key
    assert program("admin", "dedup", "release", "k", "--yes").exit_code == 0
    assert program("admin", "dedup", "show", "k").exit_code == 1
    assert program("admin", "jobs", "list", "--lane", "echo").exit_code == 0
    unknown = program("admin", "jobs", "list", "--lane", "ecko")
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (2, 1)
    assert "no 'ecko' in queue 'default'; there are: echo" in unknown.stderr

    assert program("admin", "queue", "pause", "--all").stdout == "echo: paused\n"
    assert program.json("admin", "queue", "status")["lanes"][0]["paused"] is True
    assert program("admin", "queue", "resume", "echo").stdout == "echo: resumed\n"
    assert program("admin", "queue", "resume", "echo").stdout == "echo: was not paused\n"


def test_operators_see_who_is_held_back_and_until_when(
    program: Program, client: Client, start_worker: StartWorker
) -> None:
    start_worker(program.url, toml=slow_echo(0) + "[tenants.acme]\nrequests_per_minute = 1\n")
    client.run("first", tenant="acme")
    held = [client.enqueue(text, tenant="acme") for text in ("second", "third")]
    client.run("another's", tenant="other")

    status = program("admin", "queue", "status").stdout
    assert re.search(r"^waiting +0\ndelayed +0\nheld +2\nbound +2 of at most ", status, re.MULTILINE), status
    assert re.search(r"acme +echo +2 +\d+", status), status
    (limited,) = program.json("admin", "queue", "status")["limited"]
    assert (limited["tenant"], limited["lane"], limited["held"]) == ("acme", "echo", 2)
    assert 0 < limited["next_in_s"] <= 60

    listed = program.json("admin", "jobs", "list", "--state", "held")
    assert [job["id"] for job in listed] == [job.id for job in held]
    shown = program("admin", "jobs", "show", held[1].id).stdout
    assert "tenant 'acme' has used up its limit, 1 request a minute" in shown
    cancelled = program("admin", "jobs", "cancel", held[0].id, "--yes")
    assert cancelled.exit_code == 0, cancelled.stderr
    assert program.json("admin", "queue", "status")["held"] == 1


def test_operators_find_and_repair_problems(program: Program, client: Client, valkey_url: str) -> None:
    job = client.enqueue("lost")
    assert program("admin", "audit").stdout.startswith("No problems: 1 jobs, ")
    with redis.Redis.from_url(valkey_url) as server:
        server.delete("ps:{default}:w:5:echo")
        server.set("ps:{default}:d:nobody", "gone")
    found = program("admin", "audit")
    assert found.exit_code == 1
    assert "a live job that is in no list, and would never run" in found.stdout
    assert job.id in found.stdout
    assert "Nothing was changed; --repair fixes these." in found.stderr
    as_json = program("admin", "audit", "--json")
    counts = {"no_home": 1, "dedup_without_owner": 1, "count": 2, "bitmap": 1}
    assert (as_json.exit_code, json.loads(as_json.stdout)["counts"]) == (1, counts)

    mended = program("admin", "audit", "--repair")
    assert mended.exit_code == 0, mended.stderr
    assert "put back at its own position" in mended.stdout
    assert program.json("admin", "audit")["problems"] == []
    assert program.json("admin", "queue", "status")["waiting"] == 1


def test_operators_see_that_an_endpoint_has_asked_to_be_left_alone(
    program: Program, client: Client, start_worker: StartWorker
) -> None:
    with refusing_server() as url:
        endpoint = f'[[routes.echo.endpoints]]\nbackend = "openai"\nbase_url = "{url}"\nmax_in_flight = 4\n'
        start_worker(program.url, toml=endpoint, SCHEDULER_LEASE_S="3")
        job = client.enqueue("hello")
        deadline = time.monotonic() + SOON_S
        while not (status := program.json("admin", "queue", "status"))["endpoints"][0]["usable_in_s"]:
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        assert 0 < status["endpoints"][0]["usable_in_s"] <= 60
        assert re.search(r"closed, unused for \d+", program("admin", "queue", "status").stdout)
        assert client.job(job.id).info().failures == 0
        waiting = client.enqueue("another")
        shown = program("admin", "jobs", "show", waiting.id).stdout
        assert re.search(r"^trouble +endpoint echo\.0 is closed, unused for \d+", shown, re.MULTILINE), shown


def test_what_destroys_asks_first(program: Program, client: Client) -> None:
    jobs = [client.enqueue(f"prompt {n}", priority=n) for n in range(4)]
    asked = program("admin", "jobs", "cancel", jobs[0].id, stdin="y\n")
    assert asked.exit_code == 2
    assert "Cancel waiting job" in asked.stderr
    assert "add --yes" in asked.stderr
    assert asked.stderr.count("\n") == 1
    assert jobs[0].info().state is JobState.WAITING
    assert program("admin", "jobs", "cancel", jobs[0].id, "--yes").exit_code == 0
    assert jobs[0].info().state is JobState.CANCELLED
    assert program("admin", "jobs", "cancel", jobs[0].id).exit_code == 0, "nothing is asked"
    assert program("admin", "queue", "purge", "echo").exit_code == 2
    assert program.json("admin", "queue", "purge", "echo", "--priority", "3", "--yes")["purged"] == 1
    assert program.json("admin", "queue", "purge", "echo", "--yes")["purged"] == 2
    assert program.json("admin", "queue", "status")["waiting"] == 0


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("\x03", 130)])
def test_at_a_terminal_the_question_is_answered(
    program: Program, client: Client, answer: str, code: int
) -> None:
    job = client.enqueue("hello")
    ours, theirs = os.openpty()
    command = [*PROGRAM, "--redis-url", program.url, "admin", "jobs", "cancel", job.id]
    # a terminal of its own, so that Ctrl-C typed there reaches it
    in_terminal = ["setsid", "--ctty", "--wait", *command]
    with subprocess.Popen(in_terminal, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 1024)
        os.write(ours, answer.encode() + (b"" if answer == "\x03" else b"\n"))
        give_up_at = time.monotonic() + SOON_S
        while process.poll() is None and time.monotonic() < give_up_at:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
            # just before it reads, Python's input() notes a signal and then waits: people press Ctrl-C again
            os.write(ours, answer.encode())
        process.kill()
        assert process.wait() == code
    os.close(ours)
    assert job.info().state is (JobState.CANCELLED if code == 0 else JobState.WAITING)


def test_dead_letters_are_seen_changed_run_again_and_deleted(
    client: Client, start_worker: StartWorker, program: Program
) -> None:
    refusing = '[[routes.echo.endpoints]]\nbackend = "echo"\noptions = { fail_text = "forbidden" }\n'
    start_worker(program.url, toml=refusing)
    jobs = [client.enqueue(f"forbidden {n}", params={"max_tokens": 9}, tenant=f"t{n % 2}") for n in range(5)]
    for job in jobs:
        with pytest.raises(JobFailed):
            job.result(timeout_s=SOON_S)
    listed = program.json("admin", "dead", "list")
    assert {one["id"] for one in listed} == {job.id for job in jobs}
    assert [one["tenant"] for one in program.json("admin", "dead", "list", "--tenant", "t1")] == ["t1"] * 2
    assert program.json("admin", "dead", "list", "--error", "nonsense") == []
    assert "no 'ecko' in queue" in program("admin", "dead", "list", "--lane", "ecko").stderr
    assert "request_rejected" in program("admin", "dead", "list").stdout

    shown = program("admin", "dead", "show", jobs[0].id).stdout
    assert '"prompt": "forbidden 0"' in shown
    assert re.search(r"failed +1 .*request_rejected: echo: the prompt has the text", shown), shown

    refused = program("admin", "dead", "requeue", jobs[0].id, "--set", "params.max_tokens=many")
    assert (refused.exit_code, refused.stdout) == (1, "0 run again\n")
    assert "params.max_tokens" in refused.stderr
    assert program("admin", "dead", "requeue", jobs[0].id, "--set", "priority=9").exit_code == 2
    assert program("admin", "dead", "requeue").exit_code == 2, "which?"
    assert program("admin", "dead", "requeue", "--all").exit_code == 2, "nobody is there to ask"

    done = program.json("admin", "dead", "requeue", jobs[0].id, "--set", "prompt=allowed")
    assert done == {"requeued": [jobs[0].id], "refused": {}, "left_out": 0}
    assert client.job(jobs[0].id).result(timeout_s=SOON_S).text == "allowed"
    again = program("admin", "dead", "requeue", jobs[0].id)
    assert (again.exit_code, again.stdout) == (1, "0 run again; 1 are not dead letters (any more)\n")
    both = program.json("admin", "dead", "requeue", "--tenant", "t1", "--set", "prompt=fine", "--yes")
    assert both["requeued"] == [jobs[1].id, jobs[3].id], "the oldest first"

    assert program("admin", "dead", "purge", "--all").exit_code == 2
    assert program.json("admin", "dead", "purge", "--older-than", "1h", "--yes") == {"purged": 0}
    assert program("admin", "dead", "purge", "--all", "--yes").stdout == "2 deleted\n"
    assert program("admin", "dead", "show", jobs[2].id).exit_code == 2
    assert program.json("admin", "queue", "status")["totals"]["dead_purged"] == 2


def test_what_failed_can_run_again(program: Program, client: Client) -> None:
    job = client.enqueue("hello")
    program("admin", "jobs", "cancel", job.id, "--yes")
    said = program.json("admin", "jobs", "requeue", job.id)
    assert (said["id"], said["state"], said["position"]) == (job.id, "waiting", 0)
    assert "it is next" in program("admin", "jobs", "requeue", job.id).stdout, "twice is as once"
    assert program.run("worker", "--burst").returncode == 0
    refused = program("admin", "jobs", "requeue", job.id)
    assert refused.exit_code == 2
    assert f"job {job.id} is done" in refused.stderr


def test_delayed_jobs_are_rescheduled_run_and_purged(program: Program, client: Client) -> None:
    first, second = (client.enqueue(prompt, delay_s=3600) for prompt in ("one", "two"))
    moved = program("admin", "jobs", "reschedule", first.id, "2h")
    assert moved.stdout.startswith(f"{first.id}: due in 2")
    assert program.json("admin", "jobs", "run-now", first.id)["state"] == "waiting"
    assert program("admin", "jobs", "reschedule", first.id, "2h").exit_code == 2
    assert (
        program.json("admin", "queue", "purge", "echo", "--priority", "9", "--delayed", "--yes")["purged"]
        == 0
    )
    asked = program("admin", "queue", "purge", "echo", "--delayed")
    assert "Cancel 1 waiting jobs and up to 1 delayed ones of lane 'echo'?" in asked.stderr
    assert program.json("admin", "queue", "purge", "echo", "--yes")["purged"] == 1
    assert program.json("admin", "queue", "purge", "echo", "--delayed", "--yes")["purged"] == 1
    assert second.info().reason == "purged"


def test_an_ended_job_is_deleted_when_asked(program: Program, client: Client) -> None:
    job = client.enqueue("a secret")
    assert program("admin", "jobs", "delete", job.id, "--yes").exit_code == 2
    job.cancel()
    assert program("admin", "jobs", "delete", job.id).exit_code == 2, "nobody is there to ask"
    assert program.json("admin", "jobs", "delete", job.id, "--yes") == {"job_id": job.id, "deleted": True}
    assert program("admin", "jobs", "show", job.id).exit_code == 2


def test_a_subscriber_goes_on_after_an_event(program: Program, client: Client) -> None:
    job = client.enqueue("one")
    job.cancel()
    seen = [
        json.loads(line)["type"]
        for line in program("subscribe", job.id, "--json", "--after", "0-1").stdout.splitlines()
    ]
    assert seen == ["cancelled"]
    wrong = program("subscribe", job.id, "--after", "yesterday")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "after: give the id of an event" in wrong.stderr


def test_every_option_of_a_prompt_reaches_the_request(program: Program, client: Client) -> None:
    options = {
        "--model": "echo",
        "--priority": "high",
        "--dedup-key": "k",
        "--dedup": "window",
        "--tenant": "acme",
        "--session": "s1",
        "--deadline": "1h",
        "--delay": "500ms",
        "--max-attempts": "2",
        "--max-tokens": "9",
        "--temperature": "0.5",
        "--top-p": "0.9",
        "--seed": "7",
        "--job-id": "mine",
    }
    given = [word for pair in options.items() for word in pair]
    given += ["--stop", "END", "--stop", "\n\n", "--metadata", "from=cron", "--metadata", "run=1=2"]
    assert program("enqueue", "hello", *given, "--system", "be brief", "--no-wait").stdout == "mine\n"
    queue = client._client.queue

    async def stored() -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(await queue.redis.get(queue.keys.of("payload", "mine")) or b"")
        return payload

    request = client._running.run(stored())
    assert [one["content"] for one in request["messages"]] == ["be brief", "hello"]
    assert request["params"] == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END", "\n\n"],
    }
    assert request["metadata"] == {"from": "cron", "run": "1=2"}
    info = client.job("mine").info()
    assert (info.priority, info.tenant, info.max_attempts, info.dedup) == (7, "acme", 2, DedupMode.WINDOW)
    assert info.state is JobState.DELAYED
    assert info.deadline_at_ms is not None
    assert info.deadline_at_ms - info.enqueued_at_ms == 3_600_000


def test_json_of_the_admin_commands_has_the_keys_that_are_documented(
    program: Program, client: Client, start_worker: StartWorker
) -> None:
    start_worker(program.url)
    job = client.enqueue("hello", dedup_key="k", delay_s=60)
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    said = [
        program.json("admin", "queue", "status"),
        program.json("admin", "queue", "status")["lanes"][0],
        program.json("admin", "queue", "status")["endpoints"][0],
        program.json("admin", "queue", "pause", "echo")[0],
        program.json("admin", "queue", "purge", "echo", "--yes"),
        program.json("admin", "jobs", "list")[0],
        program.json("admin", "jobs", "show", job.id),
        program.json("admin", "jobs", "show", job.id)["history"][0],
        program.json("admin", "dedup", "list")[0],
        program.json("admin", "dedup", "release", "k", "--yes"),
        program.json("admin", "jobs", "cancel", job.id, "--yes"),
        program.json("admin", "workers", "list")[0],
        program.json("admin", "dead", "purge", "--all", "--yes"),
        program.json("admin", "dead", "requeue", "--all", "--yes"),
        program.json("doctor")[0],
    ]
    assert {key for one in said for key in one if f"`{key}`" not in documented} == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["admin", "jobs", "show", "nobody"],
        ["admin", "jobs", "set-priority", "nobody", "3"],
        ["admin", "jobs", "requeue", "nobody"],
        ["admin", "jobs", "cancel", "nobody", "--yes"],
        ["admin", "jobs", "run-now", "nobody"],
        ["admin", "jobs", "reschedule", "nobody", "5m"],
        ["admin", "jobs", "delete", "nobody", "--yes"],
        ["subscribe", "nobody"],
        ["admin", "queue", "pause", "nowhere"],
        ["admin", "queue", "purge", "nowhere", "--yes"],
        ["enqueue", "hello", "--model", "nothing"],
    ],
)
def test_what_is_not_there_is_named_in_one_line(program: Program, arguments: list[str]) -> None:
    done = program(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("prompt-scheduler: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_worker_processes_are_listed_and_the_doctor_is_content(
    program: Program, start_worker: StartWorker
) -> None:
    assert program.json("admin", "workers", "list") == []
    start_worker(program.url)
    (worker,) = program.json("admin", "workers", "list")
    assert (worker["running"], list(worker["routes"])) == (0, ["echo"])
    assert worker["id"] in program("admin", "workers", "list").stdout
    done = program("doctor")
    assert done.exit_code == 0
    assert re.search(r"^ok +workers: 1 live", done.stdout, re.MULTILINE)
    levels = {one["subject"]: one["level"] for one in program.json("doctor")}
    assert levels["endpoint echo.0"] == "ok"


def test_worker_is_arqs(program: Program, client: Client) -> None:
    assert program.run("worker", "--check").returncode == 1, "none is running"
    jobs = [client.enqueue(f"prompt {n}") for n in range(20)]
    done = program.run("worker", "--burst")
    assert done.returncode == 0, done.stderr
    assert all(job.info().state is JobState.DONE for job in jobs)


def test_worker_that_serves_answers_the_check(program: Program) -> None:
    with program.start("worker") as process:
        try:
            assert process.stderr
            for line in process.stderr:
                if " serves " in line:
                    break
            give_up_at = time.monotonic() + SOON_S
            while program.run("worker", "--check").returncode:
                assert time.monotonic() < give_up_at
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=SOON_S)
    assert process.returncode == 0


def test_ctrl_c_while_waiting_is_quiet_and_the_job_goes_on(program: Program, client: Client) -> None:
    with program.start("enqueue", "hello", "--job-id", "mine") as process:
        while not _known(client, "mine"):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, out, err) == (130, "", "")
    assert client.job("mine").info().state is JobState.WAITING


def _known(client: Client, job_id: str) -> bool:
    try:
        client.job(job_id).info()
    except LookupError:
        return False
    return True


def test_a_reader_that_goes_away_is_no_matter(program: Program, start_worker: StartWorker) -> None:
    start_worker(program.url, toml=slow_echo(0.01))
    words = " ".join(f"word{n}" for n in range(300))
    with program.start("enqueue", words, "--stream") as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(4) == "word"
        process.stdout.close()
        assert process.wait(SOON_S) == 141
        assert process.stderr.read() == ""
