"""What the demo sends, and how it judges what came out."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scheduler.cli import child_guard
from scheduler.cli.demo.engines import find_llama_server
from scheduler.cli.demo.listener import Listener, Stream
from scheduler.cli.demo.plan import FEWEST, PROMPTS, make_plan
from scheduler.cli.demo.verdict import Check, judge
from scheduler.cli.demo.view import verdict
from scheduler.errors import ConfigError
from scheduler.events import Delta, Started
from scheduler.model import JobInfo, JobState
from tests.patience import SOON_S

GUARD = [sys.executable, "-I", "-S", child_guard.__file__]


@pytest.mark.parametrize("prompts", [FEWEST, PROMPTS, 999])
def test_plan_is_the_same_each_time_and_repeats_a_fifth_of_the_prompts(prompts: int) -> None:
    plan = make_plan("echo", {}, prompts=prompts)
    assert plan == make_plan("echo", {}, prompts=prompts)
    assert len(plan) == prompts
    by_key = {sending.request.dedup_key: sending.request for sending in plan}
    assert len(by_key) == prompts - round(prompts * 0.2)
    assert all(sending.request == by_key[sending.request.dedup_key] for sending in plan)
    assert {request.priority for request in by_key.values()} == {1, 3, 5, 7, 9}


@pytest.mark.parametrize("prompts", [FEWEST, PROMPTS, 999])
def test_plan_sends_the_backlog_first_and_waits_for_no_answer_that_cannot_come(prompts: int) -> None:
    seen: set[str | None] = set()
    plan = make_plan("echo", {}, prompts=prompts)
    for sending in plan:
        if sending.request.dedup_key not in seen:
            assert (sending.after == 0) == (sending.request.priority <= 5)
        # what is waited for is among what has been sent before
        sent_before = {one.request.dedup_key for one in plan if one.after < sending.after}
        assert sending.after <= len(sent_before)
        seen.add(sending.request.dedup_key)
    assert max(sending.after for sending in plan) < len(seen)


def job(name: str, priority: int, ended_at_ms: int, **fields: Any) -> JobInfo:
    return JobInfo(
        id=name,
        state=JobState.DONE,
        model="echo",
        priority=priority,
        enqueued_at_ms=0,
        ended_at_ms=ended_at_ms,
        **{"attempts": 1, "started_at_ms": ended_at_ms - 1, **fields},
    )


def answer(name: str, *, deduplicated: bool = False, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": name,
        "job_id": name,
        "deduplicated": deduplicated,
        "text": name,
        "output_tokens": 3,
        "streamed": name,
        "pieces": 2,
        **fields,
    }


ANSWERS = [answer("a"), answer("b"), answer("b", deduplicated=True)]
JOBS = [job("a", 9, 100), job("b", 1, 2000)]


def verdicts(answers: list[dict[str, Any]], jobs: list[JobInfo]) -> list[bool]:
    return [check.passed for check in judge(answers, jobs, echoes=True, elapsed_s=1)]


def test_all_promises_kept() -> None:
    checks = judge(ANSWERS, JOBS, echoes=True, elapsed_s=2)
    assert [check.passed for check in checks] == [True] * 4
    assert [check.claim for check in checks] == [
        "3 prompts sent, 3 answered",
        "2 of them different, 2 runs; 1 duplicates shared one and got its text",
        (
            "urgent ones first; mean wait: critical 0.1 s, background 2.0 s; "
            "mean rank at the finish: critical 1, background 2"
        ),
        "answers streamed: 6 tokens in 4 pieces and 2.0 s, 3 tokens a second",
    ]


def test_a_lost_or_a_wrong_answer_is_noticed() -> None:
    lost = {"prompt": "a", "error": "job_failed: it broke"}
    assert verdicts([lost, *ANSWERS[1:]], JOBS)[0] is False
    assert verdicts([answer("a", text="b"), *ANSWERS[1:]], JOBS)[0] is False
    assert verdicts([], [])[0] is False


def test_a_duplicate_that_ran_or_got_another_text_is_noticed() -> None:
    assert verdicts(ANSWERS, [*JOBS, job("c", 1, 3000)])[1] is False
    assert verdicts(ANSWERS, [JOBS[0], job("b", 1, 2000, attempts=2)])[1] is False
    other = answer("b", deduplicated=True, text="B")
    assert verdicts([*ANSWERS[:2], other], JOBS)[1] is False


def test_a_late_urgent_prompt_is_noticed() -> None:
    finished_late = [job("a", 9, 2000, started_at_ms=1), job("b", 1, 100, started_at_ms=50)]
    assert verdicts(ANSWERS, finished_late)[2] is False
    began_late = [job("a", 9, 100, started_at_ms=90), job("b", 1, 2000, started_at_ms=1)]
    assert verdicts(ANSWERS, began_late)[2] is False


def test_an_answer_that_was_not_streamed_is_noticed() -> None:
    assert verdicts([answer("a", streamed="A"), *ANSWERS[1:]], JOBS)[3] is False
    at_once = [{**one, "pieces": 1} for one in ANSWERS]
    assert verdicts(at_once, JOBS)[3] is False


def test_an_engine_may_send_some_answers_in_one_piece() -> None:
    assert verdicts([answer("a", pieces=1), *ANSWERS[1:]], JOBS)[3] is True


def test_one_answer_is_followed_to_its_end_unless_a_more_urgent_one_begins() -> None:
    listener = Listener()
    low, normal, critical = job("l", 3, 10), job("n", 5, 10), job("c", 9, 10)
    assert listener.follow([low]) is None, "it has said nothing yet"
    listener.add(Delta(id="1-1", job_id="l", text="one"))
    assert listener.follow([low]) == Stream(3, "one")
    listener.add(Delta(id="2-1", job_id="n", text="two"))
    assert listener.follow([low, normal]) == Stream(5, "two")
    listener.add(Delta(id="2-2", job_id="n", text=" three"))
    listener.add(Delta(id="1-2", job_id="l", text=" more"))
    assert listener.follow([low, normal]) == Stream(5, "two three")
    listener.add(Delta(id="3-1", job_id="c", text="now"))
    assert listener.follow([low, normal, critical]) == Stream(9, "now")
    assert listener.follow([low, normal]) == Stream(5, "two three"), "the critical one has ended"
    assert listener.follow([]) == Stream(5, "two three"), "the last one stays in sight"


def test_text_of_a_failed_attempt_is_discarded() -> None:
    listener = Listener()
    listener.add(Delta(id="1-1", job_id="a", text="wrong"))
    listener.add(Started(id="2-1", job_id="a"))
    listener.add(Delta(id="2-2", job_id="a", text="right"))
    assert listener.follow([job("a", 5, 10)]) == Stream(5, "right")


def test_verdict_fits_a_terminal() -> None:
    said = verdict([Check(True, "word " * 40), Check(False, "short")], 80).plain.splitlines()
    assert max(map(len, said)) < 80
    assert said[0].startswith("ok    word")
    assert said[1].startswith("      word")
    assert said[-1] == "FAIL  short"


def test_your_own_llama_server_needs_a_model_and_neither_is_needed(tmp_path: Path) -> None:
    binary, model = tmp_path / "llama-server", tmp_path / "model.gguf"
    binary.write_text("")
    model.write_text("")
    assert find_llama_server({}) is None
    both = {"LLAMA_SERVER": str(binary), "LLAMA_MODEL": str(model)}
    with pytest.raises(ConfigError, match=r"LLAMA_SERVER names .* cannot be run"):
        find_llama_server(both)
    binary.chmod(0o755)
    assert find_llama_server(both) == (binary, model)
    with pytest.raises(ConfigError, match="LLAMA_MODEL, which names a model"):
        find_llama_server({"LLAMA_SERVER": str(binary)})
    with pytest.raises(ConfigError, match="LLAMA_SERVER is not set"):
        find_llama_server({"LLAMA_MODEL": str(model)})
    model.unlink()
    with pytest.raises(ConfigError, match="which is not a file"):
        find_llama_server(both)


def test_guarded_command_gives_its_exit_code() -> None:
    code = "import sys; sys.exit(7)"
    with subprocess.Popen([*GUARD, sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.wait(SOON_S) == 7


@pytest.mark.parametrize("way", ["closed", "killed"])
def test_guarded_command_ends_with_the_process_that_holds_the_pipe(tmp_path: Path, way: str) -> None:
    """A grandchild writes its pid and sleeps; it is gone soon after the pipe closes."""
    pid_file = tmp_path / "pid"
    say_pid = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    sleeper = f"import os, pathlib, time; {say_pid}; time.sleep(60)"
    holder = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen({[*GUARD, sys.executable, '-c', sleeper]!r}, stdin=subprocess.PIPE,"
        " start_new_session=True)\n"
        f"{'time.sleep(60)' if way == 'killed' else 'sys.stdin.read()'}\n"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE) as process:
        pid = _number_in(pid_file)
        assert _alive(pid)
        if way == "killed":
            process.kill()
        assert process.stdin
        process.stdin.close()
        _until_gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_guarded_command_ends_when_the_guard_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    say_pid = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    sleeper = f"import os, pathlib, time; {say_pid}; time.sleep(60)"
    with subprocess.Popen([*GUARD, sys.executable, "-c", sleeper], stdin=subprocess.PIPE) as process:
        pid = _number_in(pid_file)
        process.kill()
        process.wait(SOON_S)
        _until_gone(pid)


def _until_gone(pid: int) -> None:
    give_up_at = time.monotonic() + SOON_S
    while _alive(pid):
        assert time.monotonic() < give_up_at, "it is still there"
        time.sleep(0.01)


def _number_in(path: Path) -> int:
    give_up_at = time.monotonic() + SOON_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    return int(path.read_text())


def _alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")
