"""The demo's picture: a live table, or a line. Pure, but for the snapshot."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean
from textwrap import fill

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from scheduler.cli.demo.listener import Listener, Stream
from scheduler.cli.demo.verdict import Check
from scheduler.cli.output import PRIORITY_STYLES, age, priority_text
from scheduler.model import JobInfo, JobState, Priority
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.jobs import list_jobs
from scheduler.queue.inspection.status import read_status
from scheduler.queue.reports import QueueStatus

MAX_JOBS = 1000
BAR_WIDTH = 20
LONG_BAR_WIDTH = 40
TEXT_WIDTH = 56
TABLE_WIDTH = 79
PRIORITIES = sorted((int(one) for one in Priority), reverse=True)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the demo at one moment."""

    prompts: int
    """How many prompts will be sent in all."""
    status: QueueStatus
    running: list[JobInfo]
    done: list[JobInfo]
    tokens: int
    tokens_per_s: float
    elapsed_s: float
    stream: Stream | None = None
    waiting: Counter[int] = field(default_factory=Counter)

    @property
    def shared(self) -> int:
        """Duplicates that joined a job or reused an answer."""
        return self.status.totals.get("joined", 0) + self.status.totals.get("reused", 0)

    @property
    def sent(self) -> int:
        """Prompts that the client has sent so far."""
        return self.status.totals.get("enqueued", 0) + self.shared


async def take_snapshot(queue: PromptQueue, listener: Listener, *, prompts: int, began_at: float) -> Snapshot:
    """Ask the queue for its state. `began_at` is a time of the monotonic clock."""
    status = await read_status(queue)
    running = await list_jobs(queue, state=JobState.RUNNING, limit=MAX_JOBS)
    waiting: Counter[int] = Counter()
    for lane in status.lanes:
        waiting.update(lane.by_priority)
    return Snapshot(
        prompts=prompts,
        status=status,
        running=running,
        done=await list_jobs(queue, state=JobState.DONE, limit=MAX_JOBS),
        tokens=listener.tokens,
        tokens_per_s=listener.per_second,
        elapsed_s=time.monotonic() - began_at,
        stream=listener.follow(running),
        waiting=waiting,
    )


def draw(snapshot: Snapshot) -> Group:
    """The table and the lines below it: at most 80 columns, always the same number of lines."""
    shown = Table(
        box=box.ROUNDED,
        title=f"prompt-scheduler: {snapshot.prompts} prompts, one worker process",
        width=TABLE_WIDTH,
    )
    for column in ("priority", "waiting", "running", "done", "mean wait"):
        shown.add_column(column, justify="left" if column == "priority" else "right", no_wrap=True)
    shown.add_column("", width=BAR_WIDTH, no_wrap=True)
    for priority in PRIORITIES:
        running = sum(job.priority == priority for job in snapshot.running)
        done = [job for job in snapshot.done if job.priority == priority]
        waiting = snapshot.waiting[priority]
        shown.add_row(
            Text(priority_text(priority), PRIORITY_STYLES[priority]),
            str(waiting),
            str(running),
            str(len(done)),
            age(mean_wait_s(done)),
            _bar(len(done), running, waiting, PRIORITY_STYLES[priority], BAR_WIDTH),
        )
    return Group(shown, *_below(snapshot))


def _below(snapshot: Snapshot) -> list[Text]:
    done, running = len(snapshot.done), len(snapshot.running)
    progress = Text(" ").append(_bar(done, running, snapshot.waiting.total(), "green", LONG_BAR_WIDTH))
    progress.append(f"  {snapshot.sent} of {snapshot.prompts} prompts sent")
    return [
        progress,
        Text(f" {done} jobs run, {snapshot.shared} duplicates joined"),
        Text(
            f" {snapshot.tokens:,} tokens, {snapshot.tokens_per_s:,.0f} a second; {snapshot.elapsed_s:.1f} s"
        ),
        Text(),
        _stream_line(snapshot.stream),
    ]


def _stream_line(stream: Stream | None) -> Text:
    if stream is None:
        return Text(" streaming", "dim")
    said = " ".join(character for character in stream.text.split())
    said = "".join(character for character in said if character.isprintable())
    line = Text(f" {priority_text(stream.priority):<12} ▸ ", PRIORITY_STYLES[stream.priority], no_wrap=True)
    return line.append(said if len(said) <= TEXT_WIDTH else f"…{said[1 - TEXT_WIDTH :]}", "default")


def _bar(done: int, running: int, waiting: int, style: str, width: int) -> Text:
    everything = max(1, done + running + waiting)
    full = width * done // everything
    partly = min(width - full, round(width * running / everything) or (1 if running else 0))
    bar = Text("█" * full, style)
    bar.append("▒" * partly, style)
    return bar.append("░" * (width - full - partly), "dim")


def mean_wait_s(jobs: list[JobInfo]) -> float | None:
    """How long these jobs waited for their start, in seconds."""
    waits = [job.started_at_ms - job.enqueued_at_ms for job in jobs if job.started_at_ms is not None]
    return mean(waits) / 1000 if waits else None


def summary(snapshot: Snapshot) -> str:
    """Everything in one line, for output without a terminal."""
    return (
        f"{snapshot.elapsed_s:5.1f} s  waiting {snapshot.waiting.total():3}"
        f"  running {len(snapshot.running):2}  done {len(snapshot.done):3}  joined {snapshot.shared:2}"
        f"  {snapshot.tokens:,} tokens, {snapshot.tokens_per_s:,.0f} a second"
    )


def verdict(checks: Sequence[Check], width: int) -> Text:
    """The checks, in lines of at most `width` columns."""
    lines = []
    for check in checks:
        said = fill(check.claim, width - 1, initial_indent=" " * 6, subsequent_indent=" " * 6)
        head = ("ok    ", "green") if check.passed else ("FAIL  ", "bold red")
        lines.append(Text.assemble(head, said[6:]))
    return Text("\n").join(lines)
