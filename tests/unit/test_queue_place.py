"""Why a job waits where it does."""

from __future__ import annotations

import pytest

from scheduler.model import JobInfo, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.place import Hold, explain_place
from tests.contracts.queue_driver import LANE


def info(state: JobState, **fields: object) -> JobInfo:
    return JobInfo(**{"id": "j", "state": state, "model": LANE, "priority": 5, "enqueued_at_ms": 0, **fields})


def place(job: JobInfo, *, aging_ms: int = 30_000, paused: bool = False) -> str | None:
    return explain_place(job, aging_ms=aging_ms, paused=paused, now_ms=10_000)


@pytest.mark.parametrize(
    ("job", "aging_ms", "said"),
    [
        (
            info(JobState.WAITING, position=1, priority=8),
            30_000,
            "1 job is before it: priority 8",
        ),
        (info(JobState.WAITING, position=4), 0, "only more urgent jobs and older ones of priority 5"),
        (info(JobState.WAITING, position=4), 30_000, "at priority 5 it counts as 120 s younger"),
        (info(JobState.DELAYED, due_at_ms=12_500), 30_000, "it was enqueued with a delay: due in 2.5 s"),
        (info(JobState.DELAYED, due_at_ms=9_000, attempts=1), 30_000, "it has failed and will be retried"),
    ],
)
def test_a_place_is_explained(job: JobInfo, aging_ms: int, said: str) -> None:
    assert said in str(place(job, aging_ms=aging_ms))


@pytest.mark.parametrize(
    ("hold", "position", "said"),
    [
        (
            Hold(RateLimit(60, None), 12_500),
            2,
            "60 requests a minute, so its jobs in lane 'chat' are held: 2 of them are before it",
        ),
        (
            Hold(RateLimit(None, 90_000), 40_000),
            0,
            "90,000 tokens a minute, so its jobs in lane 'chat' are held",
        ),
        (Hold(RateLimit(None, 90_000), 40_000), 0, "it is the next of them; the next may start in 30 s"),
        (Hold(RateLimit(6, 9000), 9_000), 1, "6 requests and 9,000 tokens a minute"),
        (Hold(RateLimit(6, 9000), 9_000), 1, "start once those released before it are claimed"),
        (Hold(None, 12_500), 1, "has no limit any more"),
        (Hold(RateLimit(), 12_500), 1, "has no limit any more"),
    ],
)
def test_a_hold_is_explained(hold: Hold, position: int, said: str) -> None:
    job = info(JobState.HELD, position=position, tenant="acme")
    assert said in str(explain_place(job, aging_ms=30_000, paused=False, now_ms=10_000, hold=hold))


@pytest.mark.parametrize("state", [state for state in JobState if state.ended or state is JobState.RUNNING])
def test_a_job_that_does_not_wait_has_no_place(state: JobState) -> None:
    assert place(info(state)) is None


def test_a_paused_lane_is_part_of_the_reason() -> None:
    assert str(place(info(JobState.WAITING, position=0), paused=True)).endswith("so nothing of it is claimed")
