"""The queue: one method per script, bytes in, typed values out. No policy, no retries, no asyncio tasks."""

from __future__ import annotations

from scheduler.queue.configuration import Configuration
from scheduler.queue.leases import Leases
from scheduler.queue.maintenance import Maintenance
from scheduler.queue.operations import Operations
from scheduler.queue.replays import Replays
from scheduler.queue.submissions import Submissions
from scheduler.queue.writes import Writes


class PromptQueue(Submissions, Leases, Writes, Replays, Operations, Configuration, Maintenance):
    """The jobs of one queue on one Redis.

    Every method is one atomic step on the server and may be sent twice. It raises the errors of redis-py:
    code that faces users translates them.
    """

    async def load(self) -> None:
        """Load all scripts into the server, ahead of their first use."""
        await self._scripts.load()

    @property
    def control_channel(self) -> str:
        """The pub/sub channel that tells worker processes which jobs were cancelled."""
        return self.keys.fixed("control")
