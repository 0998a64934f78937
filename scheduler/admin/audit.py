"""Looks for what does not fit together in Redis: jobs without a home, leases without jobs, lasting keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from scheduler.queue import PromptQueue
from scheduler.queue.keys import Keys

LOOKS_AT_ONCE = 1000
SCAN_COUNT = 1000
KEPT_FINDINGS = 1000

PROBLEMS: dict[str, tuple[str, str]] = {
    "no_home": ("a live job that stands nowhere, and would never run", "put back at its own place"),
    "stray": ("a job listed where it is not", "taken off the list"),
    "no_payload": ("a live job whose request has gone", "failed"),
    "no_deadline": ("a deadline that nobody watches", "watched again"),
    "expiring": ("a key of a live job that would expire", "kept"),
    "no_expiry": ("a key that should expire and never would", "expires"),
    "orphan": ("a key of a job that there is no record of", "expires"),
    "unlisted": ("an ended job that no list has", "listed"),
    "dedup_without_owner": ("a dedup key whose job is not live", "released"),
    "damaged": ("a record that cannot be read", "put aside"),
    "count": ("a count that is wrong", "counted anew"),
    "bitmap": ("a lane whose levels in use are not known", "made anew"),
    "unknown_key": ("a key that is none of this version's", "left"),
}
"""What a finding means, and what becomes of it with `repair`."""

_OF_A_JOB = frozenset({"payload", "result", "tickets", "stream"})
_LASTING = frozenset({"alias", "bucket", "claimed", "staged", "users", "worker"})
_MEMBERS = frozenset({"level", "leases", "delayed", "deadlines", "dead", "finished"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: its kind is a key of `PROBLEMS`, `where` a job, a key, or a key and a job in it."""

    kind: str
    where: str


@dataclass(slots=True)
class AuditReport:
    """What was looked at and found. `problems` has the first thousand, `counts` all by kind."""

    keys: int = 0
    jobs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        if len(self.problems) < KEPT_FINDINGS:
            self.problems.append(Problem(kind, where))


async def audit(queue: PromptQueue, *, repair: bool = False) -> AuditReport:
    """Look at every key of the queue, some at a time, while the queue goes on; mend with `repair`.

    Each check is one atomic step, so what merely moves is no finding. Counts are checked while few jobs are
    delayed or held, or few lanes are in use: a step would be too long. Errors are those of redis-py.
    """
    report = AuditReport()
    looks: list[tuple[bytes, bytes]] = []

    async def look() -> None:
        for kind, where in await queue.audit(looks, repair=repair):
            report.add(kind, where)
        looks.clear()

    async def add(one: tuple[bytes, bytes]) -> None:
        looks.append(one)
        if len(looks) >= LOOKS_AT_ONCE:
            await look()

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
        elif one := _look_at(kind, key, queue.keys):
            await add(one)
    await look()  # what comes home is counted
    async for one in _bitmaps(queue):
        await add(one)
    looks.append((b"counts", b""))
    await look()
    return report


def _look_at(kind: str, key: bytes, keys: Keys) -> tuple[bytes, bytes] | None:
    if kind == "record" or kind in _OF_A_JOB:
        job_id = key[len(keys.of(kind, "")) :]
        return (b"job" if kind == "record" else b"part " + key), job_id
    if kind == "dedup":
        return b"dedup", key
    if kind in _LASTING:
        return b"lasting", key
    return None


async def _bitmaps(queue: PromptQueue) -> AsyncIterator[tuple[bytes, bytes]]:
    """Those beside the lanes first: the count of a lane follows from them."""
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
