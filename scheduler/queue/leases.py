"""What worker processes take from the queue: jobs, and the leases that they hold on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scheduler.queue.part import QueuePart
from scheduler.queue.records import Claim, ClaimedJob, Offer, WithoutPermit
from scheduler.queue.scripts import Argument

CLAIM_BYTES = 16 << 20
CLAIM_CHUNK = 128
LANES_A_CLAIM = 256
RENEW_AT_ONCE = 512

NO_OFFERS: Mapping[str, Sequence[Offer]] = {}
NOTHING_RESERVED: Mapping[str, int] = {}

_TEXTS = [ClaimedJob._fields.index(name) for name in ("id", "lane", "tenant", "endpoint")]
_SUSPECT = ClaimedJob._fields.index("suspect")


class Leases(QueuePart):
    """What worker processes take from the queue: jobs, and the leases that they hold on them."""

    async def wait_for_work(
        self, lanes: Sequence[str], timeout_s: float, *, urgent_lanes: Sequence[str] = ()
    ) -> None:
        """Return when a lane may have work, or an urgent lane work of 8 or 9, or after `timeout_s`."""
        keys = [self.keys.of("urgent", lane) for lane in urgent_lanes]
        keys += [self.keys.of("wake", lane) for lane in lanes]
        await self.redis.blpop(keys, timeout=timeout_s)  # type: ignore[misc, arg-type]  # redis-py has one type for sync and async

    async def claim(
        self,
        claim_id: str,
        worker: str,
        lanes: Mapping[str, int],
        *,
        limit: int,
        lease_ms: int,
        reserved: int = 0,
        lanes_reserved: Mapping[str, int] = NOTHING_RESERVED,
        suspects: bool = True,
        offers: Mapping[str, Sequence[Offer]] = NO_OFFERS,
        max_bytes: int = CLAIM_BYTES,
    ) -> Claim:
        """Lease the jobs that are next, over several lanes.

        A claim id makes the call repeatable: the same id brings the same jobs.

        Args:
            claim_id: a fresh id for each claim.
            worker: the name of the worker process.
            lanes: how many jobs of each lane at most; name at most `LANES_A_CLAIM` lanes.
            limit: how many jobs in all at most.
            lease_ms: how long the leases hold.
            reserved: how many of the `limit` slots are for priorities 8 and 9.
            lanes_reserved: the same for the slots of each lane.
            suspects: whether a suspect may come, since a process runs one at a time.
            offers: for lanes with a limited endpoint, the endpoints that may take jobs now. Each job gets
                the permit of the least busy one by weight that has one, or stays in its lane.
            max_bytes: take no more jobs once their requests reach this; one comes in any case.

        A job whose request is deleted before it is read, most likely by a cancel, is left out.
        """
        slots = min(limit, CLAIM_CHUNK)
        # Slots beyond one claim are the first that are reserved.
        reserved = max(0, reserved - (limit - slots))
        args: list[Argument] = [
            claim_id,
            worker,
            lease_ms,
            slots,
            reserved,
            int(suspects),
            min(max_bytes, CLAIM_BYTES),
        ]
        for lane, quota in lanes.items():
            offered = " ".join(
                f"{offer.endpoint} {offer.room} {offer.reserved} {offer.outstanding} {offer.weight}"
                for offer in offers.get(lane, ())
            )
            args += (lane, quota, lanes_reserved.get(lane, 0), offered)
        more, waits, *rows = await self._scripts.run("claim", *args)
        without = {
            lane.decode(): WithoutPermit(tuple(names.decode().split()), ms)
            for lane, ms, names in zip(waits[::3], waits[1::3], waits[2::3], strict=True)
        }
        jobs = await self._with_payloads([_claimed(row) for row in rows])
        return Claim(jobs, more=more > 0, more_urgent=more > 1, without_permit=without)

    async def _with_payloads(self, jobs: Sequence[ClaimedJob]) -> tuple[ClaimedJob, ...]:
        """The same jobs, with the requests that are too large for a script's reply."""
        large = [job.id for job in jobs if not job.payload]
        if not large:
            return tuple(jobs)
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in large:
                pipe.get(self.keys.of("payload", job_id))
            payloads = dict(zip(large, await pipe.execute(), strict=True))
        whole = (job if job.payload else job._replace(payload=payloads[job.id]) for job in jobs)
        return tuple(job for job in whole if job.payload)

    async def take_permit(self, job: ClaimedJob, endpoint: str) -> int | Literal["lost"]:
        """Take a permit of another endpoint for a running attempt.

        Returns 0 if it has it, else the ms until that endpoint has one; "lost" if the job is no longer this
        token's. What the first endpoint was charged stays charged.
        """
        reply = int(await self._scripts.run("take_permit", job.id, job.token, endpoint))
        return "lost" if reply < 0 else reply

    async def renew(
        self, worker: str, leases: Sequence[tuple[str, int]], *, lease_ms: int, about: bytes
    ) -> list[int | Literal["lost"] | None]:
        """Renew the leases that a worker process holds, and report that it is alive.

        `about` describes the process, JSON. Returns, for each `(job_id, token)`: the ms to the deadline, None
        without one, or "lost" if the job is no longer this token's.
        """
        replies: list[int] = []
        for at in range(0, max(1, len(leases)), RENEW_AT_ONCE):
            jobs = [part for job in leases[at : at + RENEW_AT_ONCE] for part in job]
            replies += await self._scripts.run("renew", worker, lease_ms, about, *jobs)
        return ["lost" if reply == -2 else None if reply == -1 else reply for reply in replies]

    async def share_endpoints(
        self, worker: str, endpoints: Sequence[str], *, holds_ms: int
    ) -> list[tuple[int, int]]:
        """Report that a worker process uses these endpoints for the next `holds_ms`; 0: not any more.

        Returns, for each endpoint: how many worker processes use it, and the index of this one, from 0.
        """
        if not endpoints:
            return []
        flat: list[int] = await self._scripts.run("share_endpoints", worker, holds_ms, *endpoints)
        return list(zip(flat[::2], flat[1::2], strict=True))

    async def forget_worker(self, worker: str) -> None:
        """Take a stopped worker process off the list, and release its maintenance lock."""
        await self._scripts.run("forget_worker", worker)


def _claimed(row: list[Any]) -> ClaimedJob:
    for at in _TEXTS:
        row[at] = row[at].decode()
    row[_SUSPECT] = row[_SUSPECT] > 0
    return ClaimedJob._make(row)
