"""What keeps the queue in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.queue.calls import optional
from scheduler.queue.part import QueuePart
from scheduler.queue.records import TickReport
from scheduler.queue.scripts import Call

AUDIT_CHUNK = 50
TICK_CHUNK = 25


class Maintenance(QueuePart):
    """What keeps the queue in order."""

    async def tick(
        self,
        worker: str,
        *,
        lease_ms: int,
        lock_ms: int,
        chunk: int = TICK_CHUNK,
        mend_ms: int = 10_000,
        silent_ms: int | None = None,
        known_tick_ms: int | None = None,
        is_sure: bool = False,
        away_ms: int = 0,
    ) -> TickReport:
        """Do the maintenance that is due, if this worker process holds the lock or can take it.

        Args:
            worker: the name of the worker process.
            lease_ms: how long leases hold.
            lock_ms: how long the lock holds.
            chunk: how many jobs of each kind at most.
            mend_ms: how often counts and bitmaps are made anew.
            silent_ms: how long ago, by its own clock, it got the reply to its last tick; None: never.
                It reveals a jump of Redis' clock.
            known_tick_ms: the `tick_ms` of that reply; None: never. It restores the queue's clock where
                Redis has lost its data.
            is_sure: call again with this, at once, if the report is `in_doubt`.
            away_ms: for how long Redis has just been away for this process. Jobs whose leases ended for that
                do not become suspects.
        """
        bounds = (lock_ms, lease_ms, chunk)
        clock = (optional(silent_ms), int(is_sure), away_ms, optional(known_tick_ms))
        calls: list[Call] = [("tick", (worker, *bounds, *clock)), ("tend", (worker, mend_ms))]
        (leader, next_ms, tick_ms, is_lost, *done), (tend_in_ms, woken) = await self._scripts.run_all(calls)
        report = TickReport(leader == 1, next_ms, tick_ms or None, bool(is_lost), *done)
        if leader == 2:
            return replace(report, in_doubt=True)
        if not report.leader:
            return report
        return replace(report, next_ms=min(next_ms, tend_in_ms), rearmed=report.rearmed + woken)

    async def audit(
        self, looks: Sequence[tuple[bytes, bytes]], *, repair: bool = False
    ) -> list[tuple[str, str]]:
        """Check parts of what is in Redis. The script `audit` explains the pairs in `looks`.

        One round trip; `AUDIT_CHUNK` pairs a script call. Returns pairs: what is wrong, and where. With
        `repair` it is mended as well.
        """
        words = [word for look in looks for word in look]
        steps = range(0, len(words), 2 * AUDIT_CHUNK)
        calls: list[Call] = [("audit", (int(repair), *words[at : at + 2 * AUDIT_CHUNK])) for at in steps]
        reply = [
            word.decode("utf-8", "replace") for found in await self._scripts.run_all(calls) for word in found
        ]
        return list(zip(reply[::2], reply[1::2], strict=True))
