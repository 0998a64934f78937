"""arq's worker in a process that must not end with it, since it also runs prompts outside of arq."""

from __future__ import annotations

import asyncio
import logging

from arq.constants import abort_jobs_ss
from arq.worker import Worker

from scheduler.logs import traced

logger = logging.getLogger(__name__)

AGAIN_S = 1.0


class EnduringWorker(Worker):
    """Continues after errors that would end arq: an entry that is not a job, a key of another type."""

    _said = ""  # the current failure, which has been logged

    async def _poll_iteration(self) -> None:
        try:
            await super()._poll_iteration()
        except Exception as error:
            level = logging.DEBUG if str(error) == self._said else logging.ERROR
            self._said = str(error)
            logger.log(
                level, "arq's part of the process failed; it continues", exc_info=traced(error, logger)
            )
            await asyncio.sleep(AGAIN_S)
        else:
            self._said = ""

    async def _cancel_aborted_jobs(self) -> None:
        """Cancel aborted jobs. Without arq's transaction, which a full Redis refuses."""
        if not self.job_tasks:
            return
        asked = {job_id.decode() for job_id in await self.pool.zrange(abort_jobs_ss, 0, -1)}
        if aborted := asked & self.job_tasks.keys():
            for job_id in aborted:
                self.job_tasks[job_id].cancel()
            self.aborting_tasks |= aborted
            await self.pool.zrem(abort_jobs_ss, *aborted)

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start the jobs that are due. Removes an entry that is not a job: it would come first again."""
        for job_id in job_ids:
            before = self.job_counter
            try:
                await super().start_jobs([job_id])
            except (ValueError, OverflowError) as error:
                if self.job_counter > before:
                    self._release_sem_dec_counter_on_complete()
                logger.error(
                    "removed an entry of arq's queue that is not a job", exc_info=traced(error, logger)
                )
                await self.pool.zrem(self.queue_name, job_id)
