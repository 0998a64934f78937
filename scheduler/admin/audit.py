"""Audits the queue's data in Redis: jobs in no list, leases without jobs, keys that never expire."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from scheduler.queue import PromptQueue
from scheduler.queue.keys import Keys

CHECKS_A_CALL = 1000
SCAN_COUNT = 1000
MAX_PROBLEMS = 1000

PROBLEMS: dict[str, tuple[str, str]] = {
    "no_home": ("a live job that is in no list, and would never run", "put back at its own position"),
    "stray": ("a list has a job that does not belong there", "removed from the list"),
    "no_payload": ("a live job without its stored request", "failed"),
    "no_deadline": ("a deadline that is not watched", "watched again"),
    "expiring": ("a key of a live job would expire", "does not expire any more"),
    "no_expiry": ("a key that should expire never would", "expires"),
    "orphan": ("a key of a job without a record", "expires"),
    "unlisted": ("an ended job that is in no list", "listed"),
    "dedup_without_owner": ("a dedup key whose job is not live", "released"),
    "damaged": ("a record that cannot be read", "set aside"),
    "count": ("a wrong count", "counted again"),
    "bitmap": ("a lane with a wrong bitmap of its levels", "made again"),
    "unknown_key": ("a key that this version does not know", "left alone"),
}
"""By kind: the meaning of a problem, and what `repair` does about it."""

_OF_A_JOB = frozenset({"payload", "result", "tickets", "stream"})
_LASTING = frozenset({"alias", "bucket", "claimed", "staged", "users", "worker"})
_MEMBERS = frozenset({"level", "leases", "delayed", "deadlines", "dead", "finished"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem."""

    kind: str
    """A key of `PROBLEMS`."""
    where: str
    """A job, a key, or a key and a job in it."""


@dataclass(slots=True)
class AuditReport:
    """The result of an audit."""

    keys: int = 0
    """How many keys were checked."""
    jobs: int = 0
    """How many jobs were checked."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many problems of each kind there are."""
    problems: list[Problem] = field(default_factory=list)
    """The first thousand problems."""

    def add(self, kind: str, where: str) -> None:
        """Count a problem."""
        self.counts[kind] += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(kind, where))


async def audit(queue: PromptQueue, *, repair: bool = False) -> AuditReport:
    """Check every key of the queue, some at a time, while the queue is in use; `repair` fixes problems.

    Each check is one atomic step, so a job that merely moves is not a problem. Counts are checked only while
    few jobs are delayed or held, and few lanes are in use: otherwise the step would take too long. Raises
    redis-py's errors.
    """
    report = AuditReport()
    checks: list[tuple[bytes, bytes]] = []

    async def run_checks() -> None:
        for kind, where in await queue.audit(checks, repair=repair):
            report.add(kind, where)
        checks.clear()

    async def add(check: tuple[bytes, bytes]) -> None:
        checks.append(check)
        if len(checks) >= CHECKS_A_CALL:
            await run_checks()

    async for key in _keys(queue):
        report.keys += 1
        name = key.decode("utf-8", "replace")
        kind, _ = queue.keys.split(name)
        report.jobs += kind == "record"
        if not kind:
            report.add("unknown_key", name)
        if kind in _MEMBERS:
            async for member, _ in queue.redis.zscan_iter(key, count=SCAN_COUNT):
                await add((b"member " + key, member))
        elif check := _check_of(kind, key, queue.keys):
            await add(check)
    await run_checks()  # before the counts, which repairs change
    async for check in _bitmaps(queue):
        await add(check)
    checks.append((b"counts", b""))
    await run_checks()
    return report


def _check_of(kind: str, key: bytes, keys: Keys) -> tuple[bytes, bytes] | None:
    if kind == "record" or kind in _OF_A_JOB:
        job_id = key[len(keys.of(kind, "")) :]
        return (b"job" if kind == "record" else b"part " + key), job_id
    if kind == "dedup":
        return b"dedup", key
    if kind in _LASTING:
        return b"lasting", key
    return None


async def _bitmaps(queue: PromptQueue) -> AsyncIterator[tuple[bytes, bytes]]:
    """Jobs beside the lanes first: the count of a lane follows from them."""
    fixed = queue.keys.fixed
    async for place, _ in queue.redis.hscan_iter(fixed("beside"), count=SCAN_COUNT):
        yield b"beside", place
    async for place, _ in queue.redis.zscan_iter(fixed("limited"), count=SCAN_COUNT):
        yield b"beside", place
    async for lane in queue.redis.sscan_iter(fixed("lanes"), count=SCAN_COUNT):
        yield b"lane", lane


async def _keys(queue: PromptQueue) -> AsyncIterator[bytes]:
    async for key in queue.redis.scan_iter(match=_glob(queue.keys), count=SCAN_COUNT):
        yield key


def _glob(keys: Keys) -> str:
    return "".join(f"[{one}]" if one in "[]?*\\{}" else one for one in keys.prefix) + "*"
