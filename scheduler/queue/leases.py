"""What worker processes take from the queue and hold."""

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
NOTHING_KEPT: Mapping[str, int] = {}

_TEXTS = [ClaimedJob._fields.index(name) for name in ("id", "lane", "tenant", "endpoint")]
_SUSPECT = ClaimedJob._fields.index("suspect")


class Leases(QueuePart):
    """What worker processes take from the queue and hold."""

    async def wait_for_work(
        self, lanes: Sequence[str], timeout_s: float, *, urgent_lanes: Sequence[str] = ()
    ) -> None:
        """Return when one of the lanes may have work, or an urgent lane work of 8 or 9; or in `timeout_s`."""
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
        kept: int = 0,
        lanes_kept: Mapping[str, int] = NOTHING_KEPT,
        suspects: bool = True,
        offers: Mapping[str, Sequence[Offer]] = NO_OFFERS,
        max_bytes: int = CLAIM_BYTES,
    ) -> Claim:
        """Lease the best ready jobs: at most `limit`, of each lane at most what `lanes` says.

        Name at most `LANES_A_CLAIM` lanes.

        It takes no more once their requests have `max_bytes` together, but one in any case. Of those whose
        requests have gone before they were read, cancelled most likely, nothing is told.

        `kept` of the `limit`, and of each lane's places those in `lanes_kept`, are for priorities 8 and 9.

        Jobs that may have killed a worker process are *suspects*; a process may run one at a time, so say in
        `suspects` whether it runs none.

        For lanes with a limited endpoint, `offers` has those that may take jobs now: every job gets the
        permit of the least busy one by weight that has one, or stays where it is.
        """
        places = min(limit, CLAIM_CHUNK)
        # What goes beyond one claim is kept first.
        kept = max(0, kept - (limit - places))
        args: list[Argument] = [
            claim_id,
            worker,
            lease_ms,
            places,
            kept,
            int(suspects),
            min(max_bytes, CLAIM_BYTES),
        ]
        for lane, quota in lanes.items():
            offered = " ".join(
                f"{offer.endpoint} {offer.room} {offer.kept} {offer.outstanding} {offer.weight}"
                for offer in offers.get(lane, ())
            )
            args += (lane, quota, lanes_kept.get(lane, 0), offered)
        more, waits, *rows = await self._scripts.run("claim", *args)
        without = {
            lane.decode(): WithoutPermit(tuple(names.decode().split()), ms)
            for lane, ms, names in zip(waits[::3], waits[1::3], waits[2::3], strict=True)
        }
        jobs = await self._with_payloads([_claimed(row) for row in rows])
        return Claim(jobs, more=more > 0, more_urgent=more > 1, without_permit=without)

    async def _with_payloads(self, jobs: Sequence[ClaimedJob]) -> tuple[ClaimedJob, ...]:
        """The same jobs with the requests that are too large for a script's reply."""
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
        """Let an attempt move on to another endpoint: 0, or in how many ms that has a permit for it.

        "lost": the job is not this token's any more. What the first endpoint was charged stays.
        """
        reply = int(await self._scripts.run("take_permit", job.id, job.token, endpoint))
        return "lost" if reply < 0 else reply

    async def renew(
        self, worker: str, held: Sequence[tuple[str, int]], *, lease_ms: int, about: bytes
    ) -> list[int | Literal["lost"] | None]:
        """Renew the leases of all jobs that a worker process holds, and say that it lives.

        Returns, for each `(job_id, token)`: ms to its deadline, None without one, or "lost".
        """
        replies: list[int] = []
        for at in range(0, max(1, len(held)), RENEW_AT_ONCE):
            jobs = [part for job in held[at : at + RENEW_AT_ONCE] for part in job]
            replies += await self._scripts.run("renew", worker, lease_ms, about, *jobs)
        return ["lost" if reply == -2 else None if reply == -1 else reply for reply in replies]

    async def attend(self, worker: str, endpoints: Sequence[str], *, holds_ms: int) -> list[tuple[int, int]]:
        """Say that a worker process uses these endpoints for `holds_ms`; 0: no more.

        Returns, for each: how many worker processes use it, and the place of this one among them, from 0.
        """
        if not endpoints:
            return []
        flat: list[int] = await self._scripts.run("attend", worker, holds_ms, *endpoints)
        return list(zip(flat[::2], flat[1::2], strict=True))

    async def forget_worker(self, worker: str) -> None:
        """Take a worker process that has stopped off the list, and let go of the maintenance lock."""
        await self._scripts.run("forget_worker", worker)


def _claimed(row: list[Any]) -> ClaimedJob:
    for at in _TEXTS:
        row[at] = row[at].decode()
    row[_SUSPECT] = row[_SUSPECT] > 0
    return ClaimedJob._make(row)
