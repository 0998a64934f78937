"""The queue: one method a script, bytes in and typed values out. No policy, no retries, no asyncio tasks."""

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
    callers that face users translate them.
    """

    async def load(self) -> None:
        """Send the scripts to the server ahead of their first use."""
        await self._scripts.load()

    @property
    def control_channel(self) -> str:
        """The pub/sub channel on which worker processes hear of cancelled jobs."""
        return self.keys.fixed("control")
