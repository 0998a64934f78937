"""What the writer sends in one round trip."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.queue.records import Ending, Publication, Return
from scheduler.results.job_writer import JobWriter


@dataclass(slots=True)
class Batch:
    """The events, returns and ends of some jobs."""

    jobs: list[JobWriter] = field(default_factory=list)
    publications: list[Publication] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)

    def add(self, job: JobWriter, publication: Publication | None, end: Ending | Return | None) -> None:
        """Add a job with its events and its end; either may be missing."""
        self.jobs.append(job)
        if publication is not None:
            self.publications.append(publication)
        if isinstance(end, Ending):
            self.endings.append(end)
        elif end is not None:
            self.returns.append(end)

    def apart(self) -> list[Batch]:
        """Split into one batch a job. A job's events stay before its end."""
        events = {one.token: one for one in self.publications}
        ends: dict[int, Ending | Return] = {one.token: one for one in self.returns}
        ends |= {one.token: one for one in self.endings}
        batches = []
        for job in self.jobs:
            batch = Batch()
            batch.add(job, events.get(job.job.token), ends.get(job.job.token))
            batches.append(batch)
        return batches
