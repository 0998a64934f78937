"""What the demo shows while it runs."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from statistics import mean

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from scheduler.cli.demo.plan import PROMPTS
from scheduler.cli.output import age, priority_text
from scheduler.events import Delta, Done, Event
from scheduler.model import JobInfo, JobState, Priority
from scheduler.queue.inspection import QueueInspector
from scheduler.queue.reports import QueueStatus

RATE_OVER_S = 3.0
CHARS_A_TOKEN = 5
MAX_JOBS = 1000
BAR_WIDTH = 20
PRIORITIES = sorted((int(one) for one in Priority), reverse=True)
STYLES = {9: "bold red", 7: "yellow", 5: "green", 3: "cyan", 1: "dim"}


class TokenRate:
    """Tokens that have come, and how many a second: guessed from the text until the engine has said."""

    def __init__(self) -> None:
        self.tokens = 0
        self._guessed: Counter[str] = Counter()
        self._recent: deque[tuple[float, int]] = deque()

    def hear(self, event: Event) -> None:
        """Take an event of any job."""
        if isinstance(event, Delta):
            guess = len(event.text) // CHARS_A_TOKEN
            self._guessed[event.job_id] += guess
            self._count(guess)
        elif isinstance(event, Done):
            self._count((event.result.usage.output_tokens or 0) - self._guessed.pop(event.job_id, 0))

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self._recent.append((time.monotonic(), tokens))

    @property
    def per_second(self) -> float:
        """Over the last seconds."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RATE_OVER_S:
            self._recent.popleft()
        return max(0, sum(tokens for _, tokens in self._recent)) / RATE_OVER_S


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand at one moment."""

    status: QueueStatus
    running: list[JobInfo]
    done: list[JobInfo]
    tokens: int
    tokens_per_s: float
    elapsed_s: float
    waiting: Counter[int] = field(default_factory=Counter)

    @property
    def shared(self) -> int:
        """Duplicates that got a job or an answer that was there."""
        return self.status.totals.get("joined", 0) + self.status.totals.get("reused", 0)


async def look(inspector: QueueInspector, rate: TokenRate, began_at: float) -> Snapshot:
    """Ask the queue how it stands."""
    status = await inspector.status()
    waiting: Counter[int] = Counter()
    for lane in status.lanes:
        waiting.update(lane.by_priority)
    return Snapshot(
        status=status,
        running=await inspector.jobs(state=JobState.RUNNING, limit=MAX_JOBS),
        done=await inspector.jobs(state=JobState.DONE, limit=MAX_JOBS),
        tokens=rate.tokens,
        tokens_per_s=rate.per_second,
        elapsed_s=time.monotonic() - began_at,
        waiting=waiting,
    )


def draw(snapshot: Snapshot) -> Group:
    """The table, for a terminal."""
    shown = Table(
        box=box.ROUNDED, title=f"prompt-scheduler: {PROMPTS} prompts, one worker process", min_width=64
    )
    for column in ("priority", "waiting", "running", "done", "mean wait"):
        shown.add_column(column, justify="left" if column == "priority" else "right", no_wrap=True)
    shown.add_column("", width=BAR_WIDTH)
    for priority in PRIORITIES:
        running = sum(job.priority == priority for job in snapshot.running)
        done = [job for job in snapshot.done if job.priority == priority]
        waiting = snapshot.waiting[priority]
        shown.add_row(
            Text(priority_text(priority), STYLES[priority]),
            str(waiting),
            str(running),
            str(len(done)),
            age(mean_wait_s(done)),
            _bar(len(done), running, waiting, STYLES[priority]),
        )
    return Group(shown, Text(f" {snapshot.elapsed_s:.1f} s, {_shared_and_tokens(snapshot)}"))


def _bar(done: int, running: int, waiting: int, style: str, width: int = BAR_WIDTH) -> Text:
    everything = max(1, done + running + waiting)
    full = round(width * done / everything)
    partly = min(width - full, round(width * running / everything) or (1 if running else 0))
    bar = Text("█" * full, style)
    bar.append("▒" * partly, style)
    return bar.append("░" * (width - full - partly), "dim")


def mean_wait_s(jobs: list[JobInfo]) -> float | None:
    """How long these jobs waited for their start, in seconds."""
    waits = [job.started_at_ms - job.enqueued_at_ms for job in jobs if job.started_at_ms is not None]
    return mean(waits) / 1000 if waits else None


def summary(snapshot: Snapshot) -> str:
    """All of it in one line, for where there is no terminal."""
    return (
        f"{snapshot.elapsed_s:5.1f} s  waiting {snapshot.waiting.total():3}"
        f"  running {len(snapshot.running):2}  done {len(snapshot.done):3}  {_shared_and_tokens(snapshot)}"
    )


def _shared_and_tokens(snapshot: Snapshot) -> str:
    return (
        f"{snapshot.shared} duplicates joined, "
        f"{snapshot.tokens:,} tokens, {snapshot.tokens_per_s:,.0f} a second"
    )
