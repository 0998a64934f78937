"""Why a job waits where it does, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.model import URGENT, JobInfo, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.rank import handicap, is_strict
from scheduler.queue.shared import LOSSES_OF_A_SUSPECT


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a job is held."""

    limit: RateLimit | None
    """The limit of its tenant; None if that has none any more."""
    look_at_ms: float | None
    """When some of the held jobs may be released, by Redis' clock; None if nothing says so."""


def explain_place(
    job: JobInfo, *, aging_ms: int, paused: bool, now_ms: int, hold: Hold | None = None
) -> str | None:
    """Why a waiting, held or delayed job is not running yet, as a sentence; None in any other state.

    Pass `hold` for a held job.
    """
    if job.state is JobState.HELD:
        return _explain_hold(job, hold, now_ms)
    if job.state is JobState.DELAYED:
        due_s = max(0, (job.due_at_ms or now_ms) - now_ms) / 1000
        why = "it has failed and will be retried" if job.attempts else "it was enqueued with a delay"
        return f"{why}: due in {due_s:g} s, then it joins lane {job.model!r}"
    if job.state is not JobState.WAITING or job.position is None:
        return None
    if job.lost_leases >= LOSSES_OF_A_SUSPECT:
        sentence = (
            f"it has lost its worker process {job.lost_leases} times, so it is a suspect, and a process runs "
            f"one suspect at a time: {_ahead(job.position)}"
        )
    else:
        sentence = f"{_ahead(job.position)}: {_rule(job.priority, aging_ms)}"
    return f"{sentence}; lane {job.model!r} is paused, so nothing of it is claimed" if paused else sentence


def _explain_hold(job: JobInfo, hold: Hold | None, now_ms: int) -> str:
    if hold is None or hold.limit is None or hold.limit.unlimited:
        return (
            f"tenant {job.tenant!r} has no limit any more: the job returns to lane {job.model!r} in a moment"
        )
    before = _ahead_of_held(job.position or 0)
    next_s = max(0, (hold.look_at_ms or now_ms) - now_ms) / 1000
    when = f"in {next_s:.{int(next_s < 10)}f} s" if next_s else "once those released before it are claimed"
    return (
        f"tenant {job.tenant!r} has used up its limit, {_limit(hold.limit)}, so its jobs in lane "
        f"{job.model!r} are held: {before}; the next may start {when}"
    )


def _limit(limit: RateLimit) -> str:
    amounts = ((limit.requests, "request"), (limit.tokens, "token"))
    return " and ".join(f"{n:,} {what}{'s' * (n > 1)}" for n, what in amounts if n) + " a minute"


def _ahead(position: int) -> str:
    if position == 0:
        return "it is next"
    return "1 job is before it" if position == 1 else f"{position} jobs are before it"


def _ahead_of_held(position: int) -> str:
    if position == 0:
        return "it is the next of them"
    return "1 of them is before it" if position == 1 else f"{position} of them are before it"


def _rule(priority: int, aging_ms: int) -> str:
    if priority == 9:
        return "priority 9 goes strictly first, the oldest before the newer"
    if priority == URGENT:
        return "priority 8 goes before all but 9, the oldest before the newer"
    if is_strict(priority, aging=aging_ms):
        return f"only more urgent jobs and older ones of priority {priority} go before it"
    younger_s = handicap(priority, aging=aging_ms) / 1000
    return (
        f"8 and 9 go first; below, a level is worth {aging_ms / 1000:g} s of waiting, "
        f"so at priority {priority} it counts as {younger_s:g} s younger than it is"
    )
