"""The report of the benchmarks: aims are held against the right figures, and tables say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from benchmarks import plots, report
from benchmarks.aims import AIMS, judge
from benchmarks.harness import OURS, Bench, Row
from scheduler.redis_server.embedded import EmbeddedServer

ONE = "drain, one process"


def row(measure: str, case: str, what: str, *values: float, unit: str = "jobs/s", note: str = "") -> Row:
    return Row(measure, case, what, unit, values, note)


def drained(**rates: float) -> list[Row]:
    return [row(ONE, case.replace("_", " "), "rate", rate) for case, rate in rates.items()]


def got(rows: list[Row], words: str) -> tuple[float | None, bool | None]:
    """The figure and the verdict of the one aim whose name has these words."""
    (verdict,) = [one for one in judge(rows) if words in one.aim.what]
    return verdict.got, verdict.met


def run(good: float, bad: float) -> list[Row]:
    """All that the aims ask for: what should be high is `good`, what should be low is `bad`."""
    return [
        row(ONE, OURS, "rate", 50_000 * good),
        *drained(arq=5_000 * bad, streaq=10_000 * bad, bullmq=30_000 * bad, bare_loop=80_000 * bad),
        row("latency, idle", OURS, "done p50", 1.5 * bad),
        row("latency, idle", OURS, "done p99", 6 * bad),
        row("latency, urgent", "idle", "started p50", 1),
        row("latency, urgent", "100,000 waiting", "started p50", 1.1 * bad),
        *(
            row("scale", f"{jobs} waiting", what, cost)
            for what in ("enqueue", "claim")
            for jobs, cost in (("1,000", 1), ("1,000,000", 1.2 * bad))
        ),
        *(
            row("memory, waiting job", server, what, size * bad)
            for what in ("with a key", "with a key and a deadline")
            for server, size in (("Redis 7.0.15", 600), ("Valkey 9.1.0", 400))
        ),
        *(row("idle workers", "50 idle", f"commands {verb}", 80 * bad) for verb in ("sent", "executed")),
        row("enqueue, bulk", OURS, "rate", 30_000 * good),
        row("scale, lanes", "one lane", "claim", 1),
        row("scale, lanes", "20 lanes", "claim", 1.2 * bad),
        *(
            row("token events", case, what, rate * good)
            for what in ("tokens", "deltas")
            for case, rate in (("500 streams", 20_000), ("1,000 streams", 50_000))
        ),
        row("latency added to a token", "1,000 streams of 10 tokens/s", "first token, p50", 4 * bad),
        row("latency added to a token", "1,000 streams of 10 tokens/s", "later tokens, p50", 4 * bad),
        row("memory, worker process", OURS, "1,000 in flight", 100 * bad),
        row("telemetry, drain", OURS, "rate", 10_000),
        row("telemetry, drain", "with metrics", "rate", 9_600 / bad),
        row("telemetry, drain", "with traces", "rate", 9_200 / bad),
    ]


@pytest.fixture
def bench() -> Bench:
    rows = [
        row(ONE, OURS, "rate", 900, 1000, 1300),
        row(ONE, OURS, "server CPU", 20, 21, 22, unit="µs/job"),
        row(ONE, "arq", "rate", 100, 250, 300, note="poll_delay 1 ms"),
    ]
    notes = {"bull|mq": "left out: no <node>"}
    return Bench(
        cast("EmbeddedServer", None), 1, "Valkey 9.1.0", quick=False, rounds=3, rows=rows, notes=notes
    )


@pytest.fixture
def _without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(plots, "import_module", refuse)


def test_good_run_meets_every_aim_and_bad_run_none() -> None:
    assert {one.aim.what: one.met for one in judge(run(good=1, bad=1))} == {aim.what: True for aim in AIMS}
    assert {one.aim.what: one.met for one in judge(run(good=0.5, bad=2))} == {aim.what: False for aim in AIMS}


def test_drain_aims_divide_ours_by_theirs() -> None:
    rows = [row(ONE, OURS, "rate", 10_000), *drained(arq=1_000, saq=4_000, bullmq=20_000, bare_loop=16_000)]
    assert got(rows, "arq") == (10, True)
    assert got(rows, "Python") == (2.5, False)  # neither BullMQ nor the bare loop is one
    assert got(rows, "BullMQ") == (0.5, False)
    assert got(rows, "bare loop") == (0.625, True)


def test_bounds_themselves_are_met() -> None:
    rows = [row(ONE, OURS, "rate", 5_000), *drained(arq=1_000, bullmq=5_000)]
    assert got(rows, "arq") == (5, True)
    assert got(rows, "BullMQ") == (1, True)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {(one.got, one.met) for one in judge([])} == {(None, None)}
    assert got(drained(arq=1_000), "arq") == (None, None)


def test_case_is_compared_by_its_rate() -> None:
    rows = [row(ONE, OURS, "rate", 900, 1000, 1300), row(ONE, "arq", "rate", 250)]
    (one,) = report.tables([*rows, row(ONE, f"{OURS}, no dedup", "rate", 500)])
    ours, arq, variant = one.lines
    assert (ours.ratio, ours.share) == ("", 1)
    assert (variant.ratio, variant.share) == ("", 0.5)
    assert (arq.ratio, arq.share) == ("4.00 \N{MULTIPLICATION SIGN}", 0.25)


def test_cell_has_the_median_and_the_range_of_the_rounds(bench: Bench) -> None:
    (one,) = report.tables(bench.rows)
    assert one.columns == ("rate (jobs/s)", "server CPU (µs/job)")
    ours, arq = one.lines
    assert ours.cells == (
        report.Cell("1,000", "900\N{EN DASH}1,300"),
        report.Cell("21.0", "20.0\N{EN DASH}22.0"),
    )
    assert arq.cells[1] == report.Cell()
    assert one.footnotes == ("arq: poll_delay 1 ms",)


WHATS = [f"{mark} {name}" for mark in ("started", "done", "run") for name in ("p50", "p99", "p99.9")]


def test_figures_of_few_cases_stand_below_each_other() -> None:
    rows = [row("latency", case, what, 1, unit="ms") for case in (OURS, "arq") for what in WHATS]
    (one,) = report.tables([*rows, row("latency", OURS, "load", 7)])
    assert one.columns == (OURS, "arq")
    assert [line.case for line in one.lines] == [*(f"{what} (ms)" for what in WHATS), "load (jobs/s)"]


def test_quantiles_of_many_cases_stand_beside_each_other() -> None:
    rows = [row("latency", OURS, what, number, unit="ms") for number, what in enumerate(WHATS)]
    rows += [row("latency", f"peer {n}", "done p99", 1, unit="ms") for n in range(6)]
    quantiles, others = report.tables([*rows, row("latency", OURS, "load", 7)])
    assert quantiles.columns == ("p50 (ms)", "p99 (ms)", "p99.9 (ms)")
    assert [line.case for line in quantiles.lines][:4] == [
        *(f"{OURS}: {mark}" for mark in ("started", "done", "run")),
        "peer 0: done",
    ]
    assert [cell.median for cell in quantiles.lines[1].cells] == ["3.00", "4.00", "5.00"]
    assert others.columns == ("load (jobs/s)",)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.01234, "0.0123"), (0.9999, "1.00"), (9.999, "10.0"), (99.99, "100"), (12345.6, "12,346")],
)
def test_numbers_have_three_digits_that_count(value: float, words: str) -> None:
    assert report.number(value) == words


def test_measures_that_were_not_made_again_are_kept(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert report.beside_earlier(bench, path) == (bench, {})
    other, third = row("latency, idle", OURS, "done p50", 1.5, unit="ms"), row("scale", OURS, "claim", 9)
    before = replace(bench, rows=[*bench.rows, other, third], notes={"old": "said before"})
    made = {"date": "yesterday", "commit": "abc", "earlier": {"scale": "last week, commit 123"}}
    path.write_text(json.dumps(report.figures(before, made)), encoding="utf-8")
    again = row(ONE, OURS, "rate", 2000)
    both, earlier = report.beside_earlier(replace(bench, rows=[again], notes={"new": "said now"}), path)
    assert both.rows == [again, other, third]
    assert both.notes == {"old": "said before", "new": "said now"}
    assert earlier == {"latency, idle": "yesterday, commit abc", "scale": "last week, commit 123"}
    whole, earlier = report.beside_earlier(replace(bench, rows=[again, other, third]), path)
    assert (whole.rows, earlier) == ([again, other, third], {})


@pytest.mark.usefixtures("_without_matplotlib")
def test_folder_is_kept_without_matplotlib(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.keep(bench, tmp_path)
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "figures.json"]
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["rows"][0]["values"] == [900, 1000, 1300]
    assert figures["rows"][0]["median"] == 1000
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| arq | 250<br><sub>100\N{EN DASH}300</sub> |  | 4.00 \N{MULTIPLICATION SIGN} |" in text
    assert r"bull\|mq: left out: no \<node\>" in text
    assert ".svg" not in text


def test_tables_and_aims_are_shown(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(bench)
    shown = capsys.readouterr().out
    assert shown.index("1,000") < shown.index("aims") < shown.index("not measured")
