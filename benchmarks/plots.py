"""The plots of a run: ours in blue, the others in grey; a thin line is the range of the rounds.

Each is a pure function of the rows, and None where its rows were not measured. The same rows give the same
bytes. matplotlib is loaded when the first plot is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.aims import TIMES
from benchmarks.harness import OURS, Row

BARE = "bare loop"
BLUE, LIGHT_BLUE = "#2f6fde", "#a9c4f5"
GREY, LIGHT_GREY = "#9aa1aa", "#d3d7dc"
INK, FAINT = "#1f2328", "#59636e"
STYLE = {
    "svg.hashsalt": "prompt-scheduler",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LINES = {
    "enqueue": "#2f6fde",
    "claim": "#d1662b",
    "finish": "#2a9d6f",
    "cancel": "#8a56c9",
    "dedup hit": "#7a828c",
}
WIDTH_IN, BAR_IN = 9.0, 0.36


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot: the name of its files, the measure under whose table it stands, and how to draw it."""

    name: str
    measure: str
    title: str
    draw: Callable[[Sequence[Row]], Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of all cases, as bars beside each other panel."""

    title: str
    measure: str
    what: str

    def of(self, rows: Sequence[Row]) -> dict[str, Row]:
        """Its rows, by case; without variants of ours, like "prompt-scheduler, no dedup"."""
        found = [row for row in rows if (row.measure, row.what) == (self.measure, self.what)]
        return {row.case: row for row in found if not row.case.startswith(f"{OURS},")}


def draw_all(rows: Sequence[Row], folder: Path) -> list[Plot]:
    """Write the plots that these rows allow, as SVG and PNG; return them.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = import_module("matplotlib")
    drawn = []
    with matplotlib.rc_context(STYLE):
        for plot in PLOTS:
            figure = plot.draw(rows)
            if figure is None:
                continue
            figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{plot.name}.png", metadata={"Software": None}, dpi=144)
            drawn.append(plot)
    return drawn


def drain(rows: Sequence[Row]) -> Any:
    """Jobs a second, with how many times ours is."""
    panel = Panel("", "drain, one process", "rate")
    found = panel.of(rows)
    ours = found.get(OURS)

    def label(row: Row) -> str:
        return f"{row.median:,.0f}   {beside(ours, row)}"

    return bars(rows, [panel], "Jobs a second through one worker process", label, room=1.5)


def beside(ours: Row | None, row: Row) -> str:
    """How ours does beside another."""
    if ours is None or row is ours:
        return ""
    if row.case == BARE:
        return f"ours is {ours.median / row.median:.0%} of that"
    return f"ours is {times(ours.median / row.median)} that"


def times(ratio: float) -> str:
    """A ratio in words: 0.54, 1.2, 14."""
    digits = 2 if ratio < 0.95 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f} {TIMES}"


def enqueue(rows: Sequence[Row]) -> Any:
    """Jobs a second that a client enqueues, in three ways."""
    panels = [
        Panel("in bulk", "enqueue, bulk", "rate"),
        Panel("100 at once", "enqueue, 100 at once", "rate"),
        Panel("one by one", "enqueue, one by one", "rate"),
    ]
    return bars(rows, panels, "Jobs a second that one client enqueues", lambda row: f"{row.median:,.0f}")


def latency(rows: Sequence[Row]) -> Any:
    """From enqueue to done on an idle system."""
    panels = [Panel("p50", "latency, idle", "done p50"), Panel("p99", "latency, idle", "done p99")]
    title = "Milliseconds from enqueue to done, nothing else waiting"
    return bars(rows, panels, title, lambda row: f"{row.median:,.2f}", rising=True)


def bars(
    rows: Sequence[Row],
    panels: Sequence[Panel],
    title: str,
    label: Callable[[Row], str],
    *,
    rising: bool = False,
    room: float = 1.3,
) -> Any:
    """Horizontal bars: a line for each case, a panel for each figure; sorted by the first panel.

    `room` is how long the axis is, in longest bars, for the words at their ends.
    """
    there = [(panel, found) for panel in panels if (found := panel.of(rows))]
    if not there:
        return None
    cases = in_order([found for _, found in there], rising=rising)
    figure = canvas(title, height_in=1.2 + BAR_IN * len(cases))
    grid = figure.subplots(1, len(there), sharey=True, squeeze=False)[0]
    for axes, (panel, found) in zip(grid, there, strict=True):
        for place, case in enumerate(cases):
            if row := found.get(case):
                bar(axes, place, row, label(row))
        axes.set_xlim(0, room * max(max(row.values) for row in found.values()))
        axes.set_title(panel.title, fontsize=12, color=FAINT, loc="left")
    name_cases(grid, cases)
    return figure


def cpu(rows: Sequence[Row]) -> Any:
    """CPU time of a drained job, what the worker spends and what the server spends."""
    parts = [Panel("", "drain, one process", f"{who} CPU").of(rows) for who in ("worker", "server")]
    workers, servers = parts
    cases = sorted(workers.keys() & servers.keys(), key=lambda case: sum(part[case].median for part in parts))
    if not cases:
        return None
    title = "CPU of a drained job, µs: worker (dark) + server (light)"
    figure = canvas(title, height_in=1.2 + BAR_IN * len(cases))
    axes = figure.subplots()
    longest = max(sum(part[case].median for part in parts) for case in cases)
    for place, case in enumerate(cases):
        worker_us, server_us = (part[case].median for part in parts)
        dark, light = (BLUE, LIGHT_BLUE) if case == OURS else (GREY, LIGHT_GREY)
        axes.barh(place, worker_us, 0.72, color=dark)
        axes.barh(place, server_us, 0.72, left=worker_us, color=light)
        words = f"{worker_us:,.0f} + {server_us:,.0f}"
        write(axes, worker_us + server_us + longest * 0.01, place, words, ours=case == OURS)
    axes.set_xlim(0, longest * 1.2)
    name_cases([axes], cases)
    return figure


def scale(rows: Sequence[Row]) -> Any:
    """What an operation costs, by how many jobs wait."""
    costs: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.measure == "scale" and row.case.endswith(" waiting") and row.unit.endswith("/job"):
            costs.setdefault(row.what, {})[waiting(row.case)] = row
    costs = {what: by_size for what, by_size in costs.items() if len(by_size) > 1}
    if not costs:
        return None
    figure = canvas("What an operation costs the server, µs a job, by how many jobs wait", height_in=4.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    for what, by_size in costs.items():
        colour = LINES.get(what, GREY)
        sizes = sorted(by_size)
        medians = [by_size[size].median for size in sizes]
        axes.plot(sizes, medians, color=colour, marker="o", linewidth=2)
        axes.vlines(sizes, *ranges(by_size[size] for size in sizes), color=colour, linewidth=1)
    ends = {what: by_size[max(by_size)].median for what, by_size in costs.items()}
    growth = {what: ends[what] / by_size[min(by_size)].median for what, by_size in costs.items()}
    top = max(max(row.values) for by_size in costs.values() for row in by_size.values()) * 1.1
    last = max(size for by_size in costs.values() for size in by_size)
    for what, at in spread(ends, gap=top * 0.065).items():
        axes.text(last * 1.15, at, f"{what}, {times(growth[what])}", va="center", color=LINES.get(what, GREY))
    axes.set_ylim(0, top)
    axes.set_xlim(right=last * 5)
    sizes = sorted({size for by_size in costs.values() for size in by_size})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("waiting jobs")
    axes.grid(axis="y", color="#e6e8eb")
    axes.set_axisbelow(True)
    return figure


def waiting(case: str) -> int:
    """How many wait in a case: "1,000,000 waiting"."""
    return int(case.split(maxsplit=1)[0].replace(",", ""))


def ranges(rows: Iterable[Row]) -> tuple[list[float], list[float]]:
    """The lowest and the highest values."""
    found = list(rows)
    return [min(row.values) for row in found], [max(row.values) for row in found]


def spread(ends: Mapping[str, float], *, gap: float) -> dict[str, float]:
    """Places for words beside these values: in their order, at least a gap apart, as near as can be."""
    groups: list[list[tuple[str, float]]] = []
    for end in sorted(ends.items(), key=lambda end: end[1]):
        groups.append([end])
        while len(groups) > 1 and lowest(groups[-1], gap) < lowest(groups[-2], gap) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return {
        what: lowest(group, gap) + gap * number for group in groups for number, (what, _) in enumerate(group)
    }


def lowest(group: Sequence[tuple[str, float]], gap: float) -> float:
    """Where the first of a group is, if the group is around the middle of its values."""
    return fmean(value for _, value in group) - gap * (len(group) - 1) / 2


def in_order(panels: Sequence[Mapping[str, Row]], *, rising: bool) -> list[str]:
    """The cases, best first by the first panel; then those that only later panels know."""
    cases: dict[str, None] = {}
    for found in panels:
        best_first = sorted(found.values(), key=lambda row: row.median, reverse=not rising)
        cases |= dict.fromkeys(row.case for row in best_first)
    return list(cases)


def canvas(title: str, *, height_in: float) -> Any:
    """An empty figure with a title."""
    figure = import_module("matplotlib.figure").Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    return figure


def bar(axes: Any, place: int, row: Row, words: str) -> None:
    """One bar, its range, and what is written at its end."""
    if row.case == BARE:
        axes.barh(place, row.median, 0.72, facecolor="none", edgecolor=GREY, linestyle=(0, (4, 3)))
    else:
        axes.barh(place, row.median, 0.72, color=BLUE if row.case == OURS else GREY)
    low, high = min(row.values), max(row.values)
    if high > low:
        axes.plot([low, high], [place, place], color=INK, linewidth=1)
    write(axes, max(high, row.median), place, words, ours=row.case == OURS)


def write(axes: Any, at: float, place: int, words: str, *, ours: bool) -> None:
    """Words behind the end of a bar."""
    axes.annotate(
        words,
        (at, place),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=11,
        color=BLUE if ours else INK,
        fontweight="bold" if ours else "normal",
    )


def name_cases(grid: Sequence[Any], cases: Sequence[str]) -> None:
    """The cases from top to bottom at the left, and nothing else around the bars: their ends say it."""
    grid[0].set_yticks(range(len(cases)), cases)
    grid[0].set_ylim(len(cases) - 0.4, -0.6)
    for label in grid[0].get_yticklabels():
        if label.get_text() == OURS:
            label.set(color=BLUE, fontweight="bold")
    for axes in grid:
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelbottom=False)


PLOTS = (
    Plot("drain", "drain, one process", "Jobs a second through one worker process", drain),
    Plot("cpu", "drain, one process", "CPU time of a job, of the worker and of the server", cpu),
    Plot("enqueue", "enqueue, bulk", "Jobs a second that one client enqueues", enqueue),
    Plot("latency", "latency, idle", "Milliseconds from enqueue to done on an idle system", latency),
    Plot("scale", "scale", "Cost of an operation by how many jobs wait", scale),
)
