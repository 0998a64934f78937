"""What the demo sends, and how it judges what came out."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scheduler.cli.demo import tether
from scheduler.cli.demo.plan import DUPLICATES, PROMPTS, make_plan
from scheduler.cli.demo.verdict import judge
from scheduler.model import JobInfo, JobState

TETHER = [sys.executable, "-I", "-S", tether.__file__]


def test_plan_is_the_same_each_time_and_mixes_priorities() -> None:
    plan = make_plan("echo", {})
    assert plan == make_plan("echo", {})
    assert len(plan) == PROMPTS
    assert len({request.dedup_key for request in plan}) == PROMPTS - DUPLICATES
    assert {request.priority for request in plan[:100]} == {1, 3, 5, 7, 9}
    by_key = {request.dedup_key: request for request in plan}
    assert all(request == by_key[request.dedup_key] for request in plan)


def job(name: str, priority: int, ended_at_ms: int, **fields: Any) -> JobInfo:
    return JobInfo(
        id=name,
        state=JobState.DONE,
        model="echo",
        priority=priority,
        enqueued_at_ms=0,
        started_at_ms=1,
        ended_at_ms=ended_at_ms,
        **{"attempts": 1, **fields},
    )


def answer(name: str, *, deduplicated: bool = False, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": name,
        "job_id": name,
        "deduplicated": deduplicated,
        "text": name,
        "output_tokens": 3,
        **fields,
    }


ANSWERS = [answer("a"), answer("b"), answer("b", deduplicated=True)]
JOBS = [job("a", 9, 10), job("b", 1, 20)]


def verdicts(answers: list[dict[str, Any]], jobs: list[JobInfo]) -> list[bool]:
    return [check.kept for check in judge(answers, jobs, echoes=True, elapsed_s=1)]


def test_all_promises_kept() -> None:
    checks = judge(ANSWERS, JOBS, echoes=True, elapsed_s=2)
    assert [check.kept for check in checks] == [True] * 4
    assert checks[0].claim == "3 prompts sent, 3 answered"
    assert checks[1].claim == "2 of them different, 2 runs; 1 duplicates shared one"
    assert checks[3].claim == "6 tokens in 2.0 s, 3 a second", "a shared answer counts once"


def test_a_lost_or_a_wrong_answer_is_noticed() -> None:
    lost = {"prompt": "a", "error": "job_failed: it broke"}
    assert verdicts([lost, *ANSWERS[1:]], JOBS)[0] is False
    assert verdicts([answer("a", text="b"), *ANSWERS[1:]], JOBS)[0] is False
    assert verdicts([], [])[0] is False


def test_a_duplicate_that_ran_is_noticed() -> None:
    assert verdicts(ANSWERS, [*JOBS, job("c", 1, 30)])[1] is False
    assert verdicts(ANSWERS, [JOBS[0], job("b", 1, 20, attempts=2)])[1] is False


def test_a_late_urgent_prompt_is_noticed() -> None:
    assert verdicts(ANSWERS, [job("a", 9, 20), job("b", 1, 10)])[2] is False


def test_tethered_command_gives_its_exit_code() -> None:
    code = "import sys; sys.exit(7)"
    with subprocess.Popen([*TETHER, sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.wait(10) == 7


@pytest.mark.parametrize("way", ["closed", "killed"])
def test_tethered_command_ends_with_the_one_who_holds_the_pipe(tmp_path: Path, way: str) -> None:
    """A grandchild writes its pid and sleeps; it is gone soon after the pipe closes."""
    pid_file = tmp_path / "pid"
    say_pid = f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    sleeper = f"import os, pathlib, time; {say_pid}; time.sleep(60)"
    holder = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen({[*TETHER, sys.executable, '-c', sleeper]!r}, stdin=subprocess.PIPE,"
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
        give_up_at = time.monotonic() + 10
        while _alive(pid):
            assert time.monotonic() < give_up_at, "it is still there"
            time.sleep(0.01)


def _number_in(path: Path) -> int:
    give_up_at = time.monotonic() + 10
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    return int(path.read_text())


def _alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")
