"""What a run has found, as tables on the terminal, and as a folder: Markdown, JSON and plots."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from benchmarks import plots
from benchmarks.aims import TIMES, Verdict, judge
from benchmarks.harness import OURS, Bench, Row

PACKAGES = ("prompt-scheduler", "arq", "redis", "hiredis", "uvloop", "httpx", "orjson", "pydantic")
BAR_WIDTH = 20
WIDEST, FEW, TERMINAL_WIDTH = 6, 4, 120
QUANTILE = re.compile(r"(.+?),? (p[\d.]+)$")
TO = "\N{EN DASH}"
HOW_TO_READ = (
    "A figure is the median of the rounds, and below it are the lowest and the highest. "
    "Ours and others in one table took turns, on one machine."
)
QUICK = " **This was a quick run: few jobs, and figures that are rough.**"
VERDICTS = {True: "met", False: "not met", None: "not measured"}
COLOURS = {True: "green", False: "red", None: "dim"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A median and the range of the rounds, as text; the range is empty where there was one round."""

    median: str = ""
    range: str = ""

    @property
    def words(self) -> tuple[str, str]:
        """What must not be broken."""
        return self.median, self.range


@dataclass(frozen=True, slots=True)
class Line:
    """What is known of one case. `ratio` and `share` (of the longest bar) are there where there is a rate."""

    case: str
    cells: tuple[Cell, ...]
    ratio: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Table:
    """One measure: cases down, figures across."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[str, ...]

    @property
    def compares(self) -> bool:
        """Whether there are others beside us, with rates."""
        return any(line.ratio for line in self.lines)


def tables(rows: Sequence[Row]) -> list[Table]:
    """The tables of all measures, in the order in which they were measured."""
    names = dict.fromkeys(row.measure for row in rows)
    return [
        table(part) for name in names for part in not_too_wide([row for row in rows if row.measure == name])
    ]


def not_too_wide(rows: list[Row]) -> list[list[Row]]:
    """The rows of a measure; if it has more figures than fit beside each other, arranged otherwise.

    A few cases stand beside each other, with their figures below. Of many cases, quantiles are on their own:
    "arq" and "done p99" become "arq: done" and "p99".
    """
    if len({row.what for row in rows}) <= WIDEST:
        return [rows]
    if len({row.case for row in rows}) <= FEW:
        return [[replace(row, case=head(row.what, row.unit), what=row.case, unit="") for row in rows]]
    others = [row for row in rows if not QUANTILE.search(row.what)]
    folded = [
        replace(row, case=f"{row.case}: {found[1]}", what=found[2])
        for row in rows
        if (found := QUANTILE.search(row.what))
    ]
    return [part for part in (folded, others) if part]


def head(what: str, unit: str) -> str:
    """What stands above a column."""
    return f"{what} ({unit})" if unit else what


def table(rows: Sequence[Row]) -> Table:
    """The table of one measure."""
    columns = list(dict.fromkeys((row.what, row.unit) for row in rows))
    found = {(row.case, row.what, row.unit): row for row in rows}
    rates = rates_of(rows)
    lines = [
        Line(
            case,
            tuple(cell(found.get((case, *column))) for column in columns),
            ratio=ratio_to_ours(rates, case),
            share=rates.get(case, 0.0) / max(rates.values(), default=1.0),
        )
        for case in dict.fromkeys(row.case for row in rows)
    ]
    return Table(
        rows[0].measure, tuple(head(*column) for column in columns), tuple(lines), footnotes_of(rows)
    )


def footnotes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Each note once, with the cases that it is about unless it is about all of them."""
    cases = dict.fromkeys(row.case for row in rows)
    about: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.note:
            about.setdefault(row.note, {})[row.case] = None
    return tuple(
        note if len(noted) == len(cases) > 1 else f"{', '.join(noted)}: {note}"
        for note, noted in about.items()
    )


def rates_of(rows: Sequence[Row]) -> dict[str, float]:
    """The rates of a measure, by case."""
    return {row.case: row.median for row in rows if row.what == "rate"}


def ratio_to_ours(rates: dict[str, float], case: str) -> str:
    """How many times the rate of a case ours is."""
    if is_ours(case) or OURS not in rates or not rates.get(case):
        return ""
    return f"{number(rates[OURS] / rates[case])} {TIMES}"


def is_ours(case: str) -> bool:
    """Whether a case is ours, as a whole or in part."""
    return case.startswith((OURS, "our adapter"))


def cell(row: Row | None) -> Cell:
    """What stands in the table for a row."""
    if row is None:
        return Cell()
    low, high = number(min(row.values)), number(max(row.values))
    return Cell(number(row.median), f"{low}{TO}{high}" if len(row.values) > 1 else "")


def number(value: float) -> str:
    """Three digits that count, and all those before the point: 0.0123, 0.120, 1.23, 45.6, 12,345."""
    size = abs(value)
    for least, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if size >= least:
            return f"{value:,.{digits}f}"
    return f"{value:#.3g}" if value else "0"


def show(bench: Bench) -> None:
    """Print the tables, and last what was aimed for."""
    console = Console()
    console.width = max(console.width, TERMINAL_WIDTH)
    for one in tables(bench.rows):
        console.print(grid(one))
        for footnote in one.footnotes:
            console.print(Text(f"{footnote}\n", "dim"))
    for subject, words in bench.notes.items():
        console.print(Text.assemble((subject, "bold"), f": {words}"))
    console.print()
    console.print(aims_grid(judge(bench.rows)))


def grid(one: Table) -> Grid:
    """A table for the terminal; where rates are compared, with a bar for each."""
    drawn = Grid(title=Text(one.title, "bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("", no_wrap=True)
    for at, column in enumerate(one.columns):
        least = max(len(word) for line in one.lines for word in (*column.split(), *line.cells[at].words))
        drawn.add_column(column, justify="right", min_width=least)
    if one.compares:
        drawn.add_column("ours ÷ theirs", justify="right", no_wrap=True)
        drawn.add_column("", width=BAR_WIDTH)
    for line in one.lines:
        style = "bold blue" if is_ours(line.case) else ""
        cells = [cell_text(cell) for cell in line.cells]
        bar = Bar(1.0, 0.0, line.share, color="blue" if is_ours(line.case) else "bright_black")
        extra: list[RenderableType] = [Text(line.ratio), bar] if one.compares else []
        drawn.add_row(Text(line.case), *cells, *extra, style=style)
    return drawn


def cell_text(cell: Cell) -> Text:
    """The median, and the range below it."""
    return Text.assemble(cell.median, (f"\n{cell.range}" if cell.range else "", "dim not bold"))


def aims_grid(verdicts: Sequence[Verdict]) -> Grid:
    """The aims for the terminal."""
    drawn = Grid(title=Text("aims", "bold"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("")
    for column in ("aim", "got", ""):
        drawn.add_column(column, justify="right", no_wrap=True)
    for verdict in verdicts:
        drawn.add_row(*aim_words(verdict), Text(VERDICTS[verdict.met], COLOURS[verdict.met]))
    return drawn


def aim_words(verdict: Verdict) -> tuple[str, str, str]:
    """What is aimed for, the bound, and what was got."""
    aim = verdict.aim
    got = "" if verdict.got is None else f"{number(verdict.got)} {aim.unit}"
    return aim.what, f"{aim.sense} {aim.bound:,g} {aim.unit}", got


def keep(bench: Bench, folder: Path) -> None:
    """Write figures.json, the plots, and README.md with the tables into a folder.

    What the folder has of measures that were not made this time stays, and the page says when it was made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = circumstances(bench)
    bench, earlier = beside_earlier(bench, folder / "figures.json")
    text = json.dumps(figures(bench, made) | {"earlier": earlier}, indent=1, ensure_ascii=False)
    (folder / "figures.json").write_text(text + "\n", encoding="utf-8")
    try:
        drawn = plots.draw_all(bench.rows, folder)
    except ImportError:
        drawn = []
        print("no plots: matplotlib is not installed (dependency group `bench`)", file=sys.stderr)
    made |= {
        f"made on {when}": ", ".join(repr(name) for name, then in earlier.items() if then == when)
        for when in sorted(set(earlier.values()))
    }
    (folder / "README.md").write_text(markdown(bench, made, drawn), encoding="utf-8")
    print(f"kept in {folder}")


def beside_earlier(bench: Bench, path: Path) -> tuple[Bench, dict[str, str]]:
    """The rows of a run among those of other measures that a file has; and for these, when they were made."""
    if not path.exists():
        return bench, {}
    before = json.loads(path.read_text(encoding="utf-8"))
    old = [row_of(row) for row in before["rows"]]
    fresh = {row.measure for row in bench.rows}
    order = dict.fromkeys([*(row.measure for row in old), *(row.measure for row in bench.rows)])
    rows = [row for name in order for row in (bench.rows if name in fresh else old) if row.measure == name]
    then = f"{before['date']}, commit {before['commit']}"
    earlier = {name: before.get("earlier", {}).get(name, then) for name in order if name not in fresh}
    return replace(
        bench, rows=rows, notes={**before["notes"], **bench.notes} if earlier else bench.notes
    ), earlier


def row_of(kept: Mapping[str, Any]) -> Row:
    """A row as figures.json has it."""
    values = tuple(kept["values"])
    return Row(kept["measure"], kept["case"], kept["what"], kept["unit"], values, kept["note"])


def circumstances(bench: Bench) -> dict[str, str]:
    """With what the figures were made, in words."""
    packages = [(name, installed(name)) for name in PACKAGES]
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory_gb():.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "server": bench.server_version,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {number}" for name, number in packages if number),
        "rounds": f"{bench.rounds}{', a quick run' if bench.quick else ''}",
    }


def figures(bench: Bench, made: Mapping[str, object]) -> dict[str, Any]:
    """All that was found, as kept in figures.json."""
    return {
        **made,
        "notes": bench.notes,
        "rows": [asdict(row) | {"median": row.median} for row in bench.rows],
        "aims": [
            {
                "aim": verdict.aim.what,
                "sense": verdict.aim.sense,
                "bound": verdict.aim.bound,
                "unit": verdict.aim.unit,
                "got": verdict.got,
                "met": verdict.met,
            }
            for verdict in judge(bench.rows)
        ],
    }


def markdown(bench: Bench, made: dict[str, str], drawn: Sequence[plots.Plot]) -> str:
    """The README: what was aimed for, each measure with its plots, and how it was made."""
    parts = [
        "# Benchmarks",
        f"Made by `{made['command']}`, which writes this page. {HOW_TO_READ}{QUICK if bench.quick else ''}",
        "## Aims",
        aims_markdown(judge(bench.rows)),
        "## Figures",
    ]
    for title, of_measure in groupby(tables(bench.rows), key=lambda one: one.title):
        parts.append(f"### {title[0].upper()}{title[1:]}")
        parts += [f"![{plot.title}]({plot.name}.svg)" for plot in drawn if plot.measure == title]
        for one in of_measure:
            parts.append(table_markdown(one))
            parts += [f"<sub>{escape(footnote)}</sub>" for footnote in one.footnotes]
    parts.append("## How they were made")
    parts.append(listed(made))
    if bench.notes:
        parts += ["## Notes", listed(bench.notes)]
    return "\n\n".join(parts) + "\n"


def aims_markdown(verdicts: Sequence[Verdict]) -> str:
    """The aims, for GitHub."""
    lines = [(*aim_words(verdict), VERDICTS[verdict.met]) for verdict in verdicts]
    return markdown_table(("", "aim", "got", ""), lines)


def table_markdown(one: Table) -> str:
    """A table, for GitHub: ours in bold, ranges small below the medians."""
    lines = []
    for line in one.lines:
        mark = "**" if is_ours(line.case) else ""
        cells = [
            f"{mark}{cell.median}{mark}" + (f"<br><sub>{cell.range}</sub>" if cell.range else "")
            for cell in line.cells
        ]
        extra = [line.ratio] if one.compares else []
        lines.append((f"{mark}{escape(line.case)}{mark}", *cells, *extra))
    extra = ["ours ÷ theirs"] if one.compares else []
    return markdown_table(("", *one.columns, *extra), lines)


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def listed(facts: Mapping[str, str]) -> str:
    """Facts with their names, one below the other."""
    return "\n".join(f"- {escape(name)}: {escape(words)}" for name, words in facts.items())


def escape(words: str) -> str:
    """Words in which Markdown sees nothing but words."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", words)


def installed(package: str) -> str:
    """The version of a package; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit that is checked out, and whether the files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """The name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def memory_gb() -> float:
    """Memory of the machine, GB (10^9 bytes)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
