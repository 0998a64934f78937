"""What worker processes write about the jobs that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from redis.exceptions import NoPermissionError, OutOfMemoryError

from scheduler.model import JobState
from scheduler.queue.calls import CALL_BYTES, STAGED_BYTES, STAGED_MS, by_bytes, optional
from scheduler.queue.part import QueuePart
from scheduler.queue.records import Ending, Publication, Return, WriteOutcome
from scheduler.queue.scripts import Argument, Call

UNSTAGED = 2


class Writes(QueuePart):
    """What worker processes write about the jobs that they hold."""

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        """Publish events, give jobs back and end jobs, in that order, in one round trip."""
        endings, staged = await self._stage_results(endings)
        early, endings = _parted(endings)
        calls: list[Call] = []
        writes: list[Sequence[Publication | Return | Ending]] = []
        whole = [part for one in publications for part in _cut(one)]
        for some in by_bytes([*whole, *early], _size_of_events):
            calls.append(self._publish(some))
            writes.append(some)
        if returns:
            calls.append(self._retry(returns))
            writes.append(returns)
        for ends in by_bytes(endings, _size_of_end):
            calls.append(self._finish(ends))
            writes.append(ends)
        if not calls:
            return WriteOutcome()
        refused = {
            (write.job_id, write.token)
            for batch, statuses in zip(writes, await self._scripts.run_all(calls), strict=True)
            for write, status in zip(batch, statuses, strict=True)
            if not status or (status == UNSTAGED and not await self._end_whole(staged, write.token))
        }
        for end in staged.values():
            if (end.job_id, end.token) not in refused:
                await self._tell_of_end(end)
        return WriteOutcome(frozenset(refused))

    async def _stage_results(self, endings: Sequence[Ending]) -> tuple[Sequence[Ending], dict[int, Ending]]:
        """Send large results ahead. Returns the endings without those, and the whole ones by token."""
        if all(len(end.value) <= STAGED_BYTES for end in endings):
            return endings, {}
        staged: dict[int, Ending] = {}
        for end in endings:
            if end.state is JobState.DONE and len(end.value) > STAGED_BYTES:
                with suppress(OutOfMemoryError):  # a full server still takes the result from the script
                    await self.redis.set(self.keys.of("staged", end.job_id), end.value, px=STAGED_MS)
                    staged[end.token] = end
        return [end._replace(value=b"") if end.token in staged else end for end in endings], staged

    async def _end_whole(self, staged: dict[int, Ending], token: int) -> bool:
        """End a job in one call because its staged result has gone. Returns whether that was accepted."""
        end = staged.pop(token, None)
        if end is None:
            return False
        early, ends = _parted([end])
        calls = [*(self._publish([part]) for part in early), self._finish(ends)]
        statuses: list[list[int]] = await self._scripts.run_all(calls)
        return statuses[-1] == [1]

    async def _tell_of_end(self, end: Ending) -> None:
        with suppress(NoPermissionError):
            message = b"".join((end.head, end.value, b"}"))
            await self.redis.publish(self.channel(end.job_id), message)

    @staticmethod
    def _publish(publications: Sequence[Publication]) -> Call:
        args: list[Argument] = []
        for publication in publications:
            args += (publication.job_id, publication.token, publication.first_seq, len(publication.events))
            args += publication.events
        return "publish", args

    @staticmethod
    def _retry(returns: Sequence[Return]) -> Call:
        args: list[Argument] = []
        for one in returns:
            args += [int(value) if isinstance(value, bool) else optional(value) for value in one]
        return "retry", args

    @staticmethod
    def _finish(endings: Sequence[Ending]) -> Call:
        args: list[Argument] = []
        for one in endings:
            args += (one.job_id, one.token, one.state.value, one.first_seq, len(one.events))
            args += one.events
            args += (one.head, one.value, one.reason, one.result_ttl_ms, optional(one.used_tokens))
        return "finish", args


def _parted(endings: Sequence[Ending]) -> tuple[list[Publication], Sequence[Ending]]:
    """Part endings that are too large for a call: their events go first, as publications."""
    large = {end.token for end in endings if _size_of_end(end) > CALL_BYTES and end.events}
    if not large:
        return [], endings
    early: list[Publication] = []
    ends: list[Ending] = []
    for end in endings:
        if end.token not in large:
            ends.append(end)
            continue
        early += _cut(Publication(end.job_id, end.token, end.first_seq, end.events))
        ends.append(end._replace(first_seq=end.first_seq + len(end.events), events=()))
    return early, ends


def _cut(publication: Publication) -> Sequence[Publication]:
    """A publication in parts that each fit a call."""
    if _size_of_events(publication) <= CALL_BYTES:
        return (publication,)
    parts: list[Publication] = []
    seq = publication.first_seq
    for events in by_bytes(publication.events, len):
        parts.append(publication._replace(first_seq=seq, events=tuple(events)))
        seq += len(events)
    return parts


def _size_of_events(publication: Publication) -> int:
    return sum(map(len, publication.events))


def _size_of_end(end: Ending) -> int:
    return len(end.value) + sum(map(len, end.events))
