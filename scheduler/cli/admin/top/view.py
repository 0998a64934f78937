"""The picture: a head, and the sections below it, cut to the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from scheduler.cli.admin.top.columns import WIDE
from scheduler.cli.admin.top.marks import bar, curve, rate, size
from scheduler.cli.admin.top.sections import sections
from scheduler.cli.admin.top.snapshot import Snapshot
from scheduler.cli.admin.top.watch import Frame
from scheduler.cli.output import age
from scheduler.printable import one_line

COMING = ("joined", "reused", "refused")
GOING = ("failed", "expired", "shed", "cancelled")
BAD = {"refused", "failed", "expired", "shed"}
NUMBERS_WIDTH = 21
MOST_CURVE_WIDTH = 60
KEYS = "q quits  p freezes"
DIM = "bright_black"


def draw(frame: Frame, *, width: int, height: int | None = None, keys: bool = False) -> list[Text]:
    """The lines of the picture: each fits into `width` columns, and together they fit into `height` lines."""
    lines = _head(frame, width=width, keys=keys)
    parts = sections(frame.snapshot, width=width)
    if height is None:
        heights: list[int | None] = [None] * len(parts)
    else:
        heights = list(share_out([part.height for part in parts], lines=height - len(lines)))
    for part, lines_of_part in zip(parts, heights, strict=True):
        if lines_of_part != 0:
            own = None if lines_of_part is None else lines_of_part - 1
            lines += [Text(), *part.draw(width=width, height=own)]
    return lines if height is None else lines[:height]


def share_out(wanted: Sequence[int], *, lines: int) -> list[int]:
    """How many of the lines each section gets, with a blank one above it; 0 if it does not fit.

    Lines that one section does not need go to others. The last sections are left out first.
    """
    least = [min(4, 1 + height) for height in wanted]  # the blank, the titles, a row, the count of the rest
    given: list[int] = []
    for height in least:
        given.append(height if all(given) and sum(given) + height <= lines else 0)
    while sum(given) < lines:
        growing = [at for at, height in enumerate(wanted) if given[at] and given[at] < 1 + height]
        if not growing:
            break
        given[min(growing, key=lambda at: given[at])] += 1
    return given


# The head


def _head(frame: Frame, *, width: int, keys: bool) -> list[Text]:
    snapshot = frame.snapshot
    lines = [_title(frame, width=width, keys=keys)]
    if frame.away:
        text = f" Redis is away: {one_line(frame.away)}; this is the last state"
        lines.append(Text(text, "bold white on red"))
    lines += [_bound(frame, width=width), _counts(snapshot, width=width)]
    lines.append(_flow("enqueued", COMING, frame, style="cyan", width=width))
    lines.append(_flow("done", GOING, frame, style="green", width=width))
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis", pad=line.style != "")
    return lines


def _title(frame: Frame, *, width: int, keys: bool) -> Text:
    status = frame.snapshot.status
    left = Text.assemble((" prompt-scheduler top ", "bold black on cyan"), "  queue ", (status.queue, "bold"))
    right = Text.assemble(f"{clock(status.at_ms)}  every {frame.interval_s:g} s")
    if frame.frozen:
        right.append("  ").append("frozen, p resumes", "bold black on yellow")
    elif keys:
        right.append(f"  {KEYS}", DIM)
    space = width - left.cell_len - right.cell_len - 1
    return left.append(" " * space).append_text(right) if space >= 2 else left.append("  ").append_text(right)


def _bound(frame: Frame, *, width: int) -> Text:
    status = frame.snapshot.status
    taken = status.waiting + status.delayed + status.held
    share = taken / max(1, status.max_waiting)
    style = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "blue"
    line = Text.assemble((" bound     ", "bold"), f"{taken:>8,}  ")
    line.append_text(bar([(taken, style)], of=status.max_waiting, width=_middle(frame, width=width)))
    return line.append(f"  of {status.max_waiting:,}, then {status.when_full}", DIM)


def _counts(snapshot: Snapshot, *, width: int) -> Text:
    status, gap = snapshot.status, 3 if width >= WIDE else 2
    most = sum(worker.max_running for worker in snapshot.workers)
    line = Text(" ")
    for name, text, style in (
        ("running", f"{status.running:,} of {most:,}" if most else f"{status.running:,}", ""),
        ("delayed", f"{status.delayed:,}", ""),
        ("held", f"{status.held:,}", ""),
        ("dead", f"{status.dead:,}", "bold red" if status.dead else ""),
        ("workers", f"{status.workers:,}", "" if status.workers else "bold red"),
    ):
        line.append(f"{name} ", "bold").append(text, style).append(" " * gap)
    if snapshot.memory is not None:
        line.append("redis ", "bold").append(size(snapshot.memory.used_bytes))
        limit = f" of {size(snapshot.memory.max_bytes)}" if snapshot.memory.max_bytes else ""
        if line.cell_len + len(limit) <= width:
            line.append(limit)
    return line


def _flow(first: str, others: Sequence[str], frame: Frame, *, style: str, width: int) -> Text:
    """A rate with its curve, and the other rates of the same direction."""
    line = Text.assemble((f" {first:<9} ", "bold"), f"{_rate(frame, first):>6}/s  ")
    rest = Text()
    for name in others:
        shown = _rate(frame, name)
        mark = DIM if shown in ("-", "0") else "red" if name in BAD else ""
        rest.append(f"  {name} ", DIM).append(shown, mark)
    values = [rates.get(first, 0.0) for rates in frame.trend]
    drawn = curve(values, width=_middle(frame, width=width), style=style)
    return line.append_text(drawn).append_text(rest)


def _middle(frame: Frame, *, width: int) -> int:
    """The width of the bar and of both curves: the columns that the figures leave."""
    rests = ("".join(f"  {name} {_rate(frame, name)}" for name in names) for names in (COMING, GOING))
    return max(0, min(MOST_CURVE_WIDTH, width - NUMBERS_WIDTH - max(map(len, rests))))


def _rate(frame: Frame, name: str) -> str:
    return rate(None if frame.rates is None else frame.rates.get(name, 0.0))


def clock(at_ms: int) -> str:
    """A time of day, in this machine's time zone."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%H:%M:%S")


def summary(frame: Frame) -> str:
    """The head in one line, for output without a terminal."""
    status = frame.snapshot.status
    if frame.away:
        return f"{clock(status.at_ms)}  Redis is away: {one_line(frame.away)}"
    oldest_s = max((lane.oldest_s or 0 for lane in status.lanes), default=0)
    rates = "  ".join(f"{name} {_rate(frame, name)}/s" for name in ("enqueued", "done", "failed"))
    return (
        f"{clock(status.at_ms)}  waiting {status.waiting:,}  oldest {age(oldest_s)}"
        f"  running {status.running:,}  delayed {status.delayed:,}  held {status.held:,}"
        f"  dead {status.dead:,}  workers {status.workers:,}  {rates}"
    )
